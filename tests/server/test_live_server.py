"""The whole server: swaps under traffic, what it records, and that both backends and the replay read it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import given, settings
from running_server import PATIENCE_S, RunningServer, TinyFiles
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from loratory.errors import InputError
from loratory.experiment.execute import execute_scenario
from loratory.experiment.replay import replay_folder
from loratory.experiment.run import run_scenario
from loratory.experiment.shadow_report import shadow_report
from loratory.scenarios.load import load_scenario

TOKEN = "a-token"
ADMIN = {"authorization": f"Bearer {TOKEN}"}
ENGINE = {"num_gpu_blocks": 1000, "max_num_seqs": 6, "max_loras": 2, "max_cpu_loras": 3}


@pytest.fixture(scope="module")
def recorded(tiny: TinyFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recording of a server whose policy was swapped, and whose adapters came, went and were pinned."""
    folder = tmp_path_factory.mktemp("served") / "rec"
    given = tiny.settings(
        admin_token=TOKEN, record=folder, shadow="drain", shadow_share=1.0, engine=ENGINE,
        allow_runtime_lora=True, lora_roots=(tiny.folder,), policy="fair_share",
    )  # fmt: skip
    more = tiny.adapter("more", rank=4, seed=9)

    def ask(number: int) -> Any:
        body = {
            "model": ("tiny", "a0", "a1", "a2")[number % 4], "prompt": "x" * (1 + number % 9), "max_tokens": 12,
            "temperature": 0, "user": f"u{number % 3}",
        }  # fmt: skip
        return running.http.post("/v1/completions", json=body).status_code

    with RunningServer(given) as running, ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, number) for number in range(24)]
        swap = running.http.post("/admin/policy", json={"policy": "slora"}, headers=ADMIN, timeout=120)
        assert swap.status_code == 200 and swap.json()["before"] == "fair_share", swap.text
        asked += [pool.submit(ask, number) for number in range(24)]
        assert running.post("/admin/adapters/a1/pin", None, **ADMIN).json() == {"adapter": "a1@1"}
        loaded = running.post("/v1/load_lora_adapter", {"lora_name": "more", "lora_path": str(more)})
        assert loaded.status_code == 200, loaded.text
        assert running.text("more") and running.text("a0")
        assert running.post("/v1/unload_lora_adapter", {"lora_name": "more"}).status_code == 200
        assert {each.result() for each in asked} == {200}
        state = running.http.get("/admin/state", headers=ADMIN).json()
        assert state["policy"] == "slora" and {"a0@1", "a1@1", "a2@1"} <= {each["name"] for each in state["adapters"]}
        metrics = running.http.get("/metrics").text
        assert 'policy="slora"' in metrics
    return folder


@pytest.mark.slow
def test_a_server_s_recording_replays_to_the_same_decisions(recorded: Path) -> None:
    (again,) = replay_folder(recorded)
    assert again.differs is None and again.policy == "fair_share" and again.decisions > 50


@pytest.mark.slow
def test_what_was_asked_runs_in_simulation_and_on_the_executor(recorded: Path, tmp_path: Path) -> None:
    for on in (run_scenario, execute_scenario):
        scenario = load_scenario(recorded / "scenario.yaml", ["executor.time_scale=20"], ["deficit"])
        summary = on(scenario, tmp_path / on.__name__)
        (run,) = summary["runs"]
        assert run["requests"]["completed"] == 50
    assert replay_folder(tmp_path / "execute_scenario")[0].differs is None


@pytest.mark.slow
def test_the_shadow_beside_it_has_a_log(recorded: Path) -> None:
    report = shadow_report(recorded)
    assert report.live == ("fair_share", "slora") and report.ended == "" and report.compared > 0


@pytest.fixture(scope="module")
def running(tiny: TinyFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("admin")
    with RunningServer(tiny.settings(admin_token=TOKEN, policy_roots=(folder,), engine=ENGINE)) as running:
        yield running


def test_requests_made_from_the_document_get_no_5xx(running: RunningServer) -> None:
    """The trial of a policy would take seconds each: what is refused before it is enough here."""
    schema = schemathesis.openapi.from_dict(running.http.get("/openapi.json").json())
    checks = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)
    tried = []
    for found in schema.get_all_operations():
        operation = found.ok()
        if not operation.path.startswith("/admin"):
            continue

        @settings(max_examples=3)
        @given(operation.as_strategy())
        def check(case: schemathesis.Case) -> None:
            case.headers = {**(case.headers or {}), **ADMIN}
            case.validate_response(case.call(base_url=running.url, timeout=PATIENCE_S), checks=checks)

        check()
        tried.append(operation.label)
    assert len(tried) == 9
    assert running.post("/admin/drain", {"on": False}, **ADMIN).json()["draining"] is False
    assert running.text("a0")


def test_a_drained_server_turns_new_requests_away(running: RunningServer) -> None:
    assert running.post("/admin/drain", {"on": True}, **ADMIN).status_code == 200
    answer = running.post("/v1/completions", {"prompt": "x", "max_tokens": 1})
    assert answer.status_code == 503 and "retry-after" in answer.headers
    assert running.post("/admin/drain", {"on": False}, **ADMIN).status_code == 200
    assert running.text()


def test_a_server_whose_recording_or_shadow_cannot_be_does_not_start(tiny: TinyFiles, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="which no recording wrote"), RunningServer(tiny.settings(record=tmp_path)):
        pass
    with pytest.raises(InputError, match="add --record DIR"), RunningServer(tiny.settings(shadow="drain")):
        pass
    with (
        pytest.raises(InputError, match="did you mean 'drain'"),
        RunningServer(tiny.settings(shadow="drian", record=tmp_path / "rec")),
    ):
        pass
