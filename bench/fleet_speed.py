"""fleet_speed: simulated requests per CPU second on fleets of several sizes, beside one replica in the same run.

Every replica has its share of the traffic and of the adapters: 15.6 requests/s and 156 adapters, so that 64 replicas
serve 1,000 requests/s for 10,000 adapters. Each measurement has a process of its own. See bench/README.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np

from bench.sim_speed import RANK_BYTES, calibrate, lognormal
from loratory.experiment.policy_spec import policy_factory
from loratory.experiment.router_spec import router_factory
from loratory.serving.config import EngineConfig
from loratory.serving.lora import Adapter, LoRARequest
from loratory.serving.workload import Workload
from loratory.sim.catalogue import gpu, model
from loratory.sim.cluster import simulate
from loratory.sim.cost import cost_model, kv_blocks

RATE, ADAPTERS = 1000 / 64, 10_000 / 64
"""Requests a second, and adapters, for each replica."""


def workload(requests: int, adapters: int, rate: float, seed: int) -> Workload:
    """Poisson arrivals, prompts of 256 tokens and outputs of 96 in the mean, Zipf 1.0 over adapters."""
    rng = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, adapters + 1)
    output = lognormal(rng, 96.0, 0.8, requests, 500)
    return Workload(
        arrival=np.cumsum(rng.exponential(1.0 / rate, requests)),
        adapter=rng.choice(adapters, requests, p=weights / weights.sum()),
        tenant=np.zeros(requests, dtype=np.int64),
        prompt_tokens=lognormal(rng, 256.0, 0.96, requests, 4000),
        output_tokens=output,
        max_tokens=np.full(requests, output.max()),
        adapters=tuple(f"a{i}" for i in range(1, adapters + 1)),
        tenants=("default",),
    )


def measure(replicas: int, options: argparse.Namespace) -> dict[str, float]:
    """One simulation in this process, without records: CPU seconds, the peak of memory and how it ended."""
    spec, card = model("llama-3.1-8b"), gpu("h100-80gb")
    config = EngineConfig(
        max_num_batched_tokens=8192, max_num_seqs=256, max_loras=32, max_cpu_loras=256, max_lora_rank=16
    )
    config = config.model_copy(update={"num_gpu_blocks": kv_blocks(spec, card, config).num_gpu_blocks})
    cost = cost_model("roofline", spec, card, config)
    count = round(ADAPTERS * replicas)
    work = workload(options.requests, count, RATE * replicas, options.seed)
    adapters = [
        Adapter(LoRARequest(f"a{i}", i, f"adapters/a{i}"), rank, rank * RANK_BYTES)
        for i in range(1, count + 1)
        for rank in [8 if i % 2 else 16]
    ]
    start = time.process_time()
    end = simulate(
        work,
        adapters=adapters,
        config=config,
        policy=policy_factory(options.policy),
        cost=cost,
        replicas=replicas,
        router=router_factory(options.router)(),
        **({"metrics_delay_s": options.delay} if options.delay else {}),
    )
    cpu_s = time.process_time() - start
    assert end.submitted == options.requests, end
    return {"cpu_s": cpu_s, "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "end_s": end.end_s}


def main() -> None:
    """Each run gets a process of its own; the rounds of all sizes take turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--policy", default="fifo")
    parser.add_argument("--router", default="lora_affinity")
    parser.add_argument("--delay", type=float, default=0.0, help="metrics_delay_s")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profile", type=int, metavar="N", help="print the N costliest functions of the first size")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options)))
        return
    if options.profile:
        import cProfile
        import pstats

        profile = cProfile.Profile()
        profile.runcall(measure, options.replicas[0], options)
        pstats.Stats(profile).sort_stats("tottime").print_stats(options.profile)
        return
    print(f"plain loop of 10**7 additions: {calibrate():.2f} CPU s")
    best: dict[int, dict[str, float]] = {}
    for _ in range(options.repeat):
        for replicas in options.replicas:
            command = [sys.executable, "-m", "bench.fleet_speed", *sys.argv[1:], "--one", str(replicas)]
            run = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            if replicas not in best or run["cpu_s"] < best[replicas]["cpu_s"]:
                best[replicas] = run
    print(f"{'replicas':>8}{'CPU s':>9}{'requests per CPU s':>20}{'of one replica':>16}{'peak RSS MB':>13}")
    one = best.get(1)
    for replicas, run in best.items():
        share = "" if one is None else f"{one['cpu_s'] / run['cpu_s']:.2f}"
        rate = options.requests / run["cpu_s"]
        print(f"{replicas:>8}{run['cpu_s']:>9.2f}{rate:>20,.0f}{share:>16}{run['rss_mb']:>13.0f}", flush=True)


if __name__ == "__main__":
    main()
