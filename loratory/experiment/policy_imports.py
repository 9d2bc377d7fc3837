"""wrong_import: a policy file that imports what is not there, or under an old name, and the import that is meant."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules

import loratory.policy
from loratory.errors import did_you_mean, nearest
from loratory.serving.guest_errors import place

_ROOMS = ("serving", "policies", "sim", "executor", "scenarios", "reports")
"""Packages that stood beside `loratory` once, and are in it now."""

_NO_NAME = re.compile(r"cannot import name '(\w+)' from '(loratory(?:\.policy)?)'")


def old_rooms() -> list[str]:
    """Rooms that this process has imported under their old names, from the folder of Loratory."""
    return [room for room in _ROOMS if _is_our_folder(room)]


def forget(rooms: Collection[str]) -> None:
    """Undo the import of rooms under their old names, so that the next policy is not blamed for it."""
    for name in [name for name in sys.modules if name.partition(".")[0] in rooms]:
        del sys.modules[name]


def wrong_import(error: BaseException | None, before: Collection[str] = ()) -> str:
    """What a policy's import should be, in a sentence; empty where nothing, or something else, is wrong with it.

    ``error`` is what the import raised. Without one, a room may have been imported under its old name: in a checkout it
    is a folder that Python finds, but its classes are not those of `loratory`. ``before``: `old_rooms` before the
    import.
    """
    if error is None:
        twice = [room for room in old_rooms() if room not in before]
        return _under_its_name(twice[0], "") if twice else ""
    if not isinstance(error, ImportError) or error.name is None:
        return ""
    at = f" ({where})" if (where := place(error)) else ""
    if found := _NO_NAME.match(str(error)):
        if found[2] == "loratory" and found[1] in loratory.policy.__all__:
            return f"it imports {found[1]} from loratory{at}: write from loratory.policy import {found[1]}"
        hint = did_you_mean(found[1], loratory.policy.__all__, "docs/policies.md lists its names")
        return f"it imports {found[1]}, which {found[2]} does not have{at}; {hint}"
    if isinstance(error, ModuleNotFoundError) and error.name.startswith("loratory."):
        near = nearest(error.name.split(".")[1], [module.name for module in iter_modules(loratory.__path__)])
        hint = f"did you mean 'loratory.{near[0]}'?" if near else "policies import from loratory.policy"
        return f"it imports {error.name}, which is no module of Loratory{at}; {hint}"
    room, _, rest = error.name.partition(".")
    missing = isinstance(error, ModuleNotFoundError) and (not rest or _is_ours(error.name))
    return _under_its_name(error.name, at) if room in _ROOMS and (missing or _is_our_folder(room)) else ""


def _under_its_name(name: str, at: str) -> str:
    if name.partition(".")[0] == "serving":
        remedy = "write from loratory.policy import View, want"
        return f"it imports {name}, whose names a policy imports from loratory.policy{at}: {remedy}"
    return f"it imports {name}, which is now loratory.{name}{at}: write loratory. before that name"


def _is_ours(name: str) -> bool:
    """Whether there is such a module in a room."""
    try:
        return find_spec(f"loratory.{name}") is not None
    except ModuleNotFoundError:
        return False


def _is_our_folder(room: str) -> bool:
    """Whether a package was imported under that name from the folder of our own."""
    ours = Path(loratory.policy.__file__).parent / room
    return room in sys.modules and any(
        Path(folder).resolve() == ours.resolve() for folder in getattr(sys.modules[room], "__path__", ())
    )
