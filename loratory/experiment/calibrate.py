"""calibrate: measure a model on this machine, and fit the profile that the simulator predicts with."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from loratory.errors import InputError
from loratory.experiment.machine import SYNTHETIC, adapter_files, load_model
from loratory.policies.fifo import Fifo
from loratory.serving.config import EngineConfig
from loratory.serving.lora import Adapter, LoRARequest
from loratory.serving.plan import BatchShape
from loratory.sim.catalogue import ModelSpec, gpu, resolve_targets
from loratory.sim.cost import Profile, fit
from loratory.sim.cost.fit import FEWEST, caps_within, residuals_of
from loratory.sim.cost.nnls import nnls
from loratory.sim.cost.profile import LoadTime
from loratory.sim.cost.roofline import RooflineCost
from loratory.user_files import adapter_cache

if TYPE_CHECKING:
    from loratory.executor.profiler import LoadSample, Measurements

KNOTS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
"""Token counts at which the fit may let the cost of a token rise."""

CAPS = {
    "lora_tokens": (2, 4, 8, 16, 32, 64),
    "tokens": (2, 4, 8, 16, 32, 64),
    "decode_seqs": (2, 4, 8, 16, 32, 64, 128),
    "distinct_adapters": (1, 2, 4, 8),
}
"""Numbers of rows with an adapter, of rows, of sequences and of adapters up to which the fit may let each cost more;
of these, those that the measurements reach twice."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure.

    ``ranks``: the ranks of the adapters, which the slots take in turn. ``context``: tokens of the longest prompt plus
    output. ``phases``: see `loratory.executor.profiler.Design`. ``seconds``: time for loading and measuring together;
    where loading the model takes more than half of it, measuring still gets half.
    """

    config: EngineConfig
    ranks: Sequence[int]
    context: int
    dtype: str = "bfloat16"
    device: str = "auto"
    targets: str | Sequence[str] = "all-linear"
    phases: int = 48
    seconds: float = 240.0
    seed: int = 0


def calibrate(
    spec: ModelSpec,
    checkpoint: str | None,
    plan: Plan,
    name: str,
    progress: Callable[[str, int, int], None] | None = None,
    between: Callable[[int, int], None] | None = None,
    began: float | None = None,
) -> Profile:
    """Measure ``spec`` (random weights, or those of ``checkpoint``) on this machine; returns the profile.

    ``between``: see `loratory.executor.profiler.measure`. ``began``: reading of `time.perf_counter` from which
    ``plan.seconds`` count; by default that of the call. Raises `InputError` for a bad checkpoint, too little memory,
    or a plan that makes no sense.
    """
    from loratory.executor.machine import Machine
    from loratory.executor.profiler import Design, measure

    began = time.perf_counter() if began is None else began
    config = plan.config
    if plan.context < 8:
        raise InputError(f"--context {plan.context} is too short to measure anything: give at least 8 tokens")
    blocks = -(-plan.context // config.block_size) * config.max_num_seqs
    config = config.model_copy(
        update={"num_gpu_blocks": config.num_gpu_blocks or blocks, "max_model_len": plan.context}
    )
    model = load_model(checkpoint, spec, plan.dtype, plan.device)
    if plan.context > (limit := model.config.max_positions):
        raise InputError(f"--context {plan.context} is beyond the {limit} positions of the model: give at most {limit}")
    targets = resolve_targets(plan.targets)
    with tempfile.TemporaryDirectory(prefix="loratory-profile-") as scratch, adapter_cache() as cache:
        ranks = [plan.ranks[i % len(plan.ranks)] for i in range(config.max_loras)] if plan.ranks else []
        adapters = tuple(
            Adapter(
                LoRARequest(f"adapter-{index}", index, f"{SYNTHETIC}adapter-{index}"),
                rank,
                spec.adapter_bytes(rank, targets),
            )
            for index, rank in enumerate(ranks, 1)
        )
        files = adapter_files(adapters, model, Path(scratch), targets, cache, config.max_lora_rank)
        machine = Machine(model, config, files, targets)
        loading = time.perf_counter() - began
        seconds = max(plan.seconds / 2, plan.seconds - loading)
        if progress is not None:
            progress(f"percent; loading took {loading:.0f} s, measuring takes {seconds:.0f} s", 0, 100)
        design = Design(config.max_num_seqs, plan.context, config.max_num_batched_tokens, plan.phases, seconds)
        guess = RooflineCost.from_options(spec, gpu("l4"), None, {})  # for view.cost, which fifo does not read
        measured = measure(machine, adapters, Fifo, guess, design, plan.seed, progress, between)
        about = machine.about()
    return profile_of(measured, name, spec.name, about)


def profile_of(measured: Measurements, name: str, model: str, about: dict[str, str | int | float]) -> Profile:
    """Fit the samples: every fifth phase is held out to measure the errors, then all are used.

    Raises `InputError` for fewer steps than can be fitted and tested.
    """
    from loratory.sim.cost import evaluate

    def rows(keep: Callable[[int], bool]) -> list[tuple[BatchShape, float]]:
        return [(s.shape, s.seconds) for s in measured.steps if keep(s.phase)]

    tested, fitted = rows(lambda phase: phase % 5 == 4), rows(lambda phase: phase % 5 != 4)
    if not tested or len(fitted) < FEWEST:
        raise InputError(
            f"{len(fitted)} steps were measured to fit and {len(tested)} to test the fit: too few for a profile: "
            "give more --seconds, such as the default of 240"
        )
    host, disk = load_time([(s, s.host_s) for s in measured.loads]), load_time([(s, s.disk_s) for s in measured.loads])
    seen = [shape.tokens for shape, _ in rows(lambda _: True)]
    knots = tuple(knot for knot in KNOTS if knot < max(seen, default=0))
    caps = caps_within((shape for shape, _ in rows(lambda _: True)), CAPS)
    held_out = evaluate(fit(fitted, knots=knots, caps=caps, hold_out_every=0), tested)
    whole = fit(
        rows(lambda _: True),
        name=name,
        model=model,
        knots=knots,
        caps=caps,
        hold_out_every=0,
        machine={**about, "load_average": round(os.getloadavg()[0], 2)},
        versions={package: _version(package) for package in ("loratory", "torch", "transformers", "triton")},
        noise=measured.noise,
        load=host,
        disk=disk,
    )
    created = datetime.now(UTC).date().isoformat()
    again = [(s.shape, run) for turn in (0, 1) for s in measured.steps for run in s.runs[turn : turn + 1]]
    residuals = residuals_of(whole, again)
    judged = whole.model_copy(update={"held_out": held_out, "created": created, "residuals": residuals})
    return judged.model_copy(update={"usable": not judged.doubts()})


def load_time(samples: Sequence[tuple[LoadSample, float]]) -> LoadTime:
    """fixed_s + per_byte_s * bytes through (adapter, seconds), neither below 0; zero without samples."""
    if not samples:
        return LoadTime()
    seconds = np.array([took for _, took in samples])
    matrix = np.array([[1.0, float(sample.bytes)] for sample, _ in samples]) / seconds[:, None]
    fixed_s, per_byte_s = nnls(matrix, np.ones(len(samples)))
    return LoadTime(fixed_s=float(fixed_s), per_byte_s=float(per_byte_s))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"
