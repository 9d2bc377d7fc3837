"""sim_speed: simulated requests per CPU-second on one replica, records included. See bench/README.md."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas  # noqa: F401 - pyarrow imports it at the first table: part of the start-up, not of a simulation

from loratory.experiment.policy_spec import policy_factory, policy_names
from loratory.reports.recorder import Recorder
from loratory.serving.config import EngineConfig
from loratory.serving.lora import Adapter, LoRARequest
from loratory.serving.workload import Workload
from loratory.sim.catalogue import gpu, model
from loratory.sim.cluster import simulate
from loratory.sim.cost import cost_model, kv_blocks

RANK_BYTES = 5_242_880
"""Bytes of one rank of a Llama-3.1-8B adapter on all linear modules in bf16."""


def lognormal(rng: np.random.Generator, mean: float, cv: float, count: int, most: int) -> np.ndarray:
    """Whole numbers in 1..most, of this mean and coefficient of variation before clipping."""
    sigma2 = np.log(1 + cv * cv)
    values = rng.lognormal(np.log(mean) - sigma2 / 2, np.sqrt(sigma2), count)
    return np.clip(np.rint(values), 1, most).astype(np.int64)


def workload(requests: int, adapters: int, rate: float, backlog: bool, seed: int) -> Workload:
    """Lengths as in the Azure conversation trace of 2023 (means 1155 and 211), Zipf 1.0 over adapters, a tenant each.

    Every other request has a priority and every fourth a deadline that is easily met, so that those policies work.
    """
    rng = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, adapters + 1)
    adapter = rng.choice(adapters, requests, p=weights / weights.sum())
    output = lognormal(rng, 211.0, 0.8, requests, 1000)
    names = tuple(f"a{i}" for i in range(1, adapters + 1))
    arrival = np.zeros(requests) if backlog else np.cumsum(rng.exponential(1.0 / rate, requests))
    return Workload(
        arrival=arrival,
        adapter=adapter,
        tenant=adapter,
        prompt_tokens=lognormal(rng, 1155.0, 0.96, requests, 14_000),
        output_tokens=output,
        max_tokens=np.full(requests, output.max()),
        adapters=names,
        tenants=tuple(f"tenant of {name}" for name in names),
        priority=rng.integers(0, 2, requests),
        deadline=np.where(rng.random(requests) < 0.25, 1e9 if backlog else 60.0, np.inf),
    )


def measure(name: str, options: argparse.Namespace) -> dict[str, float]:
    """One simulation in this process: CPU seconds from workload to closed records, steps, and peak memory."""
    spec, card = model("llama-3.1-8b"), gpu("a100-80gb")
    config = EngineConfig(
        max_num_batched_tokens=8192,
        max_num_seqs=256,
        max_loras=options.max_loras,
        max_cpu_loras=max(64, options.max_loras),
        max_lora_rank=16,
        adapter_loading=options.loading,
    )
    blocks = kv_blocks(spec, card, config).num_gpu_blocks
    config = config.model_copy(update={"num_gpu_blocks": blocks})
    cost = cost_model("roofline", spec, card, config)
    work = workload(options.requests, options.adapters, options.rate, options.backlog, options.seed)
    ranks = [8 if i % 2 else 16 for i in range(1, options.adapters + 1)]
    adapters = [
        Adapter(LoRARequest(f"a{i}", i, f"adapters/a{i}"), rank, rank * RANK_BYTES)
        for i, rank in enumerate(ranks, start=1)
    ]
    folder = nullcontext(None) if options.records == "memory" else tempfile.TemporaryDirectory()
    with folder as path:
        start = time.process_time()
        recorder = None if options.records == "none" else Recorder(None if path is None else Path(path))
        simulate(
            work,
            adapters=adapters,
            config=config,
            policy=policy_factory(name),
            cost=cost,
            sink=None if recorder is None else recorder.sink,
            jump=not options.step,
        )
        records = None if recorder is None else recorder.close()
        cpu_s = time.process_time() - start
        steps = 0 if records is None else records.steps.read(["steps"]).num_rows
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"cpu_s": cpu_s, "plans": steps, "rss_mb": peak}


def calibrate() -> float:
    """CPU seconds of a plain loop: how fast this machine is just now."""
    start = time.process_time()
    total = 0
    for i in range(10**7):
        total += i
    return time.process_time() - start


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--policies", nargs="+", default=policy_names(), metavar="NAME")
    parser.add_argument("--rate", type=float, default=6.0, help="Poisson arrivals a second")
    parser.add_argument("--backlog", action="store_true", help="all requests arrive at once")
    parser.add_argument("--adapters", type=int, default=64)
    parser.add_argument("--max-loras", type=int, default=32)
    parser.add_argument("--loading", choices=("sync", "async"), default="sync")
    parser.add_argument("--records", choices=("files", "memory", "none"), default="files")
    parser.add_argument("--repeat", type=int, default=1, help="runs a policy; the fastest counts")
    parser.add_argument("--rss", action="store_true", help="stop with an error when a run needs 1 GB or more")
    parser.add_argument("--step", action="store_true", help="one decode step at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Each run gets a process of its own, so that memory is its own and no run warms another's caches."""
    options = arguments()
    if options.one:
        print(json.dumps(measure(options.policies[0], options)))
        return
    print(f"plain loop of 10**7 additions: {calibrate():.2f} CPU s")
    print(f"{'policy':<16}{'CPU s':>8}{'requests per CPU s':>20}{'steps and jumps':>17}{'peak RSS MB':>13}")
    worst = 0.0
    for name in options.policies:
        command = [sys.executable, __file__, *sys.argv[1:], "--one", "--policies", name]
        runs = [
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            for _ in range(options.repeat)
        ]
        best = min(runs, key=lambda run: run["cpu_s"])
        worst = max(worst, best["rss_mb"])
        rate = options.requests / best["cpu_s"]
        print(f"{name:<16}{best['cpu_s']:>8.2f}{rate:>20,.0f}{best['plans']:>17,}{best['rss_mb']:>13.0f}", flush=True)
    if options.rss and worst >= 1000:
        raise SystemExit(f"a run needed {worst:.0f} MB, which is not below 1 GB")


if __name__ == "__main__":
    main()
