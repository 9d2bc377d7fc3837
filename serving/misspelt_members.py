"""misspelt: a name in a policy that is one slip away from a member's name, and not a name of the policy's own."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any

from loratory.serving.policy import Policy

_ARGUMENTS = {"schedule": 1, "observe": 1, "victim": 1, "bound": 1, "evict": 2}
"""How many arguments each member that is a function is called with."""


def _all(value: object, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, tuple | list | set | frozenset) and bool(value) and all(isinstance(v, kind) for v in value)


_VALUES: Mapping[str, Callable[[Any], bool]] = {
    "evict": lambda value: isinstance(value, str),
    "prefetch": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "observes": lambda value: isinstance(value, type) or _all(value, (type, str)),
    "only_waiting": lambda value: isinstance(value, bool),
    "decides_by": lambda value: isinstance(value, str) or _all(value, str),
    "source": lambda value: isinstance(value, str),
}
"""What the value of each other member looks like."""


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


_MEMBERS = {member: _plain(member) for member in (*_ARGUMENTS, *_VALUES)}


def misspelt(kind: type, held: Mapping[str, Any]) -> str:
    """What is wrong with the first such name of a policy's class, or of those that the object holds; else empty.

    A slip is one letter too many, missing or wrong, two letters swapped, or other capitals and underscores:
    ``prefetc``, ``bounds``, ``only_waitng``, ``Victim``. A name is the policy's own, whatever it is like, if

    * it begins with an underscore, or is a parameter of the constructor;
    * the policy's own code reads it, as in ``self.bounds``;
    * the member that it is like stands beside it, in the same class or object;
    * its value is not what the member's would be: a method that takes other arguments, a number for a list of events.
    """
    own: set[str] | None = None
    places: list[tuple[Mapping[str, Any], int]] = [(held, 0)]
    places += [(vars(each), 1) for each in kind.__mro__ if each not in (object, Policy)]
    for names, bound in places:
        for name, value in names.items():
            meant = [m for m in _members_like(name) if m not in names and _could_be(m, value, bound)]
            if not meant:
                continue
            if own is None:
                own = {*_parameters(kind), *_read_by(kind)}
            if name not in own:
                return f"its {name} is never read; did you mean {meant[0]!r}? (or begin its name with an underscore)"
    return ""


def _members_like(name: str) -> list[str]:
    """The members whose name is one slip away; none for a member's own name, and for a private one."""
    if name in _MEMBERS or name == "spec" or name.startswith("_"):
        return []
    word = _plain(name)
    return [member for member, plain in _MEMBERS.items() if _is_slip(word, plain)]


def _is_slip(word: str, meant: str) -> bool:
    """Whether at most one letter is too many, missing or wrong, or two neighbours are swapped."""
    if abs(len(word) - len(meant)) > 1:
        return False
    begin, end = 0, 0
    shorter = min(len(word), len(meant))
    while begin < shorter and word[begin] == meant[begin]:
        begin += 1
    while end < shorter - begin and word[-1 - end] == meant[-1 - end]:
        end += 1
    here, there = word[begin : len(word) - end], meant[begin : len(meant) - end]
    return max(len(here), len(there)) <= 1 or (len(here) == 2 and here == there[::-1])


def _could_be(member: str, value: object, bound: int) -> bool:
    """Whether a value looks like the member's; ``bound``: 1 for one in a class, where a function takes ``self``."""
    if isinstance(value, staticmethod):
        value, bound = value.__func__, 0
    elif isinstance(value, classmethod):
        value = value.__func__
    if isinstance(value, FunctionType):
        return member in _ARGUMENTS and can_take(value, _ARGUMENTS[member] + bound)
    return member in _VALUES and _VALUES[member](value)


def can_take(call: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with ``count`` arguments, as far as Python can tell."""
    if isinstance(call, MethodType):
        call, count = call.__func__, count + 1
    try:
        signature = inspect.signature(call, follow_wrapped=False)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _parameters(kind: type) -> set[str]:
    try:
        return set(inspect.signature(kind).parameters)
    except (TypeError, ValueError):
        return set()


def _read_by(kind: type) -> set[str]:
    """Names that the code of a class and of its bases reads from an object, or has as a text."""
    found: set[str] = set()
    for each in kind.__mro__:
        if each not in (object, Policy):
            for value in vars(each).values():
                for code in _codes(value):
                    found.update(text for text in code.co_consts if isinstance(text, str))
                    found.update(
                        str(step.argval)
                        for step in dis.get_instructions(code)
                        if step.opname.startswith("LOAD") and step.opname.endswith(("ATTR", "METHOD"))
                    )
    return found


def _codes(value: object) -> Iterator[CodeType]:
    """The code of a method or property, with that of the functions in it."""
    if isinstance(value, property):
        for part in (value.fget, value.fset):
            yield from _codes(part)
        return
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    if isinstance(value, FunctionType):
        value = inspect.unwrap(value).__code__
    if isinstance(value, CodeType):
        yield value
        for inner in value.co_consts:
            yield from _codes(inner)
