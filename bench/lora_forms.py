"""Measures the CPU forms of LoRA over a grid of batches, fits their costs, and writes executor/lora/forms-cpu.json.

Each point is one batch: dtype, model width, rows, slots, active adapters, ranks, and whether rows of an adapter lie
together. All forms run on it in turn, several rounds, and the minima of the projections add up: other programs only add
time. Costs are seconds per operator call, multiply-add and number moved: non-negative least squares weighted by 1 /
time. The table at the end says how much the choice loses against the form that was really fastest on each point.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import re
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loratory.executor.lora import CPULoRA, FormCosts, LoRAShapes, LoRASlots
from loratory.executor.lora.choice import MEASURED, choose
from loratory.executor.lora.work import FORMS, SlotRows, Widths, Work, runs_of, segmented
from loratory.models.shape import ModelShape

MODELS = (
    LoRAShapes(ModelShape(512, 2, 8, 4, 64, 1376, 32000)),
    LoRAShapes(ModelShape(1536, 1, 12, 2, 128, 4096, 32000)),
)
ROWS = (1, 8, 24, 64, 160, 512)
SLOTS = (1, 4, 8, 32)
RANKS = (8, 16, 64)
POINTS = 48
MULTIPLIES_LIMIT = 2e9
"""Points beyond this many multiply-adds are left out for that form: it is far from the fastest there."""


@dataclass(frozen=True, slots=True)
class Point:
    """One batch of the grid."""

    model: LoRAShapes
    rows: int
    slots: int
    active: int
    rank: int
    together: bool

    def slot_of(self) -> list[int]:
        """A fifth of the rows is the base model's; the others take turns, or lie together."""
        rng = np.random.default_rng(self.rows * 1000 + self.slots)
        used = sorted(rng.choice(self.slots, self.active, replace=False).tolist())
        drawn = [used[i] for i in rng.integers(0, self.active, self.rows)]
        mixed = [-1 if i % 5 == 4 else slot for i, slot in enumerate(drawn)]
        return sorted(mixed) if self.together else mixed


def points() -> list[Point]:
    """A sample of the grid, without what makes no sense (more adapters than rows)."""
    found = []
    for model, rows, slots, rank in itertools.product(MODELS, ROWS, SLOTS, RANKS):
        for active in sorted({slots, max(1, slots // 4)}):
            if active <= rows and not (model is MODELS[1] and slots * rank > 512):
                found += [Point(model, rows, slots, active, rank, together) for together in (False, True)]
    rng = np.random.default_rng(7)
    return [found[i] for i in sorted(rng.choice(len(found), min(POINTS, len(found)), replace=False))]


def filled(point: Point, dtype: torch.dtype) -> LoRASlots:
    """Slots with adapters of the point's rank and half of it by turns."""
    slots = LoRASlots(point.model, point.slots, point.rank, dtype)
    for stack in slots.groups.values():
        stack.a.normal_(0, 0.02)
        stack.b.normal_(0, 0.02)
    slots.ranks[:] = [point.rank if slot % 2 == 0 else point.rank // 2 for slot in range(point.slots)]
    return slots


def works(slots: LoRASlots, slot_of: list[int]) -> dict[str, Work]:
    """What each form has to do, ``runs`` included."""
    runs, widths = runs_of(slot_of, slots.ranks), Widths.of(slots)
    load = SlotRows.of(runs)
    found = {form: load.work(form, slots, widths) for form in FORMS}
    found["runs"] = segmented(((slot, hi - lo) for lo, hi, slot in runs), 0, slots, widths)
    return {form: work for form, work in found.items() if work is not None and work.multiplies < MULTIPLIES_LIMIT}


def measure(point: Point, dtype: torch.dtype, rounds: int) -> dict[str, float]:
    """Seconds of each form: the sum over projections of the minimum over interleaved rounds."""
    slots, slot_of = filled(point, dtype), point.slot_of()
    forms = {form: CPULoRA(slots, form) for form in works(slots, slot_of)}
    x = {name: torch.randn(point.rows, s.group.in_features).to(dtype) for name, s in slots.groups.items()}
    y = {name: torch.zeros(point.rows, s.group.out_features).to(dtype) for name, s in slots.groups.items()}
    for lora in forms.values():
        lora.begin(torch.tensor(slot_of))
    steps = list(itertools.product(range(point.model.model.layers), slots.groups))
    best = {form: np.full(len(steps), np.inf) for form in forms}
    for turn in range(rounds + 1):
        for form, lora in forms.items():
            for place, (layer, name) in enumerate(steps):
                started = time.perf_counter()
                lora.add(y[name], x[name], layer, name)
                seconds = time.perf_counter() - started
                if turn:
                    best[form][place] = min(best[form][place], seconds)
    return {form: float(times.sum()) for form, times in best.items()}


def non_negative(features: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least squares with coefficients of at least zero: the most negative one goes until none is left."""
    kept = list(range(features.shape[1]))
    while True:
        solution = np.linalg.lstsq(features[:, kept], target, rcond=None)[0]
        if (solution >= 0).all():
            full = np.zeros(features.shape[1])
            full[kept] = solution
            return full
        del kept[int(np.argmin(solution * np.abs(features[:, kept]).mean(axis=0)))]


def fit(samples: list[tuple[Work, float]]) -> tuple[Work, float]:
    """Costs and the median relative error over the samples."""
    features = np.array([work for work, _ in samples])
    seconds = np.array([second for _, second in samples])
    costs = non_negative(features / seconds[:, None], np.ones(len(seconds)))
    return Work(*costs.tolist()), float(np.median(np.abs(features @ costs / seconds - 1)))


def main() -> None:
    """Measures, fits, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16", "float16"])
    parser.add_argument("--out", type=Path, default=MEASURED)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    for name in options.dtypes:
        measured = measured_dtype(name, options.rounds) | {"threads": options.threads}
        print(name, "median error", measured["median_error"], "over the fastest", measured["over_fastest"], flush=True)
        save(options.out, name, measured)


def measured_dtype(name: str, rounds: int) -> dict[str, Any]:
    """Costs in one dtype, and what is to be known of the measurement."""
    dtype, grid, load_before = getattr(torch, name), points(), os.getloadavg()[0]
    times = []
    for number, point in enumerate(grid):
        times.append((point, measure(point, dtype, rounds)))
        print(f"{name}: {number + 1} of {len(grid)} points", end="\r", file=sys.stderr, flush=True)
    samples: dict[str, list[tuple[Work, float]]] = defaultdict(list)
    for point, measured in times:
        work = works(filled(point, dtype), point.slot_of())
        for form, second in measured.items():
            samples["segmented" if form == "runs" else form].append((work[form], second))
    fitted = {form: fit(samples[form]) for form in FORMS if samples[form]}
    # No product is free: a form whose multiply-adds drown in the noise here would look so on larger batches.
    least = min(work.multiplies for work, _ in fitted.values() if work.multiplies > 0)
    costs = FormCosts({f: work._replace(multiplies=max(work.multiplies, least)) for f, (work, _) in fitted.items()})
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "created": datetime.date.today().isoformat(),
        "load_average": [round(load_before, 1), round(os.getloadavg()[0], 1)],
        "points": len(grid),
        "seconds": {form: [float(f"{cost:.4g}") for cost in work] for form, work in costs.seconds.items()},
        "median_error": {form: round(error, 3) for form, (_, error) in fitted.items()},
        "over_fastest": _regret(times, dtype, costs),
    }


def save(path: Path, name: str, measured: dict[str, Any]) -> None:
    """Puts one dtype's measurement into the file and leaves the others."""
    data = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"dtypes": {}}
    data["format"] = "loratory-lora-forms-1"
    data["unit"] = "seconds per operator call, multiply-add, number of rows moved, number of weights moved"
    data["dtypes"][name] = measured
    text = json.dumps(data, indent=1, sort_keys=True)
    path.write_text(re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n")


def _regret(times: list[tuple[Point, dict[str, float]]], dtype: torch.dtype, costs: FormCosts) -> dict[str, float]:
    """Time of the chosen form over that of the fastest, its geometric mean on the grid; and that of one form always."""
    ratios: dict[str, list[float]] = defaultdict(list)
    for point, measured in times:
        slots = filled(point, dtype)
        runs = runs_of(point.slot_of(), slots.ranks)
        chosen = choose(runs, slots, Widths.of(slots), costs)
        form = "runs" if chosen.rest is None else chosen.form
        fastest = min(measured.values())
        # A split of one batch between two forms is not among the forms measured: it is left out here.
        if form in measured and not (chosen.runs and chosen.rest is not None):
            ratios["chosen"].append(measured[form] / fastest)
        for other, second in measured.items():
            ratios[other].append(second / fastest)
    return {form: round(float(np.exp(np.mean(np.log(values)))), 2) for form, values in ratios.items()}


def _cpu() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
