"""Every key of a scenario: another value changes what runs or what is reported, or is refused by name.

`every_key` has an entry for each key of each section; a key without one fails `test_no_key_is_forgotten`.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from every_key import BASE, EXECUTOR, KERNELS, KEYS, PLAN, TOLD, TOLD_WITH

from loratory.adapters.files.description import AdapterDescription, LoRAModule
from loratory.adapters.record import Registration
from loratory.adapters.registry.registry import Registry
from loratory.errors import InputError
from loratory.experiment.backend import Task, simulate_task
from loratory.experiment.policy_spec import policy_factory
from loratory.experiment.resolve import build
from loratory.experiment.run import run_scenario
from loratory.scenarios.build import build_workload
from loratory.scenarios.load import load_text
from loratory.scenarios.reference import sections
from loratory.scenarios.schema import Scenario
from loratory.serving.events import Event
from loratory.serving.workload import Workload

CASES = Path(__file__).resolve().parents[1] / "cases"


def test_no_key_is_forgotten() -> None:
    fields = [(path, key, field) for path, model in sections().items() for key, field in model.model_fields.items()]
    known = {(path, field.alias or key) for path, key, field in fields}
    said = {(path, key) for path, keys in (*KEYS.items(), *TOLD.items(), *PLAN.items()) for key in keys}
    said |= {("executor", key) for key in EXECUTOR} | {("", "executor"), ("", "plan")}
    assert known - said == set() and said - known == set()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that the scenarios name: traces, registries."""
    place = tmp_path_factory.mktemp("keys")
    header = (
        "timestamp,input_tokens,output_tokens,adapter,client,tenant,cached_tokens,session_id,priority,max_tokens,"
        "deadline_s,other,more\n"
    )
    rows = [
        f"{i},{30 + i},{i % 4},a{i % 2},c{i % 3},t{i % 2},{i % 5},s{i},{i % 3},{5 + i % 2},{i % 2 + 1},"
        f"{50 + i % 3},{2 * i + 1}"
        for i in range(9)
    ]
    (place / "labelled.csv").write_text(header + "\n".join(rows) + "\n")
    (place / "trace.csv").write_text("other\n77\n")
    trace = [
        {"timestamp": 500 * i, "input_length": 1024, "output_length": 5, "hash_ids": [1, i % 3], "other": [i, i]}
        for i in range(12)
    ]
    (place / "trace.jsonl").write_text("".join(json.dumps(row) + "\n" for row in trace))
    module = (LoRAModule("model.layers.0.self_attn.q_proj", "q_proj", 0, 8, 1.0, 4096, 4096, "a", "b"),)
    for name, count in (("adapters.db", 3), ("other.db", 2)):
        with Registry(place / name) as registry:
            for i in range(count):
                said = AdapterDescription(8, 16.0, False, ("q_proj",), "base", "BF16", 4096, f"sha256:{i:064x}", module)
                more = {"tenant": "acme", "labels": {"env": "prod"}} if i == 0 else {}
                registry.add_many([Registration(f"r{i}", f"/r{i}", said, **more)])
    return place


def loaded(folder: Path, overrides: tuple[str, ...]) -> Scenario:
    return load_text(BASE, "base.yaml", folder, overrides)


@cache
def effect(folder: Path, overrides: tuple[str, ...]) -> str:
    """A digest of what a run is given and of everything that happens in it."""
    scenario = loaded(folder, overrides)
    built = build(scenario)

    def seen_event(event: Event) -> None:
        seen.append(repr(event))

    seen: list[Any] = [built.adapters, built.notes, built.memory, built.engine.num_gpu_blocks]
    for policy in scenario.policies:
        for seed in scenario.seeds:
            workload = build_workload(scenario, seed, built.adapters)
            seen.append(columns_of(workload))
            task = Task(scenario, policy, seed, None, decisions=False, timeline_events=0)
            outcome = simulate_task(task, built, workload, policy_factory(policy), lambda _: seen_event)
            seen.append(outcome)
    return hashlib.sha256(repr(seen).encode()).hexdigest()


def columns_of(workload: Workload) -> list[object]:
    """Every column as plain values."""
    return [
        value.tolist() if isinstance(value, np.ndarray) else value
        for value in (getattr(workload, name) for name in Workload.__dataclass_fields__)
    ]


@pytest.mark.parametrize(
    ("path", "key"), [(path, key) for path, keys in KEYS.items() for key in keys], ids=lambda part: part or "scenario"
)
def test_a_key_changes_what_runs_or_is_refused(folder: Path, path: str, key: str) -> None:
    given, changed = KEYS[path][key]
    if given == KERNELS and find_spec("aiconfigurator_core") is None:
        pytest.skip("AIConfigurator's tables are not installed: loratory[kernels]")
    before = effect(folder, given)
    try:
        after = effect(folder, (*given, *changed))
    except InputError as error:
        assert key in str(error)
        return
    assert before != after


@cache
def told(folder: Path, overrides: tuple[str, ...]) -> str:
    """What a result tells a reader: its summary, and the report's title and sentence."""
    scenario = loaded(folder, overrides)
    summary = run_scenario(scenario)
    return json.dumps([scenario.name, scenario.description, build(scenario).cost.source, summary], default=str)


@pytest.mark.parametrize(("path", "key"), [(path, key) for path, keys in TOLD.items() for key in keys])
def test_a_key_changes_what_a_result_tells(folder: Path, path: str, key: str) -> None:
    given = TOLD_WITH.get(f"{path}.{key}", TOLD_WITH.get(path, ()))
    where = path.split(" ")[0].replace("[]", ".0")
    setting = f"{where}.{key}={TOLD[path][key]}" if where else f"{key}={TOLD[path][key]}"
    assert told(folder, given) != told(folder, (*given, setting))
