"""read_only: dicts and iterators of the engine's, as a policy is handed them.

Python's own wrappers show what they wrap: a ``MappingProxyType`` passes its dict to the other operand of ``|`` and
``==``, a generator shows its variables in ``gi_frame``, and ``map`` its generator in ``__reduce__``. These do not.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, Set, ValuesView
from typing import Any, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class LiveMapping(Mapping[Key, Value]):
    """A mapping that can be read and not written: live, and in its order."""

    __slots__ = ("_of",)

    def __init__(self, of: Mapping[Key, Value]) -> None:
        self._of = of

    def __getitem__(self, key: Key) -> Value:
        return self._of[key]

    def __contains__(self, key: object) -> bool:
        return key in self._of

    def __iter__(self) -> Iterator[Key]:
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)

    def get(self, key: Key, default: Any = None) -> Any:
        """The value of a key, or ``default``."""
        return self._of.get(key, default)

    def keys(self) -> KeysView[Key]:
        """Its keys: a set, live."""
        return LiveKeys(self)

    def values(self) -> ValuesView[Value]:
        """Its values, live."""
        return _Values(self)

    def items(self) -> ItemsView[Key, Value]:
        """Its pairs of key and value, live."""
        return _Items(self)

    def __repr__(self) -> str:
        return repr(self._of)


class LiveKeys(KeysView[Key]):
    """The keys of a `LiveMapping`."""

    __slots__ = ()
    _mapping: LiveMapping[Key, Any]

    def __contains__(self, key: object) -> bool:
        return key in self._mapping._of

    def __iter__(self) -> Iterator[Key]:
        return iter(self._mapping._of)

    def isdisjoint(self, other: Iterable[Any]) -> bool:
        """Whether none of ``other`` is a key."""
        return self._mapping._of.keys().isdisjoint(_plain(other))

    def __and__(self, other: Iterable[Any]) -> set[Key]:
        return self._mapping._of.keys() & _plain(other)

    __rand__ = __and__  # type: ignore[assignment]


def _plain(other: Iterable[Any]) -> Set[Any]:
    """A set that cannot look at what it is compared with."""
    return other if type(other) is set else set(other)


class _Values(ValuesView[Value]):
    __slots__ = ()
    _mapping: LiveMapping[Any, Value]

    def __iter__(self) -> Iterator[Value]:
        return iter(self._mapping._of.values())


class _Items(ItemsView[Key, Value]):
    __slots__ = ()
    _mapping: LiveMapping[Key, Value]

    def __iter__(self) -> Iterator[tuple[Key, Value]]:
        return iter(self._mapping._of.items())


def _no_pickle(self: object) -> Any:
    raise TypeError(f"an iterator of type {type(self).__name__} cannot be copied or pickled")


class LiveWalk(filter):  # type: ignore[type-arg]  # Python has no filter[...]
    """The items of an iterator, at the speed of C: ``LiveWalk(None, items)``. All items count as true."""

    __slots__ = ()
    __reduce__ = _no_pickle


class LiveWalkOf(map):  # type: ignore[type-arg]
    """What a function makes of the items of an iterator, at the speed of C: ``LiveWalkOf(function, items)``."""

    __slots__ = ()
    __reduce__ = _no_pickle
