"""Leaders: which names get counts of their own, so that metrics stay few however many names clients think of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

OTHER = "other"
"""The name under which all others are counted together."""

_HALVE_AFTER = 8192
_AHEAD = 1.5


class Leaders(Generic[T]):
    """Counts of their own for the ``most`` names that are asked for most; one count for all others together.

    A name keeps what it has. Another takes its place only when it has been asked for half as often again as the leader
    that was asked for least; then it begins at zero and what the other had ends, because a counter that is moved from
    one series to another looks like traffic to Prometheus. Recent requests count more: all numbers are halved now and
    then, and a name that has none left is forgotten.
    """

    __slots__ = ("_arrivals", "_make", "_most", "_seen", "other", "own")

    def __init__(self, most: int, make: Callable[[], T]) -> None:
        self._most = most
        self._make = make
        self._seen: dict[str, int] = {}
        self._arrivals = 0
        self.own: dict[str, T] = {}
        self.other = make()

    def arrived(self, name: str) -> T:
        """A request came for this name: the counts that it belongs to."""
        seen = self._seen
        asked = seen[name] = seen.get(name, 0) + 1
        self._arrivals += 1
        if self._arrivals >= _HALVE_AFTER:
            self._halve()
        mine = self.own.get(name)
        return self._first(name, asked) if mine is None else mine

    def of(self, name: str) -> T:
        """The counts that a name belongs to; asking changes nothing."""
        return self.own.get(name, self.other)

    def items(self) -> Iterator[tuple[str, T]]:
        """Each name with its counts, and those of all others; from any thread."""
        yield from self.own.copy().items()
        yield OTHER, self.other

    def _first(self, name: str, asked: int) -> T:
        own = self.own
        if name == OTHER:
            return self.other
        if len(own) >= self._most:
            least = min(own, key=lambda leader: self._seen.get(leader, 0))
            if asked <= _AHEAD * self._seen.get(least, 0) + 1:
                return self.other
            del own[least]
        mine = own[name] = self._make()
        return mine

    def _halve(self) -> None:
        self._arrivals = 0
        self._seen = {name: asked // 2 for name, asked in self._seen.items() if asked > 1}
