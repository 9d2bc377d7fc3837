"""server_cost: a profile, measured or given or assumed, that a recording can hold and that never changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the server needs torch")

import torch
from bench_machine import Zoo

import loratory.server.cost as server_costs
from loratory.errors import InputError
from loratory.server.cost import ASSUMED, server_cost
from loratory.server.settings import ServerSettings
from loratory.serving.config import EngineConfig
from loratory.serving.plan import BatchShape
from loratory.sim.cost.profile import ProfileCost, load_profile

CONFIG = EngineConfig(max_loras=2, num_gpu_blocks=128, block_size=4, max_num_seqs=8, max_num_batched_tokens=64)
SHAPES = [BatchShape(5, 15.0, 1), BatchShape(decode_seqs=3, kv_tokens=40, distinct_adapters=1, sum_ranks=4, max_rank=4)]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return Zoo.make(tmp_path_factory.mktemp("zoo"), "llama")


def test_what_is_measured_at_the_start_is_a_profile_that_reads_back_equal(zoo: Zoo, tmp_path: Path) -> None:
    machine = zoo.machine(CONFIG)
    cost = server_cost(ServerSettings("x", measure_s=60), machine)
    assert cost.profile.name == "measured at start" and cost.profile.samples == 15
    assert cost.step_seconds(SHAPES[0]) > 0 and cost.load_seconds(zoo.adapters[0], "disk") > 0
    assert cost.profile.load.per_byte_s + cost.profile.load.fixed_s > 0 and machine.files == zoo.files
    cost.profile.save(tmp_path / "profile.json")
    again = ProfileCost(load_profile(tmp_path / "profile.json"))
    assert [again.step_seconds(shape) for shape in SHAPES] == [cost.step_seconds(shape) for shape in SHAPES]
    assert again.load_seconds(zoo.adapters[1], "disk") == cost.load_seconds(zoo.adapters[1], "disk")


def test_a_profile_is_taken_as_it_is_and_a_bad_one_is_refused(zoo: Zoo, tmp_path: Path) -> None:
    machine = zoo.machine(CONFIG)
    given = server_cost(ServerSettings("x", profile=Path("loratory-cpu-56m")), machine)
    assert given.profile == load_profile("loratory-cpu-56m")
    with pytest.raises(InputError, match="profile"):
        server_cost(ServerSettings("x", profile=tmp_path / "gone.json"), machine)


def test_without_measuring_the_times_are_those_the_guide_states(zoo: Zoo) -> None:
    cost = server_cost(ServerSettings("x", measure_s=0), zoo.machine(CONFIG))
    assert cost.profile is ASSUMED and cost.warnings
    assert cost.step_seconds(BatchShape(decode_seqs=10)) == pytest.approx(0.03)
    adapter = replace(zoo.adapters[0], bytes=10**9)
    assert cost.load_seconds(adapter, "host") == pytest.approx(1.005)
    assert cost.load_seconds(adapter, "disk") == pytest.approx(1.02)


def test_a_context_too_short_to_measure_has_the_assumed_times(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(server_costs.LOG, "warning", lambda text, *values: said.append(text % values))
    machine = zoo.machine(CONFIG.model_copy(update={"max_model_len": 6}))
    assert server_cost(ServerSettings("x", measure_s=1.0), machine).profile is ASSUMED
    assert said[0].startswith("policies are told assumed times of steps and loads, because 1 s were too short")
