"""Segment: the step boundaries of an unchanged decoding batch, in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

from loratory.serving.plan import BatchShape
from loratory.sim.cost.base import DecodeLine


class Segment:
    """Boundary k is the end of the k-th decode step after ``start``.

    Stepping and jumping both take their times from here, so they agree to the last bit. With a `DecodeLine` the cost of
    a step is ``max(floor, intercept + slope * kv_tokens)`` and the KV tokens grow by the batch size a step, so a sum of
    steps is a quadratic; without one the boundaries are added up step by step and kept.
    """

    __slots__ = ("_a", "_ends", "_flat", "_floor", "_half", "_shape", "_step_seconds", "start")

    def __init__(
        self, start: float, shape: BatchShape, line: DecodeLine | None, step_seconds: Callable[[BatchShape], float]
    ) -> None:
        self.start = start
        self._shape = shape
        self._step_seconds = step_seconds
        self._ends: list[float] | None = None
        if line is None:
            self._ends = [0.0]
            return
        slope = line.slope_s_per_token
        self._floor = line.floor_s
        self._a = line.intercept_s + slope * shape.kv_tokens
        growth = slope * shape.decode_seqs
        self._half = growth * 0.5
        self._flat = 0
        if self._a < self._floor:
            self._flat = math.ceil((self._floor - self._a) / growth) if growth > 0 else 1 << 60

    def time(self, k: int) -> float:
        """Absolute second at which step k ends; ``time(0)`` is the start."""
        if self._ends is not None:
            return self.start + self._elapsed(k, self._ends)
        flat = self._flat
        if not flat:
            return self.start + k * (self._a + self._half * (k - 1))
        if k <= flat:
            return self.start + k * self._floor
        return self.start + flat * self._floor + (k - flat) * (self._a + self._half * (k + flat - 1))

    def _elapsed(self, k: int, ends: list[float]) -> float:
        shape = self._shape
        while len(ends) <= k:
            grown = shape._replace(kv_tokens=shape.kv_tokens + shape.decode_seqs * (len(ends) - 1))
            ends.append(ends[-1] + self._step_seconds(grown))
        return ends[k]

    def first_at_or_after(self, time: float, low: int, high: int) -> int:
        """The first boundary in low..high that is at or after ``time``; ``high`` if none before it is.

        For a line the quadratic gives a first guess and the boundaries themselves decide.
        """
        if self.time(low) >= time:
            return low
        if self._ends is None and not self._flat:
            start, a, half = self.start, self._a, self._half
            b, c = a - half, time - start
            root = math.sqrt(b * b + 4.0 * half * c)
            middle = int(2.0 * c / (b + root)) if b + root > 0 else high
            if middle > high:
                middle = high
            elif middle < low:
                middle = low
            while (
                middle > low and start + (middle - 1) * (a + half * (middle - 2)) >= time
            ):  # `time`, without the calls
                middle -= 1
            while middle < high and start + middle * (a + half * (middle - 1)) < time:
                middle += 1
            return middle
        while low < high:
            middle = (low + high) // 2
            if self.time(middle) >= time:
                high = middle
            else:
                low = middle + 1
        return low
