"""gpu_speed: decode and prefill steps of a large model with many adapters on one GPU, against what the hardware allows.

    python bench/gpu_speed.py --out results/gpu            # Llama-3.1-8B's shape, bfloat16, random weights
    python bench/gpu_speed.py --dry --out results/gpu-dry  # the same code on a CPU with a tiny shape: no figures of use

Prints a table and writes gpu_speed.json. Bound of a decode step: max(bytes / bandwidth, FLOPs / peak), with bandwidth
and peak as given (defaults: what an H200 was measured to reach, 4.3 TB/s and 790 TFLOP/s).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from loratory.adapters.fetch import AdapterFetcher
from loratory.adapters.sources.cache import AdapterCache
from loratory.executor.batch import Batch, Chunk, LoRA
from loratory.executor.block_tables import BlockTables
from loratory.executor.graphs import DecodeGraphs
from loratory.executor.lora import CPULoRA, LoRASlots
from loratory.executor.lora.shapes import LoRAShapes
from loratory.executor.lora.weights import HostAdapter
from loratory.executor.machine import cpu_name
from loratory.executor.model import Model
from loratory.executor.random_checkpoint import RandomTensors, model_config, random_adapter

BLOCK = 16


class Bench:
    """A model with full adapter slots and a KV cache of random content."""

    def __init__(self, name: str, device: torch.device, slots: int, rank: int, seqs: int, context: int) -> None:
        config = model_config(name)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.device = device
        self.model = Model(config, RandomTensors(0, config.shape.tied, dtype, device), dtype, device)
        pages = -(-(context + 64) // BLOCK)
        self.kv = self.model.new_cache(seqs * pages + 1, BLOCK)
        for part in (*self.kv.keys, *self.kv.values):
            part.normal_(std=0.5)
        self.tables = BlockTables(seqs * pages, BLOCK, seqs)
        shapes = LoRAShapes(self.model.shape)
        self.slots = LoRASlots(shapes, slots, rank, dtype, device)
        with tempfile.TemporaryDirectory() as scratch:
            folder = random_adapter(Path(scratch) / "a", config, rank)
            files = AdapterFetcher(AdapterCache(Path(scratch) / "cache")).verified("a", str(folder), None)
            self.host = HostAdapter.load(files, shapes, dtype, device)
        for slot in range(slots):
            self.slots.write(slot, self.host)
        self.lora = self._lora()
        self.graphs = DecodeGraphs(self.model, self.kv, self.lora, seqs, pages, seqs * pages)
        self.rows = np.array([self.tables.grow(str(i), context + 64) for i in range(seqs)])
        self.context = context

    def _lora(self) -> LoRA:
        if self.device.type == "cpu":
            return CPULoRA(self.slots)
        from loratory.executor.lora.cuda import CUDALoRA

        return CUDALoRA(self.slots)

    def decode(self, seqs: int, adapters: int) -> Callable[[], Any]:
        """A decode step of so many sequences over so many distinct adapters (0: the base model)."""
        to = self.device
        slots = torch.full((seqs,), -1) if not adapters else torch.arange(seqs) % adapters
        batch = Batch(
            token_ids=torch.randint(3, self.model.shape.vocab, (seqs,)).to(to),
            positions=torch.full((seqs,), self.context).to(to),
            slots=slots.to(to),
            decodes=seqs,
            chunks=(),
            block_tables=self.tables.select(self.rows[:seqs]).to(to),
            kv_lengths=(self.context + 1,) * seqs,
            sample_rows=torch.arange(seqs).to(to),
        )
        return lambda: self.graphs.forward(batch, adapters > 0).argmax(-1)

    def prefill(self, tokens: int, adapter: bool) -> Callable[[], Any]:
        """One prompt of so many tokens, with one adapter or none."""
        to = self.device
        tables = BlockTables(self.kv.num_blocks - 1, BLOCK, 1)
        row = np.array([tables.grow("p", tokens)])
        batch = Batch(
            token_ids=torch.randint(3, self.model.shape.vocab, (tokens,)).to(to),
            positions=torch.arange(tokens).to(to),
            slots=torch.full((tokens,), 0 if adapter else -1).to(to),
            decodes=0,
            chunks=(Chunk(0, tokens, 0),),
            block_tables=tables.select(row).to(to),
            kv_lengths=(tokens,),
            sample_rows=torch.tensor([tokens - 1]).to(to),
        )
        return lambda: self.model.forward(batch, self.kv, self.lora if adapter else None).argmax(-1)

    def load(self) -> Callable[[], Any]:
        """An adapter from host memory to a slot."""
        return lambda: self.slots.write(0, self.host)

    def bound_s(self, seqs: int, adapters: int, bandwidth: float, peak: float) -> float:
        """The least a decode step can take: weights, KV and distinct adapters read once, or the products computed."""
        c, item = self.model.shape, self.model.dtype.itemsize
        weights = c.parameter_count - c.vocab * c.hidden * (1 if not c.tied else 0)
        kv = seqs * self.context * 2 * c.layers * c.kv_width * item
        lora = min(adapters, seqs) * self.host.bytes
        return max((weights * item + kv + lora) / bandwidth, 2 * seqs * weights / peak)


def seconds(run: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median seconds of a call, after two that are not counted."""
    for _ in range(2):
        run()
    took = []
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - began)
    return median(took)


def overlap(bench: Bench, seqs: int, adapters: int, repeats: int) -> tuple[float, float]:
    """Median seconds of a decode step alone, and while adapters are being loaded in another stream."""
    step = bench.decode(seqs, adapters)
    alone = seconds(step, bench.device, repeats)
    if bench.device.type != "cuda":
        return alone, alone
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    last = bench.slots.max_loras - 1

    def both() -> None:
        with torch.cuda.stream(side):
            bench.slots.write(last, bench.host)
        step()
        torch.cuda.current_stream().synchronize()

    for _ in range(2):
        both()
    took = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        began = time.perf_counter()
        both()
        took.append(time.perf_counter() - began)
    return alone, median(took)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/gpu"))
    parser.add_argument("--dry", action="store_true", help="tiny shapes on a CPU")
    parser.add_argument("--bandwidth", type=float, default=4.3e12, help="bytes/s the card really reaches")
    parser.add_argument("--peak", type=float, default=790e12, help="FLOP/s the card really reaches")
    given = parser.parse_args()
    device = torch.device("cpu" if given.dry else "cuda")
    name, context, repeats = ("tiny-llama", 40, 3) if given.dry else ("llama-3.1-8b", 1024, 20)
    batches, adapters = ((1, 4), (0, 1, 4)) if given.dry else ((1, 32, 64, 128), (0, 1, 8, 32, 64))
    prompts = (16, 40) if given.dry else (1024, 4096)
    bench = Bench(name, device, max(adapters), 16, max(batches), context)
    card = torch.cuda.get_device_name() if device.type == "cuda" else cpu_name()
    found: dict[str, Any] = {
        "device": card,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "model": name,
        "dtype": str(bench.model.dtype),
        "context": context,
        "adapter_bytes": bench.host.bytes,
        "slot_bytes": bench.slots.bytes,
        "decode": [],
        "prefill": [],
    }
    print(f"{card}, torch {torch.__version__}, {name}, context {context}")
    print(f"{'batch':>6} {'adapters':>9} {'ms':>9} {'bound ms':>9} {'times':>6}")
    for seqs in batches:
        for count in adapters:
            if count > seqs and count > 1:
                continue
            took = seconds(bench.decode(seqs, count), device, repeats)
            bound = bench.bound_s(seqs, count, given.bandwidth, given.peak)
            found["decode"].append({"batch": seqs, "adapters": count, "s": took, "bound_s": bound})
            print(f"{seqs:6} {count:9} {took * 1e3:9.3f} {bound * 1e3:9.3f} {took / bound:6.2f}")
    for tokens in prompts:
        for adapter in (False, True):
            took = seconds(bench.prefill(tokens, adapter), device, max(3, repeats // 4))
            found["prefill"].append({"tokens": tokens, "adapter": adapter, "s": took})
            print(f"prefill {tokens:5} {'with an adapter' if adapter else 'base model':16} {took * 1e3:9.2f} ms")
    found["load_s"] = seconds(bench.load(), device, repeats)
    rate = bench.host.bytes / found["load_s"] / 1e9
    print(f"adapter load, host to slot: {found['load_s'] * 1e3:.2f} ms, {rate:.1f} GB/s")
    alone, beside = overlap(bench, max(batches), max(adapters) - 1, repeats)
    found["overlap"] = {"step_s": alone, "step_with_load_s": beside}
    print(f"decode step beside a load: {beside * 1e3:.3f} ms, alone {alone * 1e3:.3f} ms")
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "gpu_speed.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
