"""What LoRA adds to the linear layers of a step: Llama-56M's shape, 64 decoding rows, 8 adapters of rank 8 and 16.

A fifth of the rows is the base model's. ``base`` is the time of the four projections of every layer (no attention, no
output head); each form's time comes on top of it. All run in turn over many rounds, and a step is the sum of the
minima of its projections: other programs only ever add time, and a short piece runs undisturbed more often.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from loratory.executor.lora import CPULoRA, LoRAShapes, LoRASlots
from loratory.executor.lora.work import FORMS
from loratory.models.shape import ModelShape

MODEL = LoRAShapes(ModelShape(512, 8, 8, 4, 64, 1376, 32000))
ADAPTERS = 8


def slots_of(rows: int, order: str) -> list[int]:
    """Adapters drawn evenly, every fifth row the base model's; ``sorted`` puts rows of one slot together."""
    drawn = np.random.default_rng(0).integers(0, ADAPTERS, rows).tolist()
    mixed = [-1 if row % 5 == 0 else slot for row, slot in enumerate(drawn)]
    return sorted(mixed) if order == "sorted" else mixed


def measure(dtype: torch.dtype, slot_of: list[int], forms: Sequence[str], rounds: int) -> dict[str, float]:
    """Seconds a step of ``base`` and of each form, and of `begin` alone."""
    rows = len(slot_of)
    slots = LoRASlots(MODEL, ADAPTERS, 16, dtype)
    for stack in slots.groups.values():
        stack.a.normal_(0, 0.02)
        stack.b.normal_(0, 0.02)
    slots.ranks[:] = [8, 16] * (ADAPTERS // 2)
    groups = {name: stack.group for name, stack in slots.groups.items()}
    x = {name: torch.randn(rows, group.in_features).to(dtype) for name, group in groups.items()}
    y = {name: torch.randn(rows, group.out_features).to(dtype) for name, group in groups.items()}
    steps = list(itertools.product(range(MODEL.model.layers), groups))
    weights = {
        (layer, name): torch.randn(groups[name].out_features, groups[name].in_features).mul_(0.02).to(dtype)
        for layer, name in steps
    }
    taken = torch.tensor(slot_of)

    def base(layer: int, name: str) -> None:
        functional.linear(x[name], weights[layer, name])

    def adds(lora: CPULoRA) -> Callable[[int, str], None]:
        lora.begin(taken)
        return lambda layer, name: lora.add(y[name], x[name], layer, name)

    functions = {"base": base, "chosen": adds(CPULoRA(slots))}
    functions |= {form: adds(CPULoRA(slots, form)) for form in forms}
    best = {name: np.full(len(steps), np.inf) for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            for place, (layer, group) in enumerate(steps):
                started = time.perf_counter()
                function(layer, group)
                best[name][place] = min(best[name][place], time.perf_counter() - started)
        for name, group in groups.items():
            y[name].copy_(torch.randn(rows, group.out_features))
    return {name: float(times.sum()) for name, times in best.items()} | {"begin": planning(slots, taken, rounds)}


def planning(slots: LoRASlots, taken: Tensor, rounds: int) -> float:
    """Seconds of `begin` for a batch not seen before."""
    lora, best = CPULoRA(slots), float("inf")
    for _ in range(rounds):
        slots.version += 1
        started = time.perf_counter()
        lora.begin(taken)
        best = min(best, time.perf_counter() - started)
    return best


def main() -> None:
    """Prints a line a dtype and order of rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--forms", nargs="+", default=[*FORMS, "runs"])
    parser.add_argument("--orders", nargs="+", default=["mixed", "sorted"], choices=["mixed", "sorted"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name, order in itertools.product(options.dtypes, options.orders):
        times = measure(getattr(torch, name), slots_of(options.rows, order), options.forms, options.rounds)
        cells = ", ".join(f"{form} {1e3 * seconds:.2f}" for form, seconds in times.items())
        share = times["chosen"] / times["base"]
        print(f"{name} {order}: ms {cells}; chosen/base {share:.2f}; load {os.getloadavg()[0]:.1f}", flush=True)


if __name__ == "__main__":
    main()
