"""RecentRequests: how many requests there were lately for each adapter."""

from __future__ import annotations

from collections import deque

_PARTS = 6


class RecentRequests:
    """Counts arrivals of the last ``window_s`` seconds, in parts, so that none is kept for its own sake."""

    def __init__(self, window_s: float) -> None:
        self._part_s = window_s / _PARTS
        self._parts: deque[tuple[int, dict[str, int]]] = deque(maxlen=_PARTS)

    def arrived(self, adapter: str | None, now: float) -> None:
        """A request arrived at second ``now``; those for the base model are not counted."""
        if adapter is None:
            return
        number = int(now // self._part_s)
        if not self._parts or self._parts[-1][0] != number:
            self._parts.append((number, {}))
        counts = self._parts[-1][1]
        counts[adapter] = counts.get(adapter, 0) + 1

    def counts(self, now: float) -> dict[str, int]:
        """Requests of each adapter that had any in the window that ends at second ``now``."""
        first = int(now // self._part_s) - _PARTS
        total: dict[str, int] = {}
        for number, counts in self._parts:
            if number > first:
                for adapter, count in counts.items():
                    total[adapter] = total.get(adapter, 0) + count
        return total

    def rates(self, now: float) -> dict[str, float]:
        """Requests/s of each adapter in the window."""
        first = max(0, int(now // self._part_s) - _PARTS + 1)
        span = now - first * self._part_s
        return {adapter: count / span for adapter, count in self.counts(now).items()} if span > 0.0 else {}

    def hottest(self, most: int, now: float) -> list[str]:
        """The adapters with the most requests in the window, the first by name where they are equal."""
        counts = self.counts(now)
        return sorted(counts, key=lambda adapter: (-counts[adapter], adapter))[:most]
