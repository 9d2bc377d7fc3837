"""The profiles of vLLM 0.32 on a CPU: one from the steps of the run `below` alone, one from both runs.

    python -m loratory.reproduce.fit.vllm032 [scenarios/profiles]

The first is for the prediction of `near`. The second, for everybody else, knows batches of up to 15 sequences, not 7.
With it no run is left to test it on; every fifth step is held out of the fit, as always.
A step's seconds are counted from the end of the step before (or, if the engine was idle, from the arrival that woke it)
to its own end, so the work of vLLM between steps, receiving requests and scheduling, is part of its cost. The files do
not state which adapters a step had or loaded; the replay of the run does (it agrees with every recorded step).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from loratory.reproduce.vllm032_runs import RecordedRun, RunName, recorded, replayed
from loratory.serving.plan import BatchShape
from loratory.sim.cost.fit import fit, residuals_of
from loratory.sim.cost.nnls import nnls
from loratory.sim.cost.profile import FEATURES, LoadTime, Profile, feature_values


@dataclass(frozen=True, slots=True)
class Step:
    """A measured step: its shape, its seconds, and the adapters it loaded: all, and those of them from disk."""

    shape: BatchShape
    seconds: float
    loads: int
    from_disk: int


@dataclass(frozen=True, slots=True)
class Fitted:
    """The profile (its ``load`` is a slot load from host memory), and the seconds from disk to there."""

    profile: Profile
    disk_s: float


def measured_steps(run: RecordedRun) -> list[Step]:
    """Every step of a run as `Step`."""
    steps: list[Step] = []
    before, requests = 0.0, run.recording.requests
    taken_in = 0
    for (start_s, end_s, *_), played in zip(run.recording.steps, replayed(run)[0], strict=True):
        new = taken_in
        while new < len(requests) and requests[new].arrival <= start_s:
            new += 1
        fresh = played.shape.decode_seqs == 0 and new > taken_in and run.arrival_s[taken_in] > before
        begin = run.arrival_s[taken_in] if fresh else before
        taken_in, before = new, end_s
        from_disk = sum(load.tier == "disk" for load in played.loads)
        steps.append(Step(played.shape, end_s - begin, len(played.loads), from_disk))
    return steps


Shipped = Literal["vllm-0.32-cpu-56m-below", "vllm-0.32-cpu-56m"]
"""The profiles that come with Loratory."""

_FITS: dict[Shipped, tuple[tuple[RunName, ...], dict[str, tuple[int, ...]]]] = {
    "vllm-0.32-cpu-56m-below": (("below",), {}),
    "vllm-0.32-cpu-56m": (("below", "near"), {"decode_seqs": (2, 4, 8)}),
}
"""The runs behind each, and the number of sequences up to which each may cost more than those after it.

`below` has one slope. Its slopes for 1 to 7 sequences, where the last rests on few steps, are 3 to 5 % too low for
`near` (sum of its steps).
"""


def fitted(name: Shipped = "vllm-0.32-cpu-56m-below") -> Fitted:
    """Fit first the two kinds of load together with all features, then the profile without the loads.

    No knots: they are where a GPU turns from memory-bound to compute-bound. Constants are rounded to six digits, so
    that another machine's linear algebra writes the same file.
    """
    names, caps = _FITS[name]
    steps = [step for run in names for step in measured_steps(recorded(run))]
    slot_s, disk_s = load_times(steps, caps)
    computed = [(step.shape, step.seconds - step.loads * slot_s - step.from_disk * disk_s) for step in steps]
    profile = fit(
        computed,
        name=name,
        model="Llama, 56M parameters, bf16",
        features=FEATURES,
        knots=(),
        caps=caps,
        machine={"cores": 2, "device": "cpu"},
        versions={"vllm": "0.32"},
        load=LoadTime(fixed_s=slot_s),
    )
    held_out = profile.held_out
    errors = {key: _rounded(getattr(held_out, key)) for key in ("median", "p90", "total")}
    coefficients = {feature: _rounded(value) for feature, value in profile.coefficients.items()}
    rounded = profile.model_copy(
        update={"coefficients": coefficients, "held_out": held_out.model_copy(update=errors)},
    )
    return Fitted(rounded.model_copy(update={"residuals": residuals_of(rounded, computed)}), disk_s)


def load_times(steps: list[Step], caps: Mapping[str, Sequence[int]]) -> tuple[float, float]:
    """Seconds of a load to a slot, and from disk to host memory, fitted together with all features of a step."""
    bent = tuple(f"{field}_to_{most}" for field, every in caps.items() for most in every)
    table = [[*feature_values(step.shape, bent).values(), step.loads, step.from_disk] for step in steps]
    seconds = np.array([step.seconds for step in steps])
    *_, slot_s, disk_s = nnls(np.array(table) / seconds[:, None], np.ones(len(steps))).tolist()
    return _rounded(slot_s), _rounded(disk_s)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def main() -> None:
    """Print the constants; write the profiles into the folder that an argument names."""
    for name in _FITS:
        found = fitted(name)
        errors = found.profile.held_out
        print(
            f"{name}: {found.profile.samples:,} steps of {' and '.join(_FITS[name][0])}; every fifth held out: ", end=""
        )
        print(f"median {errors.median:.1%}, P90 {errors.p90:.1%}, their sum {errors.total:+.1%}")
        for feature, seconds in found.profile.coefficients.items():
            print(f"  {feature:20} {seconds * 1e3:10.5f} ms")
        print(f"  {'adapter to slot':20} {found.profile.load.fixed_s * 1e3:10.5f} ms")
        print(f"  {'disk to host':20} {found.disk_s * 1e3:10.5f} ms (tiers.disk_latency_s)")
        for folder in sys.argv[1:]:
            found.profile.save(Path(folder) / f"{name}.json")


if __name__ == "__main__":
    main()
