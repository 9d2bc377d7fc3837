"""Segment: the step boundaries of an unchanged decoding batch, in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

from loratory.serving.plan import BatchShape
from loratory.sim.cost.base import DecodeLine
from loratory.sim.noise import StepNoise


class Segment:
    """Boundary k is the end of the k-th decode step after ``start``.

    Stepping and jumping both take their times from here, so they agree to the last bit. With a `DecodeLine` a step
    takes ``max(floor, intercept + slope * kv_tokens)`` seconds, and each step reads one more token of each sequence, so
    that it takes ``growth`` seconds longer than the one before, once it is above the floor:

        boundary      0   1   2   3    4     5      6       7          ``flat`` = 3 steps at the floor, then
        start         |---|---|---|----|-----|------|-------|          a + 3 growth, a + 4 growth, ... seconds

        time(k) = start + k a + growth (0 + 1 + ... + (k - 1)) = start + k (a + growth / 2 (k - 1))     if flat is 0

    Without a line, and with noise, the boundaries are added up step by step and kept. Step k then has the noise of the
    k-th step from now on, so a segment that is cut short leaves the noise of the steps that it did not run to others.
    """

    __slots__ = (
        "_a", "_ends", "_first", "_flat", "_floor", "_half", "_line", "_noise", "_shape", "_step_seconds", "start",
    )  # fmt: skip

    def __init__(
        self,
        start: float,
        shape: BatchShape,
        line: DecodeLine | None,
        step_seconds: Callable[[BatchShape], float],
        noise: StepNoise | None = None,
    ) -> None:
        self.start = start
        self._shape = shape
        self._step_seconds = step_seconds
        self._noise = noise
        self._ends: list[float] | None = None
        if line is None or noise is not None:
            self._ends = [0.0]
            self._line = line
            self._first = 0 if noise is None else noise.taken
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
        """The absolute second of boundary k."""
        if self._ends is not None:
            return self.start + self._elapsed(k, self._ends)
        flat = self._flat
        if not flat:
            return self.start + k * (self._a + self._half * (k - 1))
        if k <= flat:
            return self.start + k * self._floor
        return self.start + flat * self._floor + (k - flat) * (self._a + self._half * (k + flat - 1))

    def _elapsed(self, k: int, ends: list[float]) -> float:
        shape, line, noise = self._shape, self._line, self._noise
        while len(ends) <= k:
            done = len(ends) - 1
            kv_tokens = shape.kv_tokens + shape.decode_seqs * done
            seconds = (
                self._step_seconds(shape._replace(kv_tokens=kv_tokens)) if line is None else line.seconds(kv_tokens)
            )
            if noise is not None:
                seconds = noise.decode_seconds(self._first + done, seconds)
            ends.append(ends[-1] + seconds)
        return ends[k]

    def first_at_or_after(self, time: float, low: int, high: int) -> int:
        """The first boundary in low..high that is at or after ``time``; ``high`` if none before it is.

        Where ``time(k)`` is one quadratic in k, its root is a first guess: it may be off by rounding, so the boundaries
        on both sides of it decide. Boundaries that are added up are looked at in order, so that none is added in vain.
        Else the boundary is found by bisection.
        """
        if self.time(low) >= time:
            return low
        if self._ends is not None:
            while low < high and self.time(low) < time:
                low += 1
            return low
        if not self._flat:
            start, a, half = self.start, self._a, self._half
            b, c = a - half, time - start  # half k² + b k = c, whose root in this form holds for half = 0, too
            root = math.sqrt(b * b + 4.0 * half * c)
            middle = int(2.0 * c / (b + root)) if b + root > 0 else high
            if middle > high:
                middle = high
            elif middle < low:
                middle = low
            # these two conditions are time(middle - 1) >= time and time(middle) < time, without the calls
            while middle > low and start + (middle - 1) * (a + half * (middle - 2)) >= time:
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
