"""fit: turns measured steps into a Profile, and evaluates one on steps it has not seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from loratory.errors import InputError
from loratory.serving.plan import BatchShape
from loratory.sim.cost.nnls import nnls
from loratory.sim.cost.profile import (
    CAPPED,
    FEATURES,
    RANGED,
    HeldOut,
    LoadTime,
    Profile,
    ProfileCost,
    Residuals,
    feature_values,
)

KNOTS: tuple[int, ...] = (16, 64, 256, 1024)
"""Token counts where the default fit lets the cost of a token increase: from memory-bound to compute-bound GEMMs."""

FEWEST = 8
"""Steps without which there is nothing to fit."""

Samples = Iterable[tuple[BatchShape, float]]


def fit(
    samples: Samples,
    *,
    name: str = "fit",
    model: str = "",
    features: Sequence[str] = FEATURES,
    knots: Sequence[int] = KNOTS,
    caps: Mapping[str, Sequence[int]] | None = None,
    hold_out_every: int = 5,
    machine: dict[str, str | int | float] | None = None,
    versions: dict[str, str] | None = None,
    noise: float | None = None,
    load: LoadTime | None = None,
    disk: LoadTime | None = None,
) -> Profile:
    """A profile from ``samples`` of (shape, measured seconds): non-negative least squares on relative errors.

    Rows are weighted by 1/seconds, so a 10 % error counts alike in short and long steps. Every ``hold_out_every``-th
    sample is left out to measure ``held_out`` errors; the coefficients then come from all samples. 0 holds out none.
    ``knots``: N of the ``tokens_above_N``; ``caps``: for fields in `loratory.sim.cost.profile.CAPPED`, N of
    ``FIELD_to_N``. Raises `InputError` for fewer than `FEWEST` samples, a time that is not positive, or an unknown
    feature or field.
    """
    rows = [(shape, float(seconds)) for shape, seconds in samples]
    if len(rows) < FEWEST:
        raise InputError(f"{len(rows)} steps are too few to fit a profile: measure at least {FEWEST}, better 40 to 80")
    bad = next((s for _, s in rows if not 0 < s < float("inf")), None)
    if bad is not None:
        raise InputError(f"a measured step took {bad} s: step times are above 0, so drop that row")
    above = [f"tokens_above_{knot}" for knot in sorted(knots)]
    bent = (*above, *(f"{field}_to_{cap}" for field, most in (caps or {}).items() for cap in sorted(most)))
    names = [*features, *bent]
    unknown = [f for f in features if f not in FEATURES]
    if unknown:
        raise InputError(f"unknown feature {unknown[0]!r}: use some of {', '.join(FEATURES)}")
    uncapped = [field for field in caps or {} if field not in CAPPED]
    if uncapped:
        raise InputError(f"caps of {uncapped[0]!r}: fields that may have them are {', '.join(CAPPED)}")
    table = [feature_values(shape, bent) for shape, _ in rows]
    matrix = np.array([[values[f] for f in names] for values in table])
    seconds = np.array([s for _, s in rows])
    held_out = HeldOut()
    if hold_out_every > 1:
        test = np.arange(len(rows)) % hold_out_every == hold_out_every - 1
        held_out = _errors(matrix[test] @ _solve(matrix[~test], seconds[~test]), seconds[test])
    solution = _solve(matrix, seconds)
    return Profile(
        name=name,
        model=model,
        machine=machine or {},
        versions=versions or {},
        samples=len(rows),
        coefficients={f: float(value) for f, value in zip(names, solution, strict=True) if value > 0},
        ranges={field: float(max(getattr(shape, field) for shape, _ in rows)) for field in RANGED},
        held_out=held_out,
        noise=noise,
        load=load or LoadTime(),
        disk=disk,
    )


def caps_within(shapes: Iterable[BatchShape], caps: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Those N of ``FIELD_to_N`` that are at most half of the largest FIELD in ``shapes``.

    ``FIELD_to_N`` terms make the cost of a field concave: each further one costs no more than the one before. With an N
    near the largest value the last slope would rest on few steps, and beyond it a profile would say that more costs
    nothing.
    """
    seen = list(shapes)
    largest = {field: max((getattr(shape, field) for shape in seen), default=0) for field in caps}
    return {field: tuple(n for n in most if 2 * n <= largest[field]) for field, most in caps.items()}


def residuals_of(profile: Profile, samples: Samples) -> Residuals:
    """What ``cost: {noise: residuals}`` draws from: how ``samples``, in order, scatter around ``profile``."""
    cost = ProfileCost(profile)
    decode: list[float] = []
    prefill: list[float] = []
    for shape, seconds in samples:
        found = prefill if shape.prefill_tokens else decode
        found.append(float(f"{seconds / cost.step_seconds(shape):.4g}"))
    return Residuals(decode=tuple(decode), prefill=tuple(prefill))


def evaluate(profile: Profile, samples: Samples) -> HeldOut:
    """Errors of ``profile`` on ``samples`` of (shape, measured seconds)."""
    cost = ProfileCost(profile)
    rows = list(samples)
    predicted = np.array([cost.step_seconds(shape) for shape, _ in rows])
    return _errors(predicted, np.array([seconds for _, seconds in rows]))


def _solve(matrix: NDArray[np.float64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    return nnls(matrix / seconds[:, None], np.ones(len(seconds)))


def _errors(predicted: NDArray[np.float64], measured: NDArray[np.float64]) -> HeldOut:
    relative = np.abs(predicted - measured) / measured
    return HeldOut(
        samples=len(measured),
        median=float(np.median(relative)),
        p90=float(np.quantile(relative, 0.9)),
        total=float(predicted.sum() / measured.sum() - 1.0),
    )
