"""Arrivals: which request of a workload is due next, and when, where requests follow the ends of others."""

from __future__ import annotations

from heapq import heappop, heappush
from math import inf

import numpy as np

from loratory.serving.workload import Workload


class Arrivals:
    """The requests of a workload with turns, in the order in which they are due; at one second, by their number.

        open arrivals   a session begins at its own time
        closed loop     ``concurrency`` clients, each playing one session after the other
        turn            ``delay_s`` after the turn before it ended, however that ended
        bounded         a session that finds ``max_outstanding`` requests open begins when one of them has ended

    A backend takes the requests that are due with `pop`, and reports every end with `ended`. ``time_scale`` divides
    times and delays.
    """

    def __init__(self, workload: Workload, time_scale: float = 1.0) -> None:
        assert workload.after is not None and workload.delay_s is not None
        self._follower: dict[int, tuple[int, float]] = {}
        turns = np.flatnonzero(workload.after >= 0)
        delays = (workload.delay_s[turns] / time_scale).tolist()
        for turn, before, delay in zip(turns.tolist(), workload.after[turns].tolist(), delays, strict=True):
            self._follower[before] = (turn, delay)
        starts = np.flatnonzero(workload.after < 0)
        self._starts: list[int] = starts.tolist()
        self._times: list[float] = [*(workload.arrival[starts] / time_scale).tolist(), inf]
        self._place = 0
        self._due: list[tuple[float, int]] = []
        self._closed = workload.concurrency is not None
        self._most = inf if workload.max_outstanding is None else workload.max_outstanding
        self._open = 0
        self._room_at = 0.0
        """When the last request ended that left room for one more: no session that waits for room begins before."""
        if workload.concurrency is not None:
            self._times = [inf] * (len(self._starts) + 1)
            for _ in range(workload.concurrency):
                self._begin(0.0)

    @property
    def next_at(self) -> float:
        """Absolute second at which the next request is due; inf when none is until another ends."""
        start = self._next_start()
        return self._due[0][0] if self._due and self._due[0][0] < start else start

    def _next_start(self) -> float:
        """When the next session begins; inf while there is no room for it."""
        start = self._times[self._place]
        if self._open >= self._most:
            return inf
        return start if start > self._room_at else self._room_at

    @property
    def starts_at(self) -> list[float]:
        """The seconds at which sessions begin, in order; none in a closed loop, where clients begin them."""
        return [] if self._closed else self._times[:-1]

    def pop(self) -> tuple[int, float]:
        """The next request and the second at which it is due."""
        start = self._next_start()
        self._open += 1
        if self._due and self._due[0] < (start, self._starts[self._place] if start < inf else 0):
            at, index = heappop(self._due)
            return index, at
        self._place += 1
        return self._starts[self._place - 1], start

    def ended(self, index: int, now: float) -> float | None:
        """A request ended at second ``now``; returns when the one that follows it is due, or None if none does."""
        turn = self._follower.pop(index, None)
        self._open -= 1
        if self._open == self._most - 1:
            self._room_at = now
        if turn is None:
            if self._closed:
                return self._begin(now)
            return now if self._room_at == now and self._times[self._place] <= now else None
        at = now + turn[1]
        heappush(self._due, (at, turn[0]))
        return at

    def _begin(self, now: float) -> float | None:
        """In a closed loop, a client begins its next session."""
        if self._place == len(self._starts):
            return None
        heappush(self._due, (now, self._starts[self._place]))
        self._place += 1
        return now
