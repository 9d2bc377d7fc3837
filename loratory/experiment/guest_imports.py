"""wrong_import: a guest's file that imports what is not there, or under an old name, and the import that is meant."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

from loratory.errors import did_you_mean, nearest
from loratory.serving.guest_errors import place

_LORATORY = Path(__file__).parents[1]

_ROOMS = ("serving", "policies", "sim", "executor", "scenarios", "reports")
"""Packages that stood beside `loratory` once, and are in it now."""

_OF_MODULE = {"loratory.policy": ("policies", "docs/policies.md"), "loratory.router": ("routers", "docs/fleets.md")}
"""Who imports from a module, and the page that lists its names."""

_NO_NAME = re.compile(r"cannot import name '(\w+)' from '(loratory(?:\.policy|\.router)?)'")


def old_rooms() -> list[str]:
    """Rooms that this process has imported under their old names, from the folder of Loratory."""
    return [room for room in _ROOMS if _is_our_folder(room)]


def forget(rooms: Collection[str]) -> None:
    """Undo the import of rooms under their old names, so that the next guest is not blamed for it."""
    for name in [name for name in sys.modules if name.partition(".")[0] in rooms]:
        del sys.modules[name]


def wrong_import(error: BaseException | None, imports: tuple[ModuleType, str], before: Collection[str] = ()) -> str:
    """What a guest's import should be, in a sentence; empty where nothing, or something else, is wrong with it.

    ``error`` is what the import raised. Without one, a room may have been imported under its old name: in a checkout it
    is a folder that Python finds, but its classes are not those of `loratory`. ``imports``: the module that guests
    import from, with an example of what. ``before``: `old_rooms` before the import.
    """
    if error is None:
        twice = [room for room in old_rooms() if room not in before]
        return _under_its_name(twice[0], "", imports) if twice else ""
    if not isinstance(error, ImportError) or error.name is None:
        return ""
    at = f" ({where})" if (where := place(error)) else ""
    module = imports[0].__name__
    plural, page = _OF_MODULE[module]
    if found := _NO_NAME.match(str(error)):
        if found[2] == "loratory" and found[1] in imports[0].__all__:
            return f"it imports {found[1]} from loratory{at}: write from {module} import {found[1]}"
        hint = did_you_mean(found[1], imports[0].__all__, f"{page} lists its names")
        return f"it imports {found[1]}, which {found[2]} does not have{at}; {hint}"
    if isinstance(error, ModuleNotFoundError) and error.name.startswith("loratory."):
        near = nearest(error.name.split(".")[1], [module.name for module in iter_modules([str(_LORATORY)])])
        hint = f"did you mean 'loratory.{near[0]}'?" if near else f"{plural} import from {module}"
        return f"it imports {error.name}, which is no module of Loratory{at}; {hint}"
    room, _, rest = error.name.partition(".")
    missing = isinstance(error, ModuleNotFoundError) and (not rest or _is_ours(error.name))
    return _under_its_name(error.name, at, imports) if room in _ROOMS and (missing or _is_our_folder(room)) else ""


def _under_its_name(name: str, at: str, imports: tuple[ModuleType, str]) -> str:
    if name.partition(".")[0] == "serving":
        module = imports[0].__name__
        whose = f"whose names a {module.rpartition('.')[2]} imports from {module}"
        return f"it imports {name}, {whose}{at}: write from {module} import {imports[1]}"
    return f"it imports {name}, which is now loratory.{name}{at}: write loratory. before that name"


def _is_ours(name: str) -> bool:
    """Whether there is such a module in a room."""
    try:
        return find_spec(f"loratory.{name}") is not None
    except ModuleNotFoundError:
        return False


def _is_our_folder(room: str) -> bool:
    """Whether a package was imported under that name from the folder of our own."""
    ours = _LORATORY / room
    return room in sys.modules and any(
        Path(folder).resolve() == ours.resolve() for folder in getattr(sys.modules[room], "__path__", ())
    )
