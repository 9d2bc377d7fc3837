"""What LoRA adds to the linear layers of a step: Llama-56M's shape, 64 decoding rows, 8 adapters of rank 8 and 16.

A fifth of the rows is the base model's. ``base`` is the time of the four projections of every layer (no attention, no
output head); each form's time comes on top of it. All run in turn, each twice and the second counts (caches are as they
are in a run of steps), over many rounds, and the minimum counts: other programs only ever add time.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from bench.lora_forms import batch_of
from executor.lora import CPULoRA, LoRAShapes, LoRASlots
from executor.lora.load import FORMS

MODEL = LoRAShapes(512, 8, 4, 64, 1376, 8)
ADAPTERS = 8


def slots_of(rows: int, order: str) -> list[int]:
    """Adapters drawn evenly, every fifth row the base model's; ``sorted`` puts rows of one slot together."""
    drawn = np.random.default_rng(0).integers(0, ADAPTERS, rows).tolist()
    mixed = [-1 if row % 5 == 0 else slot for row, slot in enumerate(drawn)]
    return sorted(mixed) if order == "sorted" else mixed


def measure(dtype: torch.dtype, slot_of: list[int], rounds: int) -> dict[str, float]:
    """Seconds a step of ``base`` and of each form, and of ``begin`` alone."""
    rows = len(slot_of)
    slots = LoRASlots(MODEL, ADAPTERS, 16, dtype)
    for stack in slots.groups.values():
        stack.a.normal_(0, 0.02)
        stack.b.normal_(0, 0.02)
    slots.ranks[:] = [8, 16] * (ADAPTERS // 2)
    groups = {name: stack.group for name, stack in slots.groups.items()}
    x = {name: torch.randn(rows, group.in_features).to(dtype) for name, group in groups.items()}
    y = {name: torch.randn(rows, group.out_features).to(dtype) for name, group in groups.items()}
    steps = list(itertools.product(range(MODEL.layers), groups))
    weights = {
        (layer, name): torch.randn(groups[name].out_features, groups[name].in_features).mul_(0.02).to(dtype)
        for layer, name in steps
    }
    batch = batch_of(slot_of)

    def base() -> None:
        for layer, name in steps:
            functional.linear(x[name], weights[layer, name])

    def adds(lora: CPULoRA) -> Callable[[], None]:
        lora.begin(batch)

        def step() -> None:
            for layer, name in steps:
                lora.add(y[name], x[name], layer, name)

        return step

    def begin() -> None:
        slots.version += 1
        chosen.begin(batch)

    chosen = CPULoRA(slots)
    functions = {"base": base, "chosen": adds(chosen)}
    functions |= {form: adds(CPULoRA(slots, form)) for form in (*FORMS, "runs")}
    functions["begin"] = begin
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(rounds):
        for name, function in functions.items():
            function()
            started = time.perf_counter()
            function()
            best[name] = min(best[name], time.perf_counter() - started)
        for name, group in groups.items():
            y[name].copy_(torch.randn(rows, group.out_features))
    return best


def main() -> None:
    """Prints a line a dtype and order of rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name, order in itertools.product(("float32", "bfloat16"), ("mixed", "sorted")):
        times = measure(getattr(torch, name), slots_of(options.rows, order), options.rounds)
        cells = ", ".join(f"{form} {1e3 * seconds:.2f}" for form, seconds in times.items())
        share = times["chosen"] / times["base"]
        print(f"{name} {order}: ms {cells}; chosen/base {share:.2f}; load {os.getloadavg()[0]:.1f}", flush=True)


if __name__ == "__main__":
    main()
