"""Policy specs: ``fifo``, ``fair_share:by=tenant``, ``my_module:MyPolicy``, ``path/file.py:MyPolicy:quantum=4``."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import entry_points
from math import isfinite
from pathlib import Path
from typing import Any, Literal, TypeVar

import loratory.policies
from loratory.errors import InputError, did_you_mean, several, shortened
from loratory.experiment.policy_imports import forget, old_rooms, wrong_import
from loratory.git_lfs import refuse_pointer
from loratory.serving.eviction import SCORERS
from loratory.serving.guest_errors import guest
from loratory.serving.misspelt_members import misspelt
from loratory.serving.policy import Policy, PolicyLike
from loratory.serving.policy_members import LoadedSpec, members_of
from loratory.serving.policy_watch import POLICY_TIMEOUT_S, PolicyWatch
from loratory.serving.reservation import WithReservation

ENTRY_POINTS = "loratory.policies"
A = TypeVar("A")
T = TypeVar("T")
_COMMON = {
    "evict": (Literal[tuple(SCORERS)], "lru", "which idle adapter leaves the GPU first"),
    "prefetch": (int, 0, "waiting requests from the front whose adapters are fetched to host memory in advance"),
    "reserve": (bool, False, "admit only what fits until it ends, and look only as often as LightLLM's router does"),
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """A policy's parameter: its name, type as text, default, and what it means."""

    name: str
    type: str
    default: Any
    description: str


@dataclass(frozen=True, slots=True)
class Description:
    """What ``loratory policies`` shows of one policy."""

    name: str
    summary: str
    text: str
    source: str
    not_modelled: str
    """What its source has and it lacks; empty where the docstring has no such section."""
    parameters: tuple[Parameter, ...]

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        parameters = [asdict(parameter) for parameter in self.parameters]
        told = {"name": self.name, "summary": self.summary, "source": self.source, "not_modelled": self.not_modelled}
        return told | {"parameters": parameters}


class PolicyFactory:
    """A spec that has been parsed: each call makes a fresh policy with the spec's parameters.

    ``settings``: every parameter of the policy with its value under this spec, the policy's own first.
    ``decides_by``: the attribute ``decides_by`` of its policies; None where they have none. One policy has been made
    already, and its members were checked (`members_of`).

    >>> policy_factory("fifo:strict=true").settings
    {'strict': True, 'evict': 'lru', 'prefetch': 0, 'reserve': False}
    """

    __slots__ = ("_class", "_common", "_parameters", "decides_by", "settings", "source", "spec")

    def __init__(self, spec: str) -> None:
        guest(spec, "its class", self._read, spec)

    def _read(self, spec: str) -> None:
        policy_class, given = _find(spec)
        own = _own(policy_class)
        values = _read_parameters(spec, policy_class, given)
        self.spec = spec
        self._class = policy_class
        self._common = {name: value for name, value in values.items() if name in _COMMON and name not in own}
        self._parameters = {name: value for name, value in values.items() if name not in self._common}
        members = members_of(self(), spec)
        self.decides_by = members.decides_by
        self.source = members.source
        common = {"evict": _scorer_text(members.evict), "prefetch": members.prefetch, "reserve": False}
        defaults = {name: default for name, (_, default) in own.items()}
        self.settings: dict[str, Any] = {**defaults, **{n: v for n, v in common.items() if n not in own}, **values}

    def __call__(self) -> PolicyLike:
        policy: Any = guest(self.spec, "its __init__()", self._class, **self._parameters)
        if (own := guest(self.spec, "its spec", getattr, policy, "spec", None)) is not None and own is not Policy.spec:
            remedy = "Loratory sets spec, to how the policy was asked for: choose another name"
            raise InputError(f"policy {_shown(self.spec)}: it has a spec of its own; {remedy}")
        for key, value in {**self._common, "spec": LoadedSpec(self.spec)}.items():
            self._set(policy, key, value)
        return WithReservation(policy) if self._common.get("reserve") else typing.cast(PolicyLike, policy)

    def _set(self, policy: object, key: str, value: object) -> None:
        try:
            guest(self.spec, "its __setattr__()", setattr, policy, key, value)
        except InputError as error:
            if not isinstance(error.__cause__, AttributeError):
                raise
            if key != "spec":
                raise InputError(f"policy {_shown(self.spec)}: {_no_room(policy, key)}") from error.__cause__


def _no_room(policy: object, key: str) -> str:
    """Why an attribute of a policy cannot be set, and the remedy."""
    if isinstance(inspect.getattr_static(type(policy), key, None), property):
        return f"its {key} is a property without a setter, so a spec cannot give it: write {key} as an attribute"
    if "__dict__" not in dir(type(policy)):
        return f"it has no room for {key}: do not use __slots__, or have {key!r} in them"
    return f"its {key} cannot be set, so a spec cannot give it: let its objects be changed"


def policy_factory(spec: str, timeout_s: float = POLICY_TIMEOUT_S) -> PolicyFactory:
    """Parse a spec; each call of the result makes a fresh policy with the spec's parameters.

    Raises `InputError` for an unknown policy, file, class or parameter, a value of the wrong type, and a policy that
    raises when it is imported or made; `PolicyError` for one that exits or takes longer than ``timeout_s`` then.
    """
    with PolicyWatch(spec, timeout_s):
        return PolicyFactory(spec)


def _shown(spec: str) -> str:
    return repr(shortened(spec, 100))


def describe(spec: str) -> Description:
    """What a policy does, what of its source it lacks, its parameters, from its docstring and signature.

    Raises as `policy_factory` does, but not for a policy that needs parameters.
    """
    with PolicyWatch(spec):
        return guest(spec, "its class", _describe, spec)


def _describe(spec: str) -> Description:
    policy_class, _ = _find(spec)
    needs_parameters = any(parameter.default is parameter.empty for parameter in _signature(policy_class).values())
    factory = None if needs_parameters else PolicyFactory(spec)
    common = _of_class(policy_class) if factory is None else factory.settings
    source = getattr(policy_class, "source", "") if factory is None else factory.source
    written = policy_class.__doc__
    text = inspect.cleandoc(written if isinstance(written, str) and written else "No description.")
    prose, _, listed = text.partition("\nParameters:\n")
    body, _, lacks = prose.partition("\nNot modelled:\n")
    meanings = _meanings(listed)
    parameters = [
        Parameter(name, _type_text(kind), default, meanings.get(name, ""))
        for name, (kind, default) in _own(policy_class).items()
    ]
    own = {parameter.name for parameter in parameters}
    parameters += [Parameter(n, _type_text(k), common[n], t) for n, (k, _, t) in _COMMON.items() if n not in own]
    shown = "\n\n".join(" ".join(paragraph.split()) for paragraph in body.strip().split("\n\n"))
    headline = str(getattr(sys.modules.get(policy_class.__module__), "__doc__", None) or "").partition("\n")[0]
    subject, _, summary = headline.partition(": ")
    if subject != spec or not summary:
        summary = " ".join(body.split()).split(". ")[0].rstrip(".") + "."
    source = source if isinstance(source, str) else ""
    return Description(spec, summary, shown, source, " ".join(lacks.split()), tuple(parameters))


def _of_class(policy_class: type) -> dict[str, Any]:
    """The defaults of the parameters that every policy takes, as far as a class sets them."""
    prefetch = getattr(policy_class, "prefetch", 0)
    return {"evict": _scorer_text(getattr(policy_class, "evict", None)), "prefetch": prefetch, "reserve": False}


def _scorer_text(evict: object) -> str:
    """An ``evict`` in words: a scorer's name, or that it is the policy's own function."""
    if evict is None or isinstance(evict, str):
        return evict or "lru"
    return next((name for name, scorer in SCORERS.items() if scorer is evict), "its own function")


def policy_names() -> list[str]:
    """Names of the policies that come with Loratory and of those other packages offer as entry points."""
    own = [module.name for module in pkgutil.iter_modules(loratory.policies.__path__)]
    return sorted({*own, *(point.name for point in entry_points(group=ENTRY_POINTS))})


def _find(spec: str) -> tuple[type, str]:
    """The class a spec names, and the text of its parameters."""
    head, _, rest = spec.partition(":")
    own = [module.name for module in pkgutil.iter_modules(loratory.policies.__path__)]
    if head.endswith(".py") or (head not in own and rest and "=" not in rest.partition(":")[0]):
        name, _, given = rest.partition(":")
        if not name:
            raise InputError(f"policy {_shown(spec)} names no class: write {shortened(head, 100)}:ClassName")
        return _class_of(_module(head, spec), name, spec), given
    if head in own:
        module = importlib.import_module(f"loratory.policies.{head}")
        classes = (value for value in vars(module).values() if inspect.isclass(value))
        return next(c for c in classes if c.__module__ == module.__name__ and hasattr(c, "schedule")), rest
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == head:
            return typing.cast(type, guest(spec, f"the import of {point.value}", point.load)), rest
    hint = did_you_mean(head, policy_names(), f"choose one of {several(policy_names(), 12)}")
    raise InputError(f"policy {_shown(head)} is unknown; {hint} (a policy of your own is path/file.py:ClassName)")


def _module(head: str, spec: str) -> types.ModuleType:
    if not head.endswith(".py"):
        if not all(part.isidentifier() for part in head.split(".")):
            raise InputError(f"policy {_shown(spec)}: {_shown(head)} is no module's name: check it, or give a .py file")
        return _imported(spec, f"the import of {shortened(head, 100)}", head, importlib.import_module, head)
    path = _file_of(head, spec)
    name = f"loratory_policy_{path.stem}_{sha256(str(path).encode()).hexdigest()[:12]}"
    file_spec = importlib.util.spec_from_file_location(name, path)
    assert file_spec is not None and file_spec.loader is not None
    module = importlib.util.module_from_spec(file_spec)
    sys.modules[name] = module
    _imported(spec, "its import", "", file_spec.loader.exec_module, module)
    return module


def _imported(spec: str, subject: str, name: str, load: Callable[[A], T], what: A) -> T:
    """`guest`, for an import: where it names what is missing, the error says what to import instead."""
    before = old_rooms()
    try:
        found = guest(spec, subject, load, what)
    except InputError as error:
        cause = error.__cause__
        text = wrong_import(cause)
        forget({*old_rooms()} - {*before})
        if isinstance(cause, ModuleNotFoundError) and name and cause.name == name.partition(".")[0]:
            hint = f"; did you mean 'loratory.{name}'?" if text else ": check it, or give a .py file"
            text = f"there is no module {_shown(name)}{hint}"
        if not text:
            raise
        raise InputError(shortened(f"policy {_shown(spec)}: {text}")) from cause
    if text := wrong_import(None, before):
        forget({*old_rooms()} - {*before})
        raise InputError(shortened(f"policy {_shown(spec)}: {text}"))
    return found


def _file_of(head: str, spec: str) -> Path:
    try:
        path = Path(head).expanduser().resolve()
        there = path.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        reason = shortened(str(getattr(error, "strerror", None) or error), 100)
        raise InputError(f"policy {_shown(spec)}: the file cannot be read ({reason}): check its path") from error
    if not there:
        raise InputError(
            f"policy {_shown(spec)}: there is no file {shortened(head, 100)}: give the path of a Python file"
        )
    refuse_pointer(path, f"policy {_shown(spec)}: ")
    return path


def _class_of(module: types.ModuleType, name: str, spec: str) -> type:
    policy_class = getattr(module, name, None)
    if inspect.isclass(policy_class) and not _schedules(policy_class) and (wrong := misspelt(policy_class, {})):
        raise InputError(f"policy {_shown(spec)}: {wrong}")
    if not inspect.isclass(policy_class) or not _schedules(policy_class):
        known = [n for n, v in vars(module).items() if inspect.isclass(v) and _schedules(v)]
        raise InputError(
            f"policy {_shown(spec)}: {_shown(name)} is no class with a schedule method; the file has "
            f"{several(known) or 'none'}"
        )
    return policy_class


def _schedules(policy_class: type) -> bool:
    return getattr(policy_class, "schedule", None) not in (None, Policy.schedule)


def _own(policy_class: type) -> dict[str, tuple[Any, Any]]:
    """The parameters of a policy's constructor: (type, default)."""
    if policy_class.__init__ is object.__init__:  # type: ignore[misc]
        return {}
    try:
        hints = typing.get_type_hints(policy_class.__init__)  # type: ignore[misc]
    except Exception:
        hints = {}
    return {
        name: (hints.get(name) or _type_of(parameter.default), _default(parameter))
        for name, parameter in _signature(policy_class).items()
    }


def _default(parameter: inspect.Parameter) -> Any:
    return None if parameter.default is parameter.empty else parameter.default


def _type_of(default: Any) -> type:
    """The type of a parameter that names none: its default's, or else a text."""
    return type(default) if isinstance(default, bool | int | float) else str


def _signature(policy_class: type) -> dict[str, inspect.Parameter]:
    """The parameters of a policy's constructor that a spec can name."""
    if policy_class.__init__ is object.__init__:  # type: ignore[misc]
        return {}
    signature = inspect.signature(policy_class.__init__)  # type: ignore[misc]
    return {
        name: parameter
        for name, parameter in list(signature.parameters.items())[1:]
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def _read_parameters(spec: str, policy_class: type, given: str) -> dict[str, Any]:
    known = {**{n: k for n, (k, _, _) in _COMMON.items()}, **{n: k for n, (k, _) in _own(policy_class).items()}}
    values: dict[str, Any] = {}
    for part in filter(None, (piece.strip() for piece in given.split(","))):
        name, equals, text = part.partition("=")
        name = name.strip()
        if not equals:
            raise InputError(
                f"policy {_shown(spec)}: {_shown(part)} is no parameter: write name=value, separated by commas"
            )
        if name not in known:
            hint = did_you_mean(name, known, f"it takes {several(known, 12)}")
            raise InputError(f"policy {_shown(spec)} has no parameter {_shown(name)}; {hint}")
        if name in values:
            raise InputError(f"policy {_shown(spec)} gives {name!r} twice: keep one")
        values[name] = _convert(spec, name, known[name], text.strip())
    if values.get("prefetch", 0) < 0:
        raise InputError(f"policy {_shown(spec)}: prefetch is {values['prefetch']}: give 0 or more")
    for name, parameter in _signature(policy_class).items():
        if parameter.default is parameter.empty and name not in values:
            whole = f"{spec}{',' if given else ':'}{name}=VALUE"
            raise InputError(f"policy {_shown(spec)} needs {name}: write {shortened(whole, 100)}")
    return values


def _convert(spec: str, name: str, kind: Any, text: str) -> Any:
    """The value that a text stands for: that of the first type of a union which it fits."""
    options = _options(kind)
    if types.NoneType in options and text.lower() in ("none", "null"):
        return None
    for option in options:
        try:
            return _value(option, text)
        except ValueError:
            continue
    listed = any(typing.get_origin(option) is Literal for option in options)
    remedy = f"choose one of {_type_text(kind).replace(' | ', ', ')}" if listed else f"give {_wanted(kind)}"
    raise InputError(f"policy {_shown(spec)}: {name} is {_shown(text)}: {remedy}")


def _options(kind: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def _value(kind: Any, text: str) -> Any:
    """A text as a value of one type. Raises `ValueError`."""
    if typing.get_origin(kind) is Literal:
        for choice in typing.get_args(kind):
            if text == str(choice):
                return choice
    elif kind is bool:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() in words:
            return words[text.lower()]
    elif kind in (int, float):
        number = kind(text)
        if isfinite(number):
            return number
    elif kind is str:
        return text
    raise ValueError(text)


def _type_text(kind: Any) -> str:
    options = _options(kind)
    if len(options) > 1:
        return " | ".join(map(_type_text, options))
    if typing.get_origin(kind) is Literal:
        return " | ".join(map(str, typing.get_args(kind)))
    return _TYPES.get(kind, str(kind) if typing.get_origin(kind) else str(getattr(kind, "__name__", kind)))


_TYPES = {int: "whole number", float: "number", str: "text", bool: "true | false", types.NoneType: "none"}


def _wanted(kind: Any) -> str:
    """What to give for a type, in a sentence."""
    words = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false"}
    words[types.NoneType] = "none"
    known = [words[option] for option in _options(kind) if option in words]
    if len(known) == len(_options(kind)):
        return " or ".join(known)
    return f"a value in Python, since {_type_text(kind)} cannot be written here"


def _meanings(listed: str) -> dict[str, str]:
    """``name: meaning`` lines of a docstring's Parameters section; continuation lines are indented further."""
    meanings: dict[str, str] = {}
    name = ""
    for line in listed.splitlines():
        stripped = line.strip()
        if line.startswith("    ") and not line.startswith("     ") and ":" in stripped:
            name, _, text = stripped.partition(":")
            meanings[name] = text.strip()
        elif stripped and name:
            meanings[name] += " " + stripped
    return meanings
