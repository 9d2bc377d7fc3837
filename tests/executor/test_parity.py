"""Decision parity: a real run, replayed in simulation with its own times, decides the same, line by line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from bench_machine import Zoo, run
from roster import POLICIES

from loratory.reports.recorder import Recorder
from loratory.serving.config import EngineConfig
from loratory.serving.engine import Engine
from loratory.serving.run_recording import Recording
from loratory.sim.recorded_times import replay
from loratory.testing import ToyCost, workload

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


TURNS = [
    {**row, "at": round(0.03 * (i % 10), 2), "after": i - 10 if i >= 10 else -1, "delay": 0.01 * (i % 3)}
    for i, row in enumerate(ROWS)
]
"""Ten sessions of four turns."""


def _with_delays(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows in the order of the earliest seconds they can arrive at, as a workload wants them."""
    rows = [dict(row) for row in rows]
    for row in rows:
        if row["after"] >= 0:
            row["at"] = rows[row["after"]]["at"] + row["delay"]
    order = sorted(range(len(rows)), key=lambda i: (rows[i]["at"], i))
    place = {old: new for new, old in enumerate(order)}
    return [{**rows[i], "after": place.get(rows[i]["after"], -1)} for i in order]


@pytest.mark.parametrize("concurrency", [None, 3])
@pytest.mark.parametrize("policy", ["fifo", "fair_share", "deadline"])
def test_turns_follow_the_ends_of_turns_and_replay_alike(
    llama: Zoo, tmp_path: Path, policy: str, concurrency: int | None
) -> None:
    """In real time a turn arrives when the one before has ended and its delay is over, or the engine next looks."""
    config = EngineConfig(
        max_loras=2, max_cpu_loras=3, max_lora_rank=8, max_num_seqs=4, max_num_batched_tokens=16, num_gpu_blocks=20,
        block_size=4, adapter_loading="sync",
    )  # fmt: skip
    work = workload(_with_delays(TURNS), llama.adapters, concurrency=concurrency)
    real, again = tmp_path / "real", tmp_path / "again"
    real.mkdir()
    again.mkdir()
    with Recorder(real) as recorder:
        ran = run(llama.machine(config), llama.adapters, work, POLICIES[policy](), ToyCost(), sink=recorder.sink(0))
    assert len(ran.ends) == len(TURNS) and ran.outcome.submitted == len(TURNS)
    recording = ran.executor.recording()
    arrival = {request.request_id: request.arrival for request in recording.requests}
    assert list(arrival.values()) == sorted(arrival.values())
    ended = dict(zip(*_columns(real, "request_id", "finish"), strict=True))
    assert work.after is not None and work.delay_s is not None
    for turn, before in enumerate(work.after.tolist()):
        if before >= 0:
            due = ended[str(before)] + float(work.delay_s[turn])
            assert due <= arrival[str(turn)] <= due + 1.0
    with Recorder(again) as recorder:
        engine = Engine(config, llama.adapters, POLICIES[policy](), ToyCost(), sink=recorder.sink(0))
        replay(engine, recording)
    assert (real / "decisions.jsonl").read_text() == (again / "decisions.jsonl").read_text()
    assert engine.unfinished == 0


def test_a_cutoff_leaves_later_turns_unsent(llama: Zoo) -> None:
    config = EngineConfig(max_loras=2, max_lora_rank=8, max_num_seqs=4, num_gpu_blocks=20, block_size=4)
    work = workload(_with_delays(TURNS), llama.adapters)
    ran = run(llama.machine(config), llama.adapters, work, POLICIES["fifo"](), ToyCost(), cutoff_s=0.5)
    assert ran.outcome.cut_off and len(ran.ends) == ran.outcome.submitted < len(TURNS)


class _Leaves:
    """Leaves every request waiting for ever."""

    def schedule(self, view: Any) -> Any:
        yield from ()


def test_turns_that_are_never_served_end_after_one_another(llama: Zoo) -> None:
    config = EngineConfig(max_loras=2, max_lora_rank=8, max_num_seqs=4, num_gpu_blocks=20, block_size=4)
    work = workload(_with_delays(TURNS), llama.adapters)
    ran = run(llama.machine(config), llama.adapters, work, _Leaves(), ToyCost())
    assert len(ran.ends) == ran.outcome.never_served == len(TURNS) == ran.outcome.submitted
    assert {status for status, _ in ran.ends.values()} == {"failed"}


def _columns(folder: Path, *names: str) -> list[list[Any]]:
    table = pq.read_table(folder / "requests.parquet")
    return [table[name].to_pylist() for name in names]


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
