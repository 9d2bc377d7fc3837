"""Fit the constants of scenarios/published/slora-*.yaml: ``python -m loratory.reproduce.fit.slora``.

Steps without LoRA come from VTC's A10G profile, four constants from five rows of S1 and S2, four from four rows of S4;
the rest of the A100's are scaled from the A10G's or taken from kernel times measured on an A100.

LoRA costs by the token, whatever its rank: one adapter of rank 64 alone takes what one of rank 8 takes (S1 and S2 with
one adapter at 2.5 req/s: 1.892 and 1.878 req/s). Rank enters by the adapters that a step reads, once each, by loads,
and by the pool that adapters share with the KV cache. A step with adapters takes at least as long as the host needs to
launch its kernels, about 1.3 ms a layer.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from loratory.reproduce.slora import BenchmarkFigures, PublishedRun, published, simulate
from loratory.scenarios.library_index import published_folder
from loratory.serving.workload import Floats
from loratory.sim.catalogue import gpu, model

LOAD_PER_RANK_S = 0.56e-3
"""S-LoRA on an A10G, host to GPU: seconds by rank, as published with its rows."""

A100_LINEAR_7B_S = {1: 8.5e-3, 512: 30.5e-3, 4096: 238e-3}
"""Llama-2-7B's linear layers on an A100, by tokens: measured kernel times (AIConfigurator 0.12)."""

_SHORTEST_TOKENS = 64
"""Profile rows with shorter prompts or outputs are left out: a single decode step has no warm-up, and prompts of 8 to
32 tokens in batches of hundreds have costs per request that never occur in serving."""

ConstantValues = dict[str, float]


@dataclass(frozen=True, slots=True)
class Search:
    """Constants to find, in seconds, from ``start`` and with the steps ``by`` that measure slopes."""

    start: ConstantValues
    by: ConstantValues


def profile() -> ConstantValues:
    """Decode and prefill constants of VTC's A10G profile: relative least squares.

    decode step = max(gemm_floor, base + per_seq * sequences) + per_kv_token * KV tokens. The largest batch on the floor
    is the one with the least error. A prefill step has no base: these batches are too large to show it.
    """
    with (published_folder() / "measured" / "vtc_osdi24_a10g_profile.csv").open(encoding="utf-8", newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    rows = sorted(rows, key=lambda row: row["batch_size"])
    prefills = [row for row in rows if row["input_tokens"] >= _SHORTEST_TOKENS]
    per_token = [row["prefill_s_per_request"] / row["input_tokens"] for row in prefills]
    decodes = [row for row in rows if row["output_tokens"] >= _SHORTEST_TOKENS]
    batch = np.array([row["batch_size"] for row in decodes])
    length = np.array([row["input_tokens"] + (row["output_tokens"] + 1) / 2 for row in decodes])
    seconds = np.array([row["decode_s_per_request"] / row["output_tokens"] for row in decodes]) * batch
    fits = [_split(k, batch, batch * length, seconds) for k in range(2, len(decodes) - 2)]
    floor, base, per_seq, per_kv_token = min(fits, key=lambda fit: fit[0])[1]
    return {
        "decode_base_s": base,
        "decode_per_seq_s": per_seq,
        "decode_per_kv_token_s": per_kv_token,
        "decode_gemm_floor_s": floor,
        "prefill_base_s": 0.0,
        "prefill_per_token_s": _constant(per_token),
    }


def _constant(seconds: Sequence[float]) -> float:
    """The constant with the least relative squared error."""
    inverse = 1.0 / np.array(seconds)
    return float(inverse.sum() / (inverse**2).sum())


def _split(on_floor: int, batch: Floats, kv_tokens: Floats, seconds: Floats) -> tuple[float, list[float]]:
    """(squared relative error, [floor, base, per_seq, per_kv_token]) with the smallest batches on the floor."""
    low = np.arange(len(batch)) < on_floor
    terms = np.stack([low, ~low, np.where(low, 0.0, batch), kv_tokens], axis=1) / seconds[:, None]
    constants = np.linalg.lstsq(terms, np.ones(len(seconds)), rcond=None)[0]
    return float(((terms @ constants - 1.0) ** 2).sum()), [float(value) for value in constants]


def a10g(base: ConstantValues) -> ConstantValues:
    """The constants of S-LoRA on the A10G: those of ``base`` and four fitted to three S1 rows and two of S2."""
    rows = [run for run in published() if run.fitted and "a10g" in run.suite]
    fixed = base | {"load_per_rank_s": LOAD_PER_RANK_S}
    search = Search(
        {"decode_per_kv_token_s": 1.4e-6, "lora_token_s": 2e-5, "per_rank_s": 5e-6, "lora_floor_s": 0.041},
        {"decode_per_kv_token_s": 1e-7, "lora_token_s": 5e-6, "per_rank_s": 2e-6, "lora_floor_s": 1e-3},
    )
    return fixed | solve(search, lambda constants: _residuals(rows, fixed | constants))


def a100(small: ConstantValues) -> ConstantValues:
    """The constants of S-LoRA on the A100 with Llama-13B, from those of the A10G with Llama-7B and four S4 rows.

    Attention in decode reads memory: it scales with bytes over bandwidth. Linear layers scale with weights. No term is
    left for the ranks that a step reads: with one, 400 adapters come out too slow beside one.
    """
    seven, thirteen = model("llama-2-7b"), model("llama-2-13b")
    slower = gpu("a10g").memory_bytes_per_s / gpu("a100-80gb").memory_bytes_per_s
    bytes_ = thirteen.kv_bytes_per_token() / seven.kv_bytes_per_token()
    layers = (thirteen.shape.layers * thirteen.shape.hidden**2) / (seven.shape.layers * seven.shape.hidden**2)
    one, many, most = A100_LINEAR_7B_S.items()
    fixed = {
        "decode_base_s": one[1] * layers,
        "decode_per_seq_s": (many[1] - one[1]) / (many[0] - one[0]) * layers,
        "decode_per_kv_token_s": small["decode_per_kv_token_s"] * bytes_ * slower,
        "prefill_base_s": 0.0,
        "prefill_per_token_s": most[1] / most[0] * layers,
    }
    rows = [run for run in published() if run.fitted and "S4" in run.suite]
    search = Search(
        {"decode_gemm_floor_s": 0.036, "lora_token_s": 9e-5, "load_per_rank_s": 1e-4, "lora_floor_s": 0.053},
        {"decode_gemm_floor_s": 1e-3, "lora_token_s": 1e-5, "load_per_rank_s": 1e-4, "lora_floor_s": 1e-3},
    )
    return fixed | solve(search, lambda constants: _residuals(rows, fixed | constants))


def _residuals(rows: Sequence[PublishedRun], constants: ConstantValues) -> Floats:
    """Differences over amounts of equal weight: 0.5 % of throughput, 2 % of mean latency."""
    changes = tuple(f"cost.{name}={value!r}" for name, value in constants.items())
    tried = [
        replace(row, simulation=replace(row.simulation, changes=(*row.simulation.changes, *changes))) for row in rows
    ]
    found = zip(rows, simulate(tried), strict=True)
    return np.concatenate([_differences(row.measured, simulated) for row, simulated in found])


def _differences(measured: BenchmarkFigures, simulated: BenchmarkFigures) -> Floats:
    throughput = simulated.throughput / measured.throughput - 1.0
    latency = simulated.latency_s / measured.latency_s - 1.0
    return np.array([throughput / 0.005, latency / 0.02])


def solve(search: Search, residuals: Callable[[ConstantValues], Floats], rounds: int = 8) -> ConstantValues:
    """Damped Gauss-Newton steps as long as they help; no constant is below 0."""
    names = list(search.start)
    at, by = np.array([search.start[n] for n in names]), np.array([search.by[n] for n in names])

    def of(values: Floats) -> Floats:
        return residuals(dict(zip(names, [float(value) for value in values], strict=True)))

    now = of(at)
    for _ in range(rounds):
        slopes = np.stack([of(at + by * unit) - now for unit in np.eye(len(names))], axis=1)
        move = np.linalg.solve(slopes.T @ slopes + 0.3 * np.eye(len(names)), -slopes.T @ now)
        tries = [np.maximum(at + share * move * by, 0.0) for share in (1.0, 0.5, 0.25)]
        results = [of(values) for values in tries]
        best = min(range(len(tries)), key=lambda i: float(results[i] @ results[i]))
        if results[best] @ results[best] >= now @ now:
            break
        at, now = tries[best], results[best]
    return dict(zip(names, [float(value) for value in at], strict=True))


def _show(title: str, constants: ConstantValues) -> None:
    print(title)
    for name, value in constants.items():
        print(f"  {name}: {value:.4g}")


def main() -> None:
    """Print the constants, as the scenarios have them."""
    base = profile()
    _show("VTC's A10G profile, batches of equal lengths", base)
    small = a10g(base)
    _show("published/slora-a10g", small)
    _show("published/slora-a100", a100(small))


if __name__ == "__main__":
    main()
