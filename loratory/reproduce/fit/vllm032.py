"""The profile of vLLM 0.32 on a CPU, from the steps of the run `below` alone.

    python -m loratory.reproduce.fit.vllm032 [scenarios/profiles/vllm-0.32-cpu-56m.json]

A step's seconds are counted from the end of the step before (or, if the engine was idle, from the arrival that woke it)
to its own end, so the work of vLLM between steps, receiving requests and scheduling, is part of its cost. The files do
not state which adapters a step had or loaded; the replay of the run does (it agrees with every recorded step).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np

from loratory.reproduce.vllm032_runs import RecordedRun, recorded, replayed
from loratory.serving.plan import BatchShape
from loratory.sim.cost.fit import fit
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


def fitted() -> Fitted:
    """Fit on `below`: first the two kinds of load together with all features, then the profile without the loads.

    No knots: they are where a GPU turns from memory-bound to compute-bound. Constants are rounded to six digits, so
    that another machine's linear algebra writes the same file.
    """
    steps = measured_steps(recorded("below"))
    table = [[*feature_values(step.shape).values(), step.loads, step.from_disk] for step in steps]
    seconds = np.array([step.seconds for step in steps])
    *_, slot_s, disk_s = nnls(np.array(table) / seconds[:, None], np.ones(len(steps))).tolist()
    slot_s, disk_s = _rounded(slot_s), _rounded(disk_s)
    computed = [(step.shape, step.seconds - step.loads * slot_s - step.from_disk * disk_s) for step in steps]
    profile = fit(
        computed,
        name="vllm-0.32-cpu-56m",
        model="Llama, 56M parameters, bf16",
        features=FEATURES,
        knots=(),
        machine={"cores": 2, "device": "cpu"},
        versions={"vllm": "0.32"},
        load=LoadTime(fixed_s=slot_s),
    )
    held_out = profile.held_out
    errors = {key: _rounded(getattr(held_out, key)) for key in ("median", "p90", "total")}
    coefficients = {feature: _rounded(value) for feature, value in profile.coefficients.items()}
    rounded = {"coefficients": coefficients, "held_out": held_out.model_copy(update=errors)}
    return Fitted(profile.model_copy(update=rounded), disk_s)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def main() -> None:
    """Print the constants; write the profile to the file that an argument names."""
    found = fitted()
    for feature, seconds in found.profile.coefficients.items():
        print(f"{feature:20} {seconds * 1e3:10.5f} ms")
    print(f"{'adapter to slot':20} {found.profile.load.fixed_s * 1e3:10.5f} ms")
    print(f"{'disk to host':20} {found.disk_s * 1e3:10.5f} ms (tiers.disk_latency_s)")
    for path in sys.argv[1:]:
        found.profile.save(path)


if __name__ == "__main__":
    main()
