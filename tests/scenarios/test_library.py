"""The scenarios that come with Loratory, and the pages that describe scenario files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from loratory.scenarios.build import build_adapters, build_workload
from loratory.scenarios.library_index import LibraryEntry, library
from loratory.scenarios.load import dump, load_scenario, load_text
from loratory.scenarios.reference import sections, tables
from loratory.scenarios.traces import formats
from loratory.sim.catalogue import gpu, model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=library(), ids=lambda entry: entry.name)
def entry(request: pytest.FixtureRequest) -> LibraryEntry:
    found: LibraryEntry = request.param
    return found


def test_each_is_valid_explained_small_and_in_the_catalogue(entry: LibraryEntry) -> None:
    scenario = load_scenario(entry.name)
    text = entry.path.read_text()
    assert scenario.name == entry.name and scenario.description == entry.description
    assert text.startswith("# ") and "Look at:" in text
    assert model(scenario.model).name == scenario.model and gpu(scenario.gpu).name == scenario.gpu
    workload = build_workload(scenario, scenario.seeds[0], build_adapters(scenario, lambda rank: rank))
    assert 200 <= len(workload) <= 9000
    assert load_text(dump(scenario)) == scenario


def test_there_are_at_least_twelve_with_different_descriptions() -> None:
    entries = library()
    assert len(entries) >= 12
    assert len({entry.description for entry in entries}) == len(entries)


def test_every_router_and_both_memories_have_a_scenario() -> None:
    loaded = [load_scenario(entry.name) for entry in library()]
    routers = {s.cluster.router for s in loaded if s.cluster.replicas == 4}
    assert routers >= {"round_robin", "least_loaded", "lora_affinity", "rendezvous"}
    assert {s.engine.memory for s in loaded} == {"slots", "unified"}


def test_the_reference_of_keys_is_the_schema() -> None:
    page = (ROOT / "docs" / "scenarios.md").read_text()
    assert tables() in page, "run: python -m loratory.scenarios.reference docs/scenarios.md"
    assert len(sections()) > 20


@pytest.mark.parametrize("page", ["scenarios.md", "traces.md"])
def test_examples_in_the_pages_load(page: str, tmp_path: Path) -> None:
    (tmp_path / "requests.csv").write_text("when,in,out,lora\n0,5,5,a\n")
    (tmp_path / "lengths.txt").write_text("5\n")
    text = (ROOT / "docs" / page).read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, flags=re.S)
    whole = [block for block in blocks if block.startswith("name:")]
    assert whole and blocks
    for block in whole:
        load_text(block, page, tmp_path)
    for block in blocks:
        if block.startswith(("workload:", "adapters:", "tenants:", "cost:", "tiers:")):
            load_text(SHELL[block.split(":")[0]] + block, page, tmp_path)


_HEAD = "name: x\nmodel: llama-3.1-8b\ngpu: l4\nengine: {max_loras: 8, max_lora_rank: 64}\n"
_WORK = "workload: {arrivals: 1, input_tokens: 9, output_tokens: 9, duration_s: 9}\n"
SHELL = {
    "workload": _HEAD + "adapters: {count: 20}\n",
    "adapters": _HEAD + _WORK,
    "tenants": _HEAD + "adapters: {count: 20}\n" + _WORK,
    "cost": _HEAD + _WORK,
    "tiers": _HEAD + _WORK,
}


def test_every_trace_format_has_a_heading() -> None:
    page = (ROOT / "docs" / "traces.md").read_text()
    for entry in formats():
        assert f"\n### {entry.name}" in page
