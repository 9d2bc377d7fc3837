"""ArrivalsSpec: when requests arrive."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from loratory.scenarios.schema_types import Count, NotNegative, OneOf, Positive, Section
from loratory.serving.workload import Floats

_BLOCK = 4096


class Gamma(Section):
    """A renewal process with gamma gaps: bursty above a CV of 1, Poisson at 1, smoother below."""

    rate: Positive = Field(description="mean rate, requests/s")
    cv: Positive = Field(description="coefficient of variation of the gaps")


class OnOff(Section):
    """Arrivals that alternate between two rates: a client that comes and goes."""

    on_s: Positive = Field(description="length of each busy phase, s; the run begins with one")
    off_s: Positive = Field(description="length of each quiet phase, s")
    rate_on: Positive = Field(description="rate while busy, requests/s")
    rate_off: NotNegative = Field(0.0, description="rate while quiet, requests/s")
    gaps: Literal["exponential", "equal"] = Field("exponential", description="Poisson arrivals, or evenly spaced ones")


class Diurnal(Section):
    """Poisson arrivals whose rate follows a cosine: lowest at the start unless ``peak_at_s`` moves the peak."""

    rate: Positive = Field(description="mean rate over a period, requests/s")
    peak: float = Field(1.8, ge=1, le=2, description="highest rate / mean rate; the lowest is (2 - peak) of the mean")
    period_s: Positive = Field(86400.0, description="length of a day, s")
    peak_at_s: NotNegative | None = Field(
        None, description="when the rate is highest, s; by default after half a period"
    )

    def rate_at(self, time: Floats) -> Floats:
        """Rate at each of ``time`` (s), requests/s."""
        peak_at = self.period_s / 2 if self.peak_at_s is None else self.peak_at_s
        wave = np.cos(2 * np.pi * (time - peak_at) / self.period_s)
        return self.rate * (1.0 + (self.peak - 1.0) * wave)


class ClosedLoop(Section):
    """A fixed number of clients, each sending its next request when its last one ended."""

    concurrency: Count = Field(description="number of clients")


class ArrivalsSpec(OneOf):
    """How requests arrive. A plain number means ``poisson``."""

    shorthand: ClassVar = {int: "poisson", float: "poisson"}

    poisson: Positive | None = Field(None, description="rate, requests/s; exponential gaps")
    gamma: Gamma | None = Field(None, description="{rate, cv}")
    constant: Positive | None = Field(None, description="rate, requests/s; equal gaps")
    on_off: OnOff | None = Field(None, description="{on_s, off_s, rate_on, rate_off, gaps}")
    diurnal: Diurnal | None = Field(None, description="{rate, peak, period_s, peak_at_s}")
    closed_loop: ClosedLoop | None = Field(None, description="{concurrency}")

    def draw(self, rng: np.random.Generator, requests: int | None, duration_s: float | None) -> Floats:
        """Arrival times from 0, s, in order: the first ``requests``, or all before ``duration_s``.

        A longer duration only adds arrivals at the end. In a closed loop all are 0. One of the two limits is required.
        """
        if self.closed_loop is not None:
            assert requests is not None
            return np.zeros(requests)
        if self.constant is not None:
            n = requests if requests is not None else int(np.ceil((duration_s or 0.0) * self.constant))
            times = np.arange(n) / self.constant
            return times if requests is not None else times[times < (duration_s or 0.0)]
        if self.poisson is not None:
            scale = 1.0 / self.poisson
            return _renewal(lambda n: rng.exponential(scale, n), requests, duration_s)
        if self.gamma is not None:
            shape, scale = 1.0 / self.gamma.cv**2, self.gamma.cv**2 / self.gamma.rate
            return _renewal(lambda n: rng.gamma(shape, scale, n), requests, duration_s)
        if self.on_off is not None:
            return _on_off(self.on_off, rng, requests, duration_s)
        assert self.diurnal is not None
        return _thinned(self.diurnal, rng, requests, duration_s)


def _renewal(gaps: Callable[[int], Floats], requests: int | None, duration_s: float | None) -> Floats:
    """Cumulated gaps, up to a number of requests or a time."""
    if requests is not None:
        return np.cumsum(gaps(requests))
    assert duration_s is not None
    drawn: list[Floats] = []
    # Block sizes do not depend on the duration, so that a longer run begins with the same arrivals as a shorter one.
    total, size = 0.0, _BLOCK
    while total < duration_s:
        drawn.append(gaps(size))
        total += float(drawn[-1].sum())
        size *= 2
    times = np.cumsum(np.concatenate(drawn)) if drawn else np.zeros(0)
    return times[: int(np.searchsorted(times, duration_s))]


def _on_off(spec: OnOff, rng: np.random.Generator, requests: int | None, duration_s: float | None) -> Floats:
    """A process of rate 1, Poisson or even, mapped through the inverse of the cumulated rate (time change)."""
    period = spec.on_s + spec.off_s
    on_area, area = spec.on_s * spec.rate_on, spec.on_s * spec.rate_on + spec.off_s * spec.rate_off

    def inverse(events: Floats) -> Floats:
        cycles = np.floor(events / area)
        rest = events - cycles * area
        quiet = (rest - on_area) / spec.rate_off if spec.rate_off > 0 else np.zeros_like(rest)
        return cycles * period + np.where(rest < on_area, rest / spec.rate_on, spec.on_s + np.maximum(quiet, 0.0))

    def unit(requests: int | None, until: float | None) -> Floats:
        if spec.gaps == "equal":
            return np.arange(requests if requests is not None else int(np.ceil(until or 0.0)), dtype=float)
        return _renewal(lambda n: rng.exponential(1.0, n), requests, until)

    if requests is not None:
        return np.maximum.accumulate(inverse(unit(requests, None)))
    assert duration_s is not None
    whole, rest = divmod(duration_s, period)
    top = whole * area + min(rest, spec.on_s) * spec.rate_on + max(rest - spec.on_s, 0.0) * spec.rate_off
    times = np.maximum.accumulate(inverse(unit(None, top)))
    return times[times < duration_s]


def _thinned(spec: Diurnal, rng: np.random.Generator, requests: int | None, duration_s: float | None) -> Floats:
    """Thinning of a Poisson process at the peak rate (Lewis and Shedler, Naval Research Logistics 26, 1979)."""
    top = spec.rate * spec.peak
    kept: list[Floats] = []
    now, count, size = 0.0, 0, _BLOCK
    while (requests is not None and count < requests) or (duration_s is not None and now < duration_s):
        times = now + np.cumsum(rng.exponential(1.0 / top, size))
        chosen = times[rng.random(size) * top < spec.rate_at(times)]
        kept.append(chosen)
        now, count = float(times[-1]), count + len(chosen)
        size *= 2
    times = np.concatenate(kept) if kept else np.zeros(0)
    return times[:requests] if requests is not None else times[: int(np.searchsorted(times, duration_s or 0.0))]
