"""ClassSpec: a class of a guest, by name: ``fifo``, ``my_module:Mine``, ``path/file.py:Mine:quantum=4``."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from hashlib import sha256
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, TypeVar

from loratory.errors import InputError, did_you_mean, several, shortened
from loratory.experiment.class_parameters import (
    LARGEST,
    meanings_of,
    options_of,
    own,
    signature,
    too_large,
    type_text,
    value_of,
    wanted,
)
from loratory.experiment.guest_imports import forget, old_rooms, wrong_import
from loratory.git_lfs import refuse_pointer
from loratory.serving.guest_errors import guest
from loratory.serving.misspelt_members import MemberNames, misspelt

A = TypeVar("A")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a policy, router or placement: its name, type as text, default, and what it means.

    ``without``: what a default of None does, in a word or two, where that is known; ``--json`` has the None.
    """

    name: str
    type: str
    default: Any
    description: str
    without: str = ""

    @property
    def default_words(self) -> str:
        """The default as a spec has it, or what it is without one."""
        if self.default is None and self.without:
            return self.without
        return str(self.default).lower() if isinstance(self.default, bool) else str(self.default)


@dataclass(frozen=True, slots=True)
class Description:
    """What ``loratory policies``, ``loratory routers`` and ``loratory placements`` show of one."""

    name: str
    summary: str
    text: str
    source: str
    not_modelled: str
    """What its source has and it lacks; empty where the docstring does not say "Not modelled:"."""
    parameters: tuple[Parameter, ...]

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        parameters = [asdict(parameter) for parameter in self.parameters]
        for parameter in parameters:
            del parameter["without"]
        told = {"name": self.name, "summary": self.summary, "source": self.source, "not_modelled": self.not_modelled}
        return told | {"parameters": parameters}


@dataclass(frozen=True, slots=True)
class ClassSpec:
    """How the classes of one kind are named, found and read.

    ``word``: what errors call one, "policy" or "router". ``package``: those that come with Loratory, a file each, whose
    classes have ``method``; ``members``: the names that a class may have. Other packages offer classes as
    ``entry_points``. ``imports``: the module from which a file imports, with an example of what. ``common``: parameters
    that all take, as (type, default, meaning).
    """

    word: str
    package: types.ModuleType
    entry_points: str
    method: str
    members: MemberNames
    imports: tuple[types.ModuleType, str]
    common: Mapping[str, tuple[Any, Any, str]] = field(default_factory=dict)

    def guest(self, spec: str, subject: str, call: Callable[..., T], *arguments: Any) -> T:
        """`loratory.serving.guest_errors.guest`, which names the guest by this word."""
        return guest(spec, subject, call, *arguments, word=self.word)

    def error(self, spec: str, what: str) -> InputError:
        """``policy 'mine.py:Mine'`` and what is wrong with it."""
        return InputError(f"{self.word} {shown(spec)}{what}")

    def names(self) -> list[str]:
        """Names of those that come with Loratory and of those that other packages offer as entry points."""
        return sorted({*self.own_names(), *(point.name for point in entry_points(group=self.entry_points))})

    def own_names(self) -> list[str]:
        """Names of those that come with Loratory."""
        return [module.name for module in pkgutil.iter_modules(self.package.__path__)]

    def make(self, spec: str, kind: type, parameters: Mapping[str, Any]) -> Any:
        """An object of a class."""
        return self.guest(spec, "its __init__()", partial(kind, **parameters))

    def find(self, spec: str) -> tuple[type, str]:
        """The class a spec names, and the text of its parameters."""
        head, _, rest = spec.partition(":")
        own = self.own_names()
        if head.endswith(".py") or (head not in own and rest and "=" not in rest.partition(":")[0]):
            name, _, given = rest.partition(":")
            if not name:
                raise self.error(spec, f" names no class: write {shortened(head, 100)}:ClassName")
            return self._class_of(self._module(head, spec), name, spec), given
        if head in own:
            module = importlib.import_module(f"{self.package.__name__}.{head}")
            classes = (value for value in vars(module).values() if inspect.isclass(value))
            return next(c for c in classes if c.__module__ == module.__name__ and self._has_method(c)), rest
        for point in entry_points(group=self.entry_points):
            if point.name == head:
                return typing.cast(type, self.guest(spec, f"the import of {point.value}", point.load)), rest
        names = self.names()
        if "=" in head and head.partition("=")[0].strip().isidentifier():
            text = f" looks like a parameter of the {self.word} before it: write both in one text, in quotes"
            raise self.error(head, f'{text}, such as "NAME:first=1,second=2"')
        hint = did_you_mean(head, names, f"choose one of {several(names, 12)}")
        raise self.error(head, f" is unknown; {hint} (a {self.word} of your own is path/file.py:ClassName)")

    def _module(self, head: str, spec: str) -> types.ModuleType:
        if not head.endswith(".py"):
            if not all(part.isidentifier() for part in head.split(".")):
                raise self.error(spec, f": {shown(head)} is no module's name: check it, or give a .py file")
            return self._imported(spec, f"the import of {shortened(head, 100)}", head, importlib.import_module, head)
        path = self._file_of(head, spec)
        name = f"loratory_{self.word}_{path.stem}_{sha256(str(path).encode()).hexdigest()[:12]}"
        file_spec = importlib.util.spec_from_file_location(name, path)
        assert file_spec is not None and file_spec.loader is not None
        module = importlib.util.module_from_spec(file_spec)
        sys.modules[name] = module
        self._imported(spec, "its import", "", file_spec.loader.exec_module, module)
        return module

    def _imported(self, spec: str, subject: str, name: str, load: Callable[[A], T], what: A) -> T:
        """`guest`, for an import: where it names what is missing, the error says what to import instead."""
        before = old_rooms()
        try:
            found = self.guest(spec, subject, load, what)
        except InputError as error:
            cause = error.__cause__
            text = wrong_import(cause, self.imports)
            forget({*old_rooms()} - {*before})
            if isinstance(cause, ModuleNotFoundError) and name and cause.name == name.partition(".")[0]:
                hint = f"; did you mean 'loratory.{name}'?" if text else ": check it, or give a .py file"
                text = f"there is no module {shown(name)}{hint}"
            if not text:
                raise
            raise InputError(shortened(f"{self.word} {shown(spec)}: {text}")) from cause
        if text := wrong_import(None, self.imports, before):
            forget({*old_rooms()} - {*before})
            raise InputError(shortened(f"{self.word} {shown(spec)}: {text}"))
        return found

    def _file_of(self, head: str, spec: str) -> Path:
        try:
            path = Path(head).expanduser().resolve()
            there = path.is_file()
        except (OSError, RuntimeError, ValueError) as error:
            reason = shortened(str(getattr(error, "strerror", None) or error), 100)
            raise self.error(spec, f": the file cannot be read ({reason}): check its path") from error
        if not there:
            raise self.error(spec, f": there is no file {shortened(head, 100)}: give the path of a Python file")
        refuse_pointer(path, f"{self.word} {shown(spec)}: ")
        return path

    def _class_of(self, module: types.ModuleType, name: str, spec: str) -> type:
        found = getattr(module, name, None)
        if inspect.isclass(found) and not self._has_method(found) and (wrong := misspelt(found, {}, self.members)):
            raise self.error(spec, f": {wrong}")
        if not inspect.isclass(found) or not self._has_method(found):
            known = [n for n, v in vars(module).items() if inspect.isclass(v) and self._has_method(v)]
            raise self.error(
                spec,
                f": {shown(name)} is no class with a {self.method} method; the file has {several(known) or 'none'}",
            )
        return found

    def _has_method(self, kind: type) -> bool:
        return getattr(kind, self.method, None) not in (None, getattr(self.members.base, self.method))

    # -- parameters ------------------------------------------------------------------------------------------------

    def read_parameters(self, spec: str, kind: type, given: str) -> dict[str, Any]:
        """The values that a spec gives to the parameters of a class. Raises `InputError`."""
        known = {**{n: k for n, (k, _, _) in self.common.items()}, **{n: k for n, (k, _) in own(kind).items()}}
        values: dict[str, Any] = {}
        for part in filter(None, (piece.strip() for piece in given.split(","))):
            name, equals, text = part.partition("=")
            name = name.strip()
            if not equals:
                raise self.error(spec, f": {shown(part)} is no parameter: write name=value, separated by commas")
            if name not in known:
                hint = did_you_mean(name, known, f"it takes {several(known, 12) or 'none'}")
                raise self.error(spec, f" has no parameter {shown(name)}; {hint}")
            if name in values:
                raise self.error(spec, f" gives {name!r} twice: keep one")
            values[name] = self._convert(spec, name, known[name], text.strip())
        for name, parameter in signature(kind).items():
            if parameter.default is parameter.empty and name not in values:
                whole = f"{spec}{',' if given else ':'}{name}=VALUE"
                raise self.error(spec, f" needs {name}: write {shortened(whole, 100)}")
        return values

    def _convert(self, spec: str, name: str, kind: Any, text: str) -> Any:
        """The value that a text stands for: that of the first type of a union which it fits."""
        options = options_of(kind)
        if types.NoneType in options and text.lower() in ("none", "null"):
            return None
        for option in options:
            try:
                return value_of(option, text)
            except ValueError:
                continue
        listed = any(typing.get_origin(option) is Literal for option in options)
        remedy = f"choose one of {type_text(kind).replace(' | ', ', ')}" if listed else f"give {wanted(kind)}"
        if too_large(kind, text):
            remedy = f"give a number from {-LARGEST:g} to {LARGEST:g}"
        raise self.error(spec, f": {name} is {shown(text)}: {remedy}")

    # -- what it is ------------------------------------------------------------------------------------------------

    def description(self, spec: str, kind: type, source: object, common: Mapping[str, Any]) -> Description:
        """What a class does, its parameters and its source, from its docstring and signature.

        ``common``: the defaults of the parameters that all take, as far as this class has others.
        """
        found, meanings = described(spec, kind, source)
        own_ones = own(kind)
        parameters = [
            Parameter(name, type_text(type_), default, meanings.get(name, ""))
            for name, (type_, default) in own_ones.items()
        ]
        shared = {name: each for name, each in self.common.items() if name not in own_ones}
        parameters += [Parameter(name, type_text(k), common[name], meaning) for name, (k, _, meaning) in shared.items()]
        return replace(found, parameters=tuple(parameters))


def described(spec: str, kind: type, source: object) -> tuple[Description, dict[str, str]]:
    """What the docstrings of a class and its module say of it, without its parameters; and what those mean, by name."""
    written = kind.__doc__
    text = inspect.cleandoc(written if isinstance(written, str) and written else "No description.")
    told, _, listed = text.partition("\nParameters:\n")
    body, _, lacks = told.partition("\nNot modelled:")
    prose = "\n\n".join(" ".join(paragraph.split()) for paragraph in body.strip().split("\n\n"))
    headline = str(getattr(sys.modules.get(kind.__module__), "__doc__", None) or "").partition("\n")[0]
    subject, _, summary = headline.partition(": ")
    if subject != spec or not summary:
        summary = " ".join(body.split()).split(". ")[0].rstrip(".") + "."
    source = source if isinstance(source, str) else ""
    return Description(spec, summary, prose, source, " ".join(lacks.split()), ()), meanings_of(listed)


def shown(spec: str) -> str:
    """A spec as errors quote it."""
    return repr(shortened(spec, 100))
