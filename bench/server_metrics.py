"""Server metrics: what counting costs the engine's thread in a step of 64 requests, and what a scrape costs.

    python bench/server_metrics.py

Runs one engine with and without the metrics' sink, without a model, so that the difference is the sink's own.
"""

from __future__ import annotations

import time
from statistics import median

from loratory.policies.fifo import Fifo
from loratory.server.metrics import ServerMetrics
from loratory.serving.config import EngineConfig
from loratory.serving.engine import Engine
from loratory.serving.lora import Adapter, LoRARequest
from loratory.serving.plan import StepResult
from loratory.serving.request import Request
from loratory.testing import ToyCost

BATCH, STEPS, ADAPTERS, TENANTS = 64, 3000, 64, 64
CONFIG = EngineConfig(
    max_num_seqs=BATCH, max_num_batched_tokens=2048, num_gpu_blocks=4000, max_loras=16, max_cpu_loras=64
)


def run(metrics: ServerMetrics | None) -> float:
    """Milliseconds of a step: plan, tokens, commit. Requests of 64 tokens come and go: one of each a step."""
    adapters = [Adapter(LoRARequest(f"adapter-{n}@1", n + 1, "x"), 8, 1000) for n in range(ADAPTERS)]
    engine = Engine(CONFIG, adapters, Fifo(), ToyCost(), sink=None if metrics is None else metrics.sink)
    now, sent, times = 0.0, 0, []
    for step in range(STEPS):
        while sent < BATCH * 2 + step:
            adapter = f"adapter-{sent % ADAPTERS}@1"
            engine.submit(Request(str(sent), adapter, now, 32, 64, f"tenant-{sent % TENANTS}"))
            sent += 1
        began = time.perf_counter()
        plan = engine.plan(now)
        assert plan is not None
        sampled = [s.request_id for s in plan.decodes] if plan.decode_count else []
        sampled += [p.sequence.request_id for p in plan.prefills if p.completes]
        now += 0.05
        if metrics is not None:
            for request_id in sampled:
                metrics.token(request_id, now)
        engine.commit(plan, StepResult(1), now)
        times.append(time.perf_counter() - began)
    return median(times[STEPS // 3 :]) * 1e3


def main() -> None:
    """Print both."""
    bare = min(run(None) for _ in range(3))
    metrics = [ServerMetrics(CONFIG, "base") for _ in range(3)]
    counted = min(run(each) for each in metrics)
    print(f"step of {BATCH}: {bare:.3f} ms bare, {counted:.3f} ms counted, {counted - bare:.3f} ms more")
    for which in ("first", "next"):
        began = time.perf_counter()
        text, _ = metrics[0].render()
        took = (time.perf_counter() - began) * 1e3
        print(
            f"{which} scrape within a second: {took:.0f} ms, {len(text) / 1e3:.0f} kB, {len(text.splitlines()):,} lines"
        )


if __name__ == "__main__":
    main()
