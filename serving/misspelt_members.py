"""misspelt: a name in a guest's class that is one slip away from a member's name, and not a name of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from types import FunctionType, MemberDescriptorType, MethodType
from typing import Any

from loratory.serving.names_read import names_read
from loratory.serving.policy import Policy


def _all(value: object, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, tuple | list | set | frozenset) and bool(value) and all(isinstance(v, kind) for v in value)


@dataclass(frozen=True, slots=True)
class MemberNames:
    """The members that a class of one kind may have, and what is easily taken for them.

    ``base``: the base class; ``arguments``: how many arguments each member that is a function is called with;
    ``values``: what the value of each other member looks like; ``words``: English words one letter from a member's
    name, which are names of the class's own, unless the value is what the member's is; ``free``: names that are never a
    slip; ``near``: names that are more than one letter from a member's, but are easily taken for it.
    """

    base: type
    arguments: Mapping[str, int]
    values: Mapping[str, Callable[[Any], bool]]
    words: Collection[str] = ()
    free: Collection[str] = ()
    near: Mapping[str, str] = field(default_factory=dict)

    def like(self, name: str) -> list[str]:
        """The members whose name is one slip away; none for a member's own name, and for a private one."""
        if name in self.arguments or name in self.values or name in self.free or name.startswith("_"):
            return []
        word = _plain(name)
        near = {_plain(each): member for each, member in self.near.items()}
        if word in near:
            return [near[word]]
        return [member for member in (*self.arguments, *self.values) if _is_slip(word, _plain(member))]

    def may_be(self, name: str, value: object) -> bool:
        """Whether a name may be meant for a member's although its value does not look like the member's.

        One that is no word may; one that is easily taken for the member's may not have a function that takes other
        things.
        """
        is_function = isinstance(value, FunctionType | staticmethod | classmethod)
        is_near = _plain(name) in map(_plain, self.near)
        return name not in self.words and not name.endswith("_") and not (is_function and is_near)

    def fits(self, member: str, value: object, bound: int) -> bool:
        """Whether a value looks like the member's; ``bound``: 1 for one in a class, where a function takes ``self``."""
        if isinstance(value, staticmethod):
            value, bound = value.__func__, 0
        elif isinstance(value, classmethod):
            value = value.__func__
        if isinstance(value, FunctionType):
            return member in self.arguments and can_take(value, self.arguments[member] + bound)
        return member in self.values and self.values[member](value)


POLICY_NAMES = MemberNames(
    base=Policy,
    arguments={"schedule": 1, "observe": 1, "victim": 1, "bound": 1, "evict": 2},
    values={
        "evict": lambda value: isinstance(value, str),
        "prefetch": lambda value: isinstance(value, int) and not isinstance(value, bool),
        "observes": lambda value: isinstance(value, type) or _all(value, (type, str)),
        "only_waiting": lambda value: isinstance(value, bool),
        "decides_by": lambda value: isinstance(value, str) or _all(value, str),
        "source": lambda value: isinstance(value, str),
    },
    words={"bounds", "evicts", "observed", "observer", "observers", "schedules", "scheduled", "victims"},
    free={"sources", "spec"},
    near={
        "eviction": "evict",
        "eviction_policy": "evict",
        "prefetching": "prefetch",
        "prefetches": "prefetch",
        "only_wait": "only_waiting",
        "only_when_waiting": "only_waiting",
        "waiting_only": "only_waiting",
        "observe_types": "observes",
        "observed_types": "observes",
        "event_types": "observes",
        "decides": "decides_by",
    },
)
"""The members of a policy (`loratory.serving.policy.Policy`)."""

_NO_VALUE = object()
"""Stands for the value of a name that is only annotated."""


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def misspelt(kind: type, held: Mapping[str, Any], members: MemberNames = POLICY_NAMES) -> str:
    """What is wrong with the first such name of a guest's class, or of those that the object holds; else empty.

    A slip is one letter too many, missing or wrong, two letters swapped, other capitals and underscores
    (``prefetc``, ``only_waitng``, ``Victim``), or a name that is easily taken for the member's (``eviction``). A name
    is the class's own, whatever it is like, if

    * it begins with an underscore;
    * code of its module, or of a module that it imports, reads it (`names_read`);
    * the member that it is like stands beside it, in the same class or object;
    * it is an English word (``bounds``), and its value is not what the member's would be.
    """
    own: set[str] | None = None
    for names, bound in _places(kind, held, members.base):
        for name, value in names.items():
            like = [member for member in members.like(name) if member not in names]
            fitting = [member for member in like if members.fits(member, value, bound)]
            meant = fitting or (like if members.may_be(name, value) else [])
            if not meant:
                continue
            if own is None:
                own = names_read(each for each in kind.__mro__ if each not in (object, members.base))
            if name not in own:
                return f"its {name} is never read; did you mean {meant[0]!r}? (or begin its name with an underscore)"
    return ""


def held_by(policy: object) -> dict[str, Any]:
    """The attributes of an object itself: of its ``__dict__``, and those in ``__slots__`` that are set."""
    found = dict(getattr(policy, "__dict__", {}))
    for kind in type(policy).__mro__:
        for name, slot in vars(kind).items():
            if isinstance(slot, MemberDescriptorType) and kind is not object:
                try:
                    found[name] = slot.__get__(policy)
                except AttributeError:
                    continue  # it is not set
    return found


def _places(kind: type, held: Mapping[str, Any], base: type) -> Iterator[tuple[Mapping[str, Any], int]]:
    """The names of the object and of each class, with 1 where a function takes ``self``."""
    yield held, 0
    for each in kind.__mro__:
        if each not in (object, base):
            names = {n: v for n, v in vars(each).items() if not isinstance(v, MemberDescriptorType)}
            annotated = vars(each).get("__annotations__")
            if isinstance(annotated, dict):
                names = {**{n: _NO_VALUE for n in annotated if n not in held}, **names}
            yield names, 1


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
