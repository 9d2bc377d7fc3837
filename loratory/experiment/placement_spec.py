"""Placement spec: a placement by its name, and what it decides from: requests to come, what replicas can serve."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

import loratory.sim.placements
from loratory.errors import InputError, did_you_mean
from loratory.scenarios.fleet_spec import PlacementSpec
from loratory.serving.workload import Workload
from loratory.sim.placement import Placement, PlacementOptions

ALL = "replicate_all"
"""No placement: every adapter may be served anywhere."""


def placement_names() -> list[str]:
    """Names of the placements."""
    return sorted([ALL, *(module.name for module in pkgutil.iter_modules(loratory.sim.placements.__path__))])


def placement_factory(name: str, most: int | None = None) -> Callable[[], Placement] | None:
    """Each call of the result makes a placement; None for `ALL`. Raises `InputError` for an unknown name."""
    if name == ALL:
        return None
    if name not in placement_names():
        hint = did_you_mean(name, placement_names(), f"choose one of {', '.join(placement_names())}")
        raise InputError(f"cluster.placement {name!r} is unknown: {hint}")
    module = importlib.import_module(f"loratory.sim.placements.{name}")
    classes = (value for value in vars(module).values() if inspect.isclass(value) and issubclass(value, Placement))
    return partial(next(each for each in classes if each.__module__ == module.__name__), most)


def placement_options(
    spec: PlacementSpec | None, workload: Workload, capacities: Sequence[float]
) -> PlacementOptions | None:
    """None without a placement. ``capacities``: output tokens/s that each replica can serve at most.

    Expected are the requests of the workload itself; in a closed loop, as many as all replicas can serve.
    """
    make = None if spec is None else placement_factory(spec.name, spec.homes)
    if spec is None or make is None:
        return None
    served = np.minimum(capacities, 1.0e12) / float(workload.output_tokens.mean())
    counts = np.bincount(workload.adapter[workload.adapter >= 0], minlength=len(workload.adapters))
    span = float(workload.arrival[-1]) if workload.concurrency is None else 0.0
    per_s = 1.0 / span if span > 0.0 else float(served.sum()) / len(workload)
    rates = {name: count * per_s for name, count in zip(workload.adapters, counts.tolist(), strict=True) if count}
    return PlacementOptions(make, rates, tuple(served.tolist()), spec.every_s)
