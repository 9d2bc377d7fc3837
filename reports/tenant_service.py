"""Tenant service: the service tenants got over time, Jain's index, and the service gap between backlogged tenants."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loratory.serving.workload import Floats, Ints

OUTPUT_WEIGHT = 2.0
"""An output token counts as two prompt tokens (Sheng et al., OSDI 2024, section 5.1)."""

LARGEST_TENANTS = 32
"""Most tenants in the gap's pairs: those with the largest demand."""

_EXACT_POINTS = 4_096
_GRID_POINTS = 4_096


@dataclass(frozen=True, slots=True)
class Demand:
    """Requests as arrays, one entry each. ``admitted`` and ``first`` are NaN if they never happened; seconds."""

    tenant: Ints
    arrival: Floats
    admitted: Floats
    first: Floats
    finish: Floats
    prompt: Floats
    output: Floats

    def of(self, tenant: int) -> Demand:
        """The requests of one tenant."""
        mine = self.tenant == tenant
        return Demand(*(getattr(self, name)[mine] for name in self.__slots__))


def service_of(demand: Demand) -> Floats:
    """Service of each request, weighted tokens: its prompt once it had a first token, and twice its output tokens."""
    return np.where(np.isnan(demand.first), 0.0, demand.prompt + OUTPUT_WEIGHT * demand.output)


def jain(service: Floats) -> float | None:
    """Jain's index (sum x)^2 / (n sum x^2) of non-negative values, in (0, 1]; None if all are 0 or there are none."""
    top = float(service.max()) if len(service) else 0.0
    if top <= 0:
        return None
    scaled = service / top
    return float(min(1.0, scaled.sum() ** 2 / (len(scaled) * (scaled**2).sum())))


def service_curve(demand: Demand, times: Floats) -> Floats:
    """Cumulative service at ``times`` (ascending), weighted tokens.

    A request's prompt and first output token count at its first token; the others evenly from there to its end.
    """
    served = ~np.isnan(demand.first)
    first, finish = demand.first[served], demand.finish[served]
    rest = OUTPUT_WEIGHT * np.maximum(demand.output[served] - 1, 0.0)
    at_once = demand.prompt[served] + OUTPUT_WEIGHT * np.minimum(demand.output[served], 1.0)
    span = finish - first
    flat = span <= 0
    at_once = at_once + np.where(flat, rest, 0.0)
    rate = np.where(flat, 0.0, rest / np.where(flat, 1.0, span))
    origin = times[0] if len(times) else 0.0
    total = _summed(first, at_once, times)
    for edge, sign in ((first, 1.0), (finish, -1.0)):
        slope = _summed(edge, rate, times)
        total = total + sign * (slope * (times - origin) - _summed(edge, rate * (edge - origin), times))
    return np.asarray(total, np.float64)


def service_gap(demand: Demand, weights: Floats) -> tuple[Floats, Floats]:
    """(times, gap): at each time, the largest service gap between two backlogged tenants, in tokens over weight.

    The gap of tenants f and g at t is how far their weighted services have diverged, up or down, since any moment
    from which both continuously had a request waiting (arrived, not admitted) until t. Its maximum over time is
    max |W_f(t1, t2) - W_g(t1, t2)| over all windows in which both stay backlogged. It is exact (computed at every
    time at which a service curve bends) up to about 4,000 such times, else on an even grid of 4,096 points, which can
    miss a difference within one cell.
    """
    tenants = len(weights)
    size = np.bincount(demand.tenant, demand.prompt + OUTPUT_WEIGHT * demand.output, tenants)
    largest = np.argsort(-size, kind="stable")[:LARGEST_TENANTS]
    largest = largest[size[largest] > 0]
    times = _grid(demand)
    gap = np.zeros(len(times))
    if len(times) < 2 or tenants < 2:
        return times, gap
    parts = [demand.of(int(tenant)) for tenant in largest]
    backlog = [_backlog(part, times) for part in parts]
    curves = [service_curve(part, times) / weights[tenant] for part, tenant in zip(parts, largest, strict=True)]
    for f in range(len(parts)):
        for g in range(f + 1, len(parts)):
            both = np.flatnonzero((backlog[f] >= 0) & (backlog[g] >= 0))
            if len(both) > 1:
                window = np.flatnonzero(np.diff(backlog[f][both], prepend=-1) | np.diff(backlog[g][both], prepend=-1))
                drift = _drift(curves[f][both] - curves[g][both], window)
                gap[both] = np.maximum(gap[both], drift)
    return times, gap


def _summed(edges: Floats, amounts: Floats, times: Floats) -> Floats:
    """Sum of the ``amounts`` whose edge is at or before each time."""
    order = np.argsort(edges, kind="stable")
    sums = np.concatenate(([0.0], np.cumsum(amounts[order])))
    return np.asarray(sums[np.searchsorted(edges[order], times, side="right")], np.float64)


def _grid(demand: Demand) -> Floats:
    bends = np.concatenate((demand.arrival, demand.admitted, demand.first, demand.finish))
    bends = np.unique(bends[~np.isnan(bends)])
    if len(bends) <= _EXACT_POINTS:
        return np.unique(np.concatenate((bends, np.nextafter(bends, -np.inf))))
    return np.linspace(bends[0], bends[-1], _GRID_POINTS)


def _backlog(demand: Demand, times: Floats) -> Ints:
    """For each time, the number of the tenant's backlogged interval it lies in, or -1."""
    until = np.where(np.isnan(demand.admitted), demand.finish, demand.admitted)
    order = np.argsort(demand.arrival, kind="stable")
    start, end = demand.arrival[order], np.maximum.accumulate(until[order])
    opens = np.ones(len(start), bool)
    opens[1:] = start[1:] > end[:-1]
    first = np.flatnonzero(opens)
    starts, ends = start[first], end[np.append(first[1:], len(start)) - 1]
    place = np.searchsorted(starts, times, side="right") - 1
    inside = (place >= 0) & (times < ends[np.maximum(place, 0)])
    return np.where(inside, place, -1)


def _drift(difference: Floats, window: Ints) -> Floats:
    """Distance of each value to the lowest or highest before it in its window; windows start at the given places.

    Each window is shifted above those before it, so that one running maximum over all values restarts in each window.
    """
    lift = np.zeros(len(difference))
    spread = float(difference.max() - difference.min()) + 1.0
    lift[window[1:]] = spread
    lift = np.cumsum(lift)
    above, below = difference + lift, difference - lift
    return np.maximum(below - np.minimum.accumulate(below), np.maximum.accumulate(above) - above)
