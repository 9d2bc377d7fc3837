"""decode_attention: the two ways to compute attention of decoding sequences on a CPU, over a grid of shapes.

    python bench/decode_attention.py

Keys and values of random sequences lie in blocks all over a cache. Both ways run in turn, several rounds, one `begin`
and a run for each of four layers; a line says the least and the median of each in ms a layer, and how far they differ.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from loratory.executor.attention.decode import Decode, Heads
from loratory.executor.attention.decode_gathered import GatheredDecode
from loratory.executor.attention.decode_in_place import InPlaceDecode
from loratory.executor.batch import Batch
from loratory.executor.kv_cache import KVCache

LAYERS = 4
BLOCK = 16
SHAPES = (Heads(8, 8, 64), Heads(8, 4, 64), Heads(32, 8, 64), Heads(32, 8, 128), Heads(14, 2, 64))
BATCHES = ((64, 24), (64, 165), (8, 165), (1, 165), (16, 1000), (1, 4000))


@dataclass(frozen=True, slots=True)
class Point:
    """``sequences`` of about ``context`` tokens; ``mixed``: from a quarter to seven quarters of it."""

    heads: Heads
    sequences: int
    context: int
    mixed: bool

    def lengths(self) -> list[int]:
        """Tokens of each sequence."""
        if not self.mixed:
            return [self.context] * self.sequences
        drawn = torch.rand(self.sequences, generator=torch.Generator().manual_seed(1))
        return [max(1, round(self.context * (0.25 + 1.5 * float(part)))) for part in drawn]

    def cache_and_batch(self) -> tuple[KVCache, Batch]:
        """A cache with random numbers, and a batch whose sequences have blocks all over it."""
        lengths = self.lengths()
        blocks = [-(-length // BLOCK) for length in lengths]
        heads = self.heads
        cache = KVCache(
            sum(blocks) + 8, BLOCK, LAYERS, heads.kv_heads, heads.head_dim, torch.float32, torch.device("cpu")
        )
        for pages in (*cache.keys, *cache.values):
            pages.normal_()
        drawn = torch.randperm(cache.num_blocks, generator=torch.Generator().manual_seed(2)).tolist()
        tables = torch.zeros(len(lengths), max(blocks), dtype=torch.int64)
        for row, end in enumerate(itertools.accumulate(blocks)):
            tables[row, : blocks[row]] = torch.tensor(drawn[end - blocks[row] : end])
        count = len(lengths)
        zeros = torch.zeros(count, dtype=torch.int64)
        positions = torch.tensor(lengths) - 1
        return cache, Batch(zeros, positions, zeros - 1, count, (), tables, tuple(lengths), torch.arange(count))


def measure(point: Point, rounds: int) -> str:
    """The line of one point."""
    heads = point.heads
    cache, batch = point.cache_and_batch()
    q = torch.randn(point.sequences, heads.heads * heads.head_dim)
    ways: dict[str, Decode] = {"gathered": GatheredDecode(heads, torch.float32), "in place": InPlaceDecode(heads)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    outs: dict[str, Tensor] = {name: torch.empty_like(q) for name in ways}
    with torch.inference_mode():
        for _ in range(rounds + 1):
            for name, way in ways.items():
                began = time.perf_counter()
                way.begin(batch, cache)
                for keys, values in zip(cache.keys, cache.values, strict=True):
                    way.run(q, outs[name], keys, values)
                seconds[name].append((time.perf_counter() - began) / LAYERS)
    least = {name: 1e3 * min(found[1:]) for name, found in seconds.items()}
    median = {name: 1e3 * statistics.median(found[1:]) for name, found in seconds.items()}
    apart = float((outs["gathered"] - outs["in place"]).abs().max())
    times = " ".join(f"{least[name]:8.2f} {median[name]:8.2f}" for name in ways)
    shape = f"{heads.heads:3d} {heads.kv_heads:3d} {heads.head_dim:4d} {point.sequences:4d} {point.context:5d}"
    ratio = median["in place"] / median["gathered"]
    return f"{shape} {'mixed' if point.mixed else 'equal'} {times}  {ratio:5.2f}  {apart:.0e}"


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32; ms a layer, the least and the median"
    )
    print("heads kv dim  seq context         gathered          in place  ratio  apart")
    for heads in SHAPES:
        for sequences, context in BATCHES:
            for mixed in (False, True) if sequences > 1 else (False,):
                print(measure(Point(heads, sequences, context, mixed), rounds), flush=True)


if __name__ == "__main__":
    main()
