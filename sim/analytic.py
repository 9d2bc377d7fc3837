"""Analytic twins: closed-form answers to what a simulation measures, for checks and quick estimates.

Nothing here touches the engine. A popularity is each adapter's share of requests, shape (adapters,), sum 1.
"""

from __future__ import annotations

import math

import numpy as np

from loratory.serving.workload import Floats


def zipf(count: int, exponent: float) -> Floats:
    """Popularity of ``count`` adapters where the i-th most popular has weight 1 / i^exponent."""
    weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    return np.asarray(weights / weights.sum())


def che_hit_rate(popularity: Floats, slots: int) -> float:
    """Share of requests that find their adapter in an LRU cache of ``slots``, at steady state.

    Che's approximation (Che, Tung and Wang, 2002; why it is good: Fricker, Robert and Roberts, 2012): an adapter stays
    for one characteristic time T after its last use, sum_i (1 - exp(-p_i T)) = slots, and i hits with 1 - exp(-p_i T).
    Requests are independent draws, and running ones pin no adapter, so that the least recently used one can always go:
    true where requests are short or slots many. 1 when every adapter asked for has a slot, 0 without slots.
    """
    asked = popularity[popularity > 0]
    if slots >= len(asked):
        return 1.0
    if slots <= 0:
        return 0.0
    low, high = 0.0, 1.0
    while -np.expm1(-asked * high).sum() < slots:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if -np.expm1(-asked * middle).sum() < slots else (low, middle)
    return float(asked @ -np.expm1(-asked * high))


def distinct_adapters(popularity: Floats, requests: float) -> float:
    """Mean number of distinct adapters among ``requests`` independent ones: sum_i 1 - (1 - p_i)^n."""
    with np.errstate(divide="ignore"):
        return float(-np.expm1(requests * np.log1p(-popularity)).sum())


def mean_in_system(throughput_per_s: float, mean_time_s: float) -> float:
    """Little's law (1961): the mean number in a stable system is throughput times mean time in it."""
    return throughput_per_s * mean_time_s


def md1_wait_s(rate_per_s: float, service_s: float) -> float:
    """Mean wait before service, s, of Poisson arrivals at one server with constant service (Pollaczek and Khinchine).

    rho S / (2 (1 - rho)) with rho = rate S; infinite from rho = 1 on.
    """
    load = rate_per_s * service_s
    return load * service_s / (2 * (1 - load)) if load < 1 else math.inf
