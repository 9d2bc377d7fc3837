"""LiveMapping: a dict of the engine's, as a policy is handed it (see `loratory.serving.read_only`)."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any, TypeVar

from loratory.serving.compiling import mypyc_attr
from loratory.serving.read_only import LiveItems, LiveKeys, LiveValues

Key = TypeVar("Key")
Value = TypeVar("Value")


@mypyc_attr(allow_interpreted_subclasses=True)
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
        return LiveValues(self)

    def items(self) -> ItemsView[Key, Value]:
        """Its pairs of key and value, live."""
        return LiveItems(self)

    def __repr__(self) -> str:
        return repr(self._of)
