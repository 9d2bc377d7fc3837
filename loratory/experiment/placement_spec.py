"""Placement spec: a placement by its name, and what it decides from: requests to come, what replicas can serve."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

import loratory.sim.placements
from loratory.errors import InputError, did_you_mean
from loratory.experiment.class_spec import Description, Parameter, described
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
    return None if name == ALL else partial(_class_of(name, f"cluster.placement {name!r}"), most)


def describe_placement(name: str) -> Description:
    """What a placement does, from its docstring, and the keys it takes. Raises `InputError` for an unknown name."""
    if name == ALL:
        text = "Every replica may serve every adapter. It is the default, and the same as no placement."
        return Description(ALL, "every replica may serve every adapter (the default)", text, "", "", ())
    kind = _class_of(name, f"placement {name!r}")
    keys = ((key, PlacementSpec.model_fields[key]) for key in ("homes", "every_s"))
    types, without = {"homes": "whole number", "every_s": "number"}, {"homes": "no limit", "every_s": "once"}
    parameters = (
        Parameter(key, types[key], field.default, str(field.description), without[key]) for key, field in keys
    )
    return replace(described(name, kind, kind.source)[0], parameters=tuple(parameters))


def _class_of(name: str, subject: str) -> type[Placement]:
    if name not in placement_names():
        hint = did_you_mean(name, placement_names(), f"choose one of {', '.join(placement_names())}")
        raise InputError(f"{subject} is unknown: {hint}")
    module = importlib.import_module(f"loratory.sim.placements.{name}")
    classes = (value for value in vars(module).values() if inspect.isclass(value) and issubclass(value, Placement))
    return next(each for each in classes if each.__module__ == module.__name__)


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
