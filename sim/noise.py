"""Noise: how real step times scatter around a cost model's and stall, drawn for one replica of one run."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log1p, sqrt

import numpy as np

from loratory.serving.compiling import mypyc_attr

CHUNK = 4096
"""Steps whose noise is drawn at once."""

BLOCK = 64
"""Successive residuals that are drawn together: a slow moment of a machine lasts for many steps."""

_MANY = 500.0
"""Mean number of stalls in one step above which their number is no longer drawn."""


@mypyc_attr(native_class=False)
@dataclass(frozen=True, slots=True)
class NoiseOptions:
    """What is drawn. All but the stalls keep the mean step time as it is.

    ``cv``: coefficient of variation (standard deviation over mean) of a step's time; lognormal, each step apart.
    ``run_cv``: the same of one factor on all steps of a run, for a cost model whose level may be off. Stalls begin at
    ``stall_rate_hz`` while steps run (Poisson) and last ``stall_s`` each: steps take 1 + stall_rate_hz * stall_s times
    as long on average. ``decode`` and ``prefill``: measured seconds over predicted ones, in the order of measurement,
    of steps that only decode and of those with prompt tokens; in place of ``cv``.
    """

    cv: float = 0.0
    run_cv: float = 0.0
    stall_rate_hz: float = 0.0
    stall_s: float = 0.0
    decode: tuple[float, ...] = ()
    prefill: tuple[float, ...] = ()


def level_of(options: NoiseOptions, rng: np.random.Generator) -> float:
    """The factor on all steps of a run: lognormal with mean 1 and coefficient of variation ``run_cv``."""
    return float(_lognormal(rng, options.run_cv, 1)[0]) if options.run_cv else 1.0


@mypyc_attr(serializable=True, allow_interpreted_subclasses=True)
class StepNoise:
    """The noise of one replica's steps, by the number of the step.

    Whatever a simulation jumps over or looks ahead to, step n has the same noise. So the same steps take the same time
    with jumps and without, and two policies with one seed meet the same noise, step by step.

    Residuals are drawn as a circular block bootstrap (Politis and Romano 1992): `BLOCK` successive ones from a random
    place on, which keeps slow moments together. Each is as likely as any other, and the mean of all is scaled to 1.
    """

    def __init__(self, options: NoiseOptions, rng: np.random.Generator, level: float = 1.0) -> None:
        self.taken = 0
        """Steps that have been run."""
        self._options = options
        self._rng = rng
        self._level = level
        self._rate, self._stall_s = options.stall_rate_hz, options.stall_s
        pools = (options.decode or options.prefill, options.prefill or options.decode)
        self._pools = [np.array(pool) / np.mean(pool) for pool in pools] if pools[0] else []
        self._decode: list[float] = []
        self._prefill: list[float] = []
        self._uniform: list[float] = []
        self._begin = 0
        self._end = 0

    def decode_seconds(self, number: int, seconds: float) -> float:
        """What step ``number`` takes (counted from 0, not below `taken`), a decode step of ``seconds`` by the model."""
        if number >= self._end:
            self._draw()
        return self._stalled(number, seconds * self._decode[number - self._begin])

    def prefill_seconds(self, seconds: float) -> float:
        """What the next step takes, one with prompt tokens of ``seconds`` by the model; it counts as taken."""
        number = self.taken
        if number >= self._end:
            self._draw()
        self.taken = number + 1
        return self._stalled(number, seconds * self._prefill[number - self._begin])

    def _stalled(self, number: int, seconds: float) -> float:
        mean = self._rate * seconds
        if not mean:
            return seconds
        uniform = self._uniform[number - self._begin]
        return seconds if uniform < 1.0 - mean else seconds + self._stall_s * _poisson(uniform, mean)

    def _draw(self) -> None:
        """The next `CHUNK` steps; those before `taken` are dropped."""
        over = self.taken - self._begin
        for drawn in (self._decode, self._prefill, self._uniform):
            del drawn[:over]
        self._begin = self.taken
        rng, options = self._rng, self._options
        if self._pools:
            places = rng.random(CHUNK // BLOCK)
            for drawn, pool in zip((self._decode, self._prefill), self._pools, strict=True):
                first = (places * len(pool)).astype(np.int64)
                found = pool[(first[:, None] + np.arange(BLOCK)) % len(pool)]
                drawn += (self._level * found.ravel()).tolist()
        else:
            factors = (self._level * _lognormal(rng, options.cv, CHUNK)).tolist()
            self._decode += factors
            self._prefill += factors
        if self._rate:
            self._uniform += rng.random(CHUNK).tolist()
        self._end += CHUNK


def _lognormal(rng: np.random.Generator, cv: float, count: int) -> np.ndarray:
    """Factors with mean 1 and this coefficient of variation."""
    variance = log1p(cv * cv)
    return rng.lognormal(-variance / 2, sqrt(variance), count)


def _poisson(uniform: float, mean: float) -> int:
    """The number of events at quantile ``uniform`` of a Poisson distribution."""
    if mean > _MANY:
        return round(mean)
    number, share = 0, exp(-mean)
    below = share
    while uniform >= below and share > 0.0:
        number += 1
        share *= mean / number
        below += share
    return number
