"""Decision parity: a real run, replayed in simulation with its own times, decides the same, line by line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bench_machine import Zoo, run
from lab import POLICIES, ToyCost, workload

from reports.recorder import Recorder
from serving.config import EngineConfig
from serving.engine import Engine
from serving.recording import Recording
from sim.replay import replay

ROWS: list[dict[str, Any]] = [
    {
        "at": round(0.03 * i, 2),
        "adapter": (1, 2, 3, None, 1, 4, 5, 2)[i % 8],
        "tenant": i % 3,
        "prompt": 3 + 7 * i % 29,
        "out": 1 + 5 * i % 9,
        "cap": 10,
        "priority": i % 3,
        "slack": 1.0 + i % 4 if i % 5 == 0 else 1e6,
    }
    for i in range(40)
]


@pytest.mark.parametrize("loading", ["sync", "async"])
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_real_run_replayed_in_simulation_makes_the_same_decisions(
    llama: Zoo, tmp_path: Path, policy: str, loading: str
) -> None:
    config = EngineConfig(
        max_loras=2, max_cpu_loras=3, max_lora_rank=8, max_num_seqs=4, max_num_batched_tokens=16, num_gpu_blocks=20,
        block_size=4, adapter_loading=loading,  # type: ignore[arg-type]
    )  # fmt: skip
    real, again = tmp_path / "real", tmp_path / "again"
    real.mkdir()
    again.mkdir()
    with Recorder(real) as recorder:
        work = workload(ROWS, llama.adapters)
        ran = run(llama.machine(config), llama.adapters, work, POLICIES[policy](), ToyCost(), sink=recorder.sink(0))
    ran.executor.recording().write(tmp_path / "recording.jsonl")
    recording = Recording.read(tmp_path / "recording.jsonl")
    assert recording == ran.executor.recording()
    with Recorder(again) as recorder:
        engine = Engine(config, llama.adapters, POLICIES[policy](), ToyCost(), sink=recorder.sink(0))
        replay(engine, recording)
    decisions = (real / "decisions.jsonl").read_text()
    assert decisions == (again / "decisions.jsonl").read_text()
    assert decisions.count("\n") >= len(ROWS) and engine.unfinished == 0
