"""Records of the real engine, driven by a toy backend: the laws of the records hold there too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from loratory.policies.fifo import Fifo
from loratory.reports import Recorder, RunInfo, summarise
from loratory.serving.config import EngineConfig
from loratory.serving.engine import Engine
from loratory.serving.lora import Adapter, LoRARequest
from loratory.serving.plan import BatchShape, StepResult
from loratory.serving.request import Request

CONFIG = EngineConfig(max_num_seqs=8, max_num_batched_tokens=256, num_gpu_blocks=60, max_loras=2, max_cpu_loras=5)


class Cost:
    """Steps and loads of simple lengths."""

    def step_seconds(self, shape: BatchShape) -> float:
        """A constant and a little for each token."""
        return 0.01 + 1e-4 * shape.tokens

    def load_seconds(self, adapter: Adapter, tier: str) -> float:
        """The same from everywhere."""
        return 0.05


def _drive(recorder: Recorder, requests: list[Request], outputs: dict[str, int]) -> float:
    """Run to the end, one step at a time; returns the time it took."""
    adapters = [Adapter(LoRARequest(f"a{n}", n + 1, "x"), 8, 1000) for n in range(5)]
    engine = Engine(CONFIG, adapters, Fifo(), Cost(), sink=recorder.sink(0))
    now, due = 0.0, list(reversed(requests))
    while due or engine.unfinished:
        while due and due[-1].arrival <= now:
            engine.submit(due.pop())
        plan = engine.plan(now)
        if plan is None:
            now = due[-1].arrival
            continue
        load_s = sum(0.05 for load in plan.loads if not load.prefetch)
        ended = [s.request_id for s in plan.decodes if s.generated + 1 >= outputs[s.request_id]]
        sampled = [p.sequence for p in plan.prefills if p.completes]
        ended += [s.request_id for s in sampled if s.generated + 1 >= outputs[s.request_id]]
        now += load_s + (Cost().step_seconds(plan.shape) if plan.computes else 0.0)
        engine.commit(plan, StepResult(1, ended, load_s), now)
    return now


def test_records_of_the_engine_keep_the_laws(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    outputs = {str(n): int(rng.integers(1, 40)) for n in range(150)}
    requests = [
        Request(str(n), None if n % 7 == 0 else f"a{int(rng.integers(5))}", n * 0.05, int(rng.integers(1, 300)), 64)
        for n in range(150)
    ]
    with Recorder(tmp_path) as recorder:
        end = _drive(recorder, requests, outputs)
    records = recorder.close()
    run = summarise(records, RunInfo("s", "fifo", submitted=150, duration_s=end)).run
    assert run["requests"]["completed"] == 150 and run["engine"]["preemptions"] > 0
    for row in records.requests.read().to_pylist():
        parts = [row[name] for name in ("queue_s", "load_wait_s", "prefill_s", "decode_s", "preempted_s")]
        assert sum(parts) == pytest.approx(row["finish"] - row["arrival"], abs=1e-9)
        assert row["output_tokens"] == outputs[row["request_id"]]
    steps = records.steps.read().to_pandas()
    assert (steps["start"].to_numpy()[1:] >= steps["end"].to_numpy()[:-1] - 1e-12).all()
    assert steps["load_s"].sum() == pytest.approx(run["adapters"]["stall_s"])
    decoded = (steps["decode_seqs"] * steps["steps"]).sum()
    assert 0 <= sum(outputs.values()) - 150 - decoded <= run["engine"]["preemptions"]
    lines = [json.loads(line) for line in (tmp_path / "decisions.jsonl").read_text().splitlines()]
    admitted = [line["request"] for line in lines if line["action"] == "admit" and line["outcome"] == "ok"]
    assert set(admitted) == set(outputs)
    loaded = [line for line in lines if line["action"] == "load" and line["outcome"] == "ok"]
    assert run["adapters"]["loads"] == len(loaded)
