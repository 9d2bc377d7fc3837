"""Scenarios whose adapters are those of a registry: real ids, ranks and sizes, to the byte in the simulation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from adapters_on_disk import tensors, write

from loratory.adapters.fetch import AdapterFetcher
from loratory.adapters.registry.registry import Registry
from loratory.adapters.sources.cache import AdapterCache
from loratory.errors import InputError
from loratory.experiment.resolve import build
from loratory.experiment.run import run_scenario
from loratory.scenarios.build import build_adapters, build_workload
from loratory.scenarios.load import dump, load_scenario
from loratory.scenarios.schema import Scenario

ROOT = Path(__file__).resolve().parents[2]
TEXT = """\
name: real
model: llama-3.1-8b
gpu: h100-80gb
engine: {max_loras: 2, max_cpu_loras: 8, max_lora_rank: 16}
adapters: {ADAPTERS}
workload: {arrivals: 6, input_tokens: 100, output_tokens: 20, duration_s: 10}
"""
RANKS = {"sql": 2, "chat": 3, "math": 5}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A registry, adapters.db, of sql (two versions), chat and math, of three ranks and two tenants."""
    with Registry(tmp_path / "adapters.db", "hash") as registry, AdapterCache(tmp_path / "cache") as cache:
        fetcher = AdapterFetcher(cache)

        def add(name: str, rank: int, seed: int, **more: Any) -> None:
            names = ("q_proj", "v_proj", "down_proj")[: 2 + (name == "math")]
            fields = {"r": rank, "target_modules": list(names), "base_model_name_or_path": "meta-llama/Llama-3.1-8B"}
            source = write(tmp_path / f"{name}-{seed}", fields, tensors(names, rank=rank, seed=seed))
            registry.add_many([fetcher.registration(name, str(source), **more)])

        for seed, (name, rank) in enumerate(RANKS.items()):
            add(name, rank, seed, tenant="acme" if name == "sql" else "other", labels={"env": "prod"})
        add("sql", 7, 9, tenant="acme", new_version=True)
    return tmp_path


def scenario(folder: Path, adapters: str, *overrides: str) -> Scenario:
    (folder / "s.yaml").write_text(TEXT.replace("{ADAPTERS}", adapters))
    return load_scenario(folder / "s.yaml", overrides)


def refusal(folder: Path, adapters: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        scenario(folder, adapters, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_ids_ranks_sizes_and_sources_are_the_records(folder: Path) -> None:
    loaded = scenario(folder, "{registry: adapters.db}")
    built = build(loaded)
    with Registry(folder / "adapters.db") as registry:
        records = [registry.resolve(name) for name in registry.names()]
    assert [adapter.name for adapter in built.adapters] == ["chat", "math", "sql"]
    for adapter, record in zip(built.adapters, records, strict=True):
        assert adapter.lora.lora_int_id == record.lora_int_id
        assert adapter.lora.lora_path == record.source
        assert adapter.lora.base_model_name == "meta-llama/Llama-3.1-8B"
        assert adapter.rank == record.rank
        assert adapter.bytes == 2 * record.parameters  # bfloat16
    assert {adapter.bytes for adapter in built.adapters} == {2 * 112 * 3 // 2, 2 * 112, 2 * (280 + 2 * 5 * 20)}
    assert loaded.adapters.target_modules == ["down_proj", "q_proj", "v_proj"]
    assert (
        scenario(folder, "{registry: adapters.db, target_modules: all-linear}").adapters.target_modules == "all-linear"
    )
    assert not [note for note in built.notes if "base model" in note]


def test_each_adapter_moves_its_own_bytes_in_the_simulation(folder: Path) -> None:
    """One client, loads that take bytes / bandwidth and nothing else: each adapter's first request waits just that."""
    tiers = "tiers: {host_bandwidth_bytes_s: 100.0, host_latency_s: 0}\n"
    (folder / "s.yaml").write_text(TEXT.replace("{ADAPTERS}", "{registry: adapters.db, initial_tier: host}") + tiers)
    one_client = ["workload.arrivals={closed_loop: {concurrency: 1}}", "workload.duration_s=null"]
    loading = ["engine.max_loras=3", "engine.adapter_loading=async", "workload.requests=60"]
    loaded = load_scenario(folder / "s.yaml", [*one_client, *loading])
    sizes = {each.name: each.bytes for each in build(loaded).adapters}
    run = run_scenario(loaded)["runs"][0]
    assert run["adapters"]["loads"] == 3 and len(set(sizes.values())) == 3
    for row in run["per_adapter"]:
        assert row["load_wait_s"] * row["requests"] == pytest.approx(sizes[row["adapter"]] / 100.0, rel=1e-6)


def test_names_choose_versions_and_keep_how_they_were_written(folder: Path) -> None:
    loaded = scenario(
        folder, "{registry: adapters.db, names: [sql@2, chat], popularity: {weights: {chat: 3, sql@2: 1}}}"
    )
    built = build(loaded)
    assert [(each.name, each.rank) for each in built.adapters] == [("sql@2", 7), ("chat", 3)]
    workload = build_workload(loaded, 0, built.adapters)
    assert workload.adapters == ("sql@2", "chat")
    both = scenario(folder, "{registry: adapters.db, names: [sql@2, sql], pinned: [sql]}")
    assert [each.pinned for each in build(both).adapters] == [False, True]
    ids = {each.lora.lora_int_id for each in build(both).adapters}
    assert len(ids) == 2


def test_filters_choose_by_tenant_and_labels(folder: Path) -> None:
    def names(adapters: str) -> tuple[str, ...] | None:
        return scenario(folder, adapters).adapters.known_names()

    assert names("{registry: {url: adapters.db, tenant: acme}}") == ("sql",)
    assert names("{registry: {url: adapters.db, labels: {env: prod}}}") == ("chat", "math", "sql")
    assert names("{registry: {url: adapters.db, base_model: meta-llama/Llama-3.1-8B}}") == ("chat", "math", "sql")


def test_the_resolved_scenario_runs_again_without_the_registry(folder: Path, tmp_path: Path) -> None:
    loaded = scenario(folder, "{registry: adapters.db, popularity: {zipf: 1.0}, pinned: 1}")
    first = run_scenario(loaded, str(tmp_path / "first"))  # a text is a folder, too
    with Registry(folder / "adapters.db") as registry:
        registry.promote("sql", 2)
        registry.remove("chat")
    (folder / "adapters.db").unlink()
    again = load_scenario(tmp_path / "first" / "scenario.yaml")
    assert again == loaded
    assert run_scenario(again) == first
    assert build_adapters(again, lambda rank: 0) == build_adapters(loaded, lambda rank: 0)
    moved = tmp_path / "moved" / "s.yaml"
    moved.parent.mkdir()
    moved.write_text(dump(loaded, moved.parent))
    assert load_scenario(moved) == loaded


def test_records_can_be_written_by_hand(folder: Path) -> None:
    one = "{name: a, lora_int_id: 7, rank: 4, parameters: 1000, source: hf://acme/a, target_modules: [q_proj]}"
    loaded = scenario(folder, f"{{records: [{one}]}}")
    (adapter,) = build(loaded).adapters
    assert (adapter.lora.lora_int_id, adapter.rank, adapter.bytes, adapter.lora.lora_path) == (
        7,
        4,
        2000,
        "hf://acme/a",
    )
    assert "repeats the lora_int_id" in refusal(folder, f"{{records: [{one}, {one.replace('name: a', 'name: b')}]}}")
    assert "repeats the name" in refusal(folder, f"{{records: [{one}, {one.replace(': 7', ': 8')}]}}")
    assert "cannot be combined with records" in refusal(folder, f"{{records: [{one}], count: 1}}")
    assert "cannot be combined with records" in refusal(folder, f"{{records: [{one}], names: [a]}}")
    assert "cannot be combined with records" in refusal(folder, f"{{records: [{one}], ranks: 8}}")
    assert "cannot be combined with registry" in refusal(folder, f"{{records: [{one}], registry: adapters.db}}")
    assert "lora_int_id should be at least 1" in refusal(folder, f"{{records: [{one.replace(': 7', ': 0')}]}}")
    assert "is empty" in refusal(folder, "{records: []}")


@pytest.mark.parametrize(
    ("adapters", "says"),
    [
        ("{registry: nowhere.db}", "s.yaml:5: adapters.registry"),
        ("{registry: s.yaml}", "is not a SQLite file"),
        ("{registry: empty.db}", "has no adapter: register some with loratory adapters add"),
        ("{registry: {url: adapters.db, tenant: nobody}}", "has no adapter that fits tenant and labels"),
        ("{registry: {url: adapters.db, labels: {env: test}}}", "has no adapter that fits tenant and labels"),
        ("{registry: {url: adapters.db, tenat: acme}}", "adapters.registry.tenat: unknown key; did you mean 'tenant'?"),
        (
            "{registry: {url: adapters.db, base_model: x}}",
            "base_model is 'x', but adapter 'chat' was trained on 'meta-llama/Llama-3.1-8B'",
        ),
        ("{registry: {tenant: acme}}", "adapters.registry.url is missing"),
        ("{registry: 3}", "adapters.registry should be a mapping"),
        ("{registry: 'postgresql://me:secret@db/x'}", "has a password, which would appear in results"),
        ("{registry: 'postgresql://db/x?password=secret'}", "has a password"),
        ("{registry: 'mysql://db/x'}", "a registry cannot be at"),
        ("{registry: adapters.db, count: 3}", "adapters.count cannot be combined with registry"),
        ("{registry: adapters.db, ranks: 16}", "adapters.ranks cannot be combined with registry"),
        ("{registry: adapters.db, names: [sqll]}", "adapters.names: no adapter is called 'sqll': did you mean 'sql'?"),
        ("{registry: adapters.db, names: [sql@9]}", "'sql@9' is not registered"),
        ("{registry: adapters.db, names: [sql, sql@1]}", "are one adapter, sql@1"),
        ("{registry: adapters.db, names: [sql, sql]}", "twice"),
        ("{registry: {url: adapters.db, tenant: acme}, names: [sql]}", "cannot be combined with tenant or labels"),
        ("{registry: adapters.db, popularity: {weights: {sqll: 1}}}", "did you mean 'sql'?"),
        ("{registry: adapters.db, pinned: [nobody]}", "nobody"),
    ],
)
def test_what_cannot_be_is_one_line(adapters: str, says: str, folder: Path) -> None:
    with Registry(folder / "empty.db"):
        pass
    said = refusal(folder, adapters)
    assert says in said and "secret" not in said


def test_a_rank_above_the_engines_names_the_adapter(folder: Path) -> None:
    said = refusal(folder, "{registry: adapters.db}", "engine.max_lora_rank=4")
    assert said.startswith(f"{folder / 's.yaml'}:5: adapters.registry has an adapter, 'math', of rank 5")
    assert "engine.max_lora_rank is 4: raise it to 5 or lower the rank" in said
    assert scenario(folder, "{registry: adapters.db, names: [sql, chat]}", "engine.max_lora_rank=4")


def test_another_base_model_is_a_note_of_the_run(folder: Path) -> None:
    loaded = scenario(folder, "{registry: adapters.db}", "model=mistral-7b")
    note = "adapters for another base model than mistral-7b: chat (for meta-llama/Llama-3.1-8B) and 2 more"
    assert note in build(loaded).notes
    assert note in run_scenario(loaded)["runs"][0]["warnings"]


def test_a_folder_whose_config_names_the_base_model_has_its_adapters(folder: Path) -> None:
    """The names are those that a server takes adapters by."""
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
        "max_position_embeddings": 1024, "torch_dtype": "bfloat16",
    }  # fmt: skip
    for name, more in (("mine", {}), ("named", {"_name_or_path": "meta-llama/Llama-3.1-8B"})):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config | more))
        for given in (folder / name, folder / name / "config.json"):
            notes = build(scenario(folder, "{registry: adapters.db}", f"model={given}")).notes
            assert any("another base model than mine" in note for note in notes) == (name == "mine")


def test_a_trace_may_name_the_registrys_adapters(folder: Path) -> None:
    (folder / "t.csv").write_text("time,input_tokens,output_tokens,adapter\n0,10,5,sql\n1,10,5,chat\n2,10,5,sql\n")
    text = TEXT.replace("{ADAPTERS}", "{registry: adapters.db}").split("workload:")[0]
    (folder / "s.yaml").write_text(text + "workload: {trace: t.csv, format: generic}\n")
    loaded = load_scenario(folder / "s.yaml")
    built = build(loaded)
    workload = build_workload(loaded, 0, built.adapters)
    assert [workload.adapters[place] for place in workload.adapter.tolist()] == ["sql", "chat", "sql"]
    (folder / "t.csv").write_text("time,input_tokens,output_tokens,adapter\n0,10,5,stranger\n")
    with pytest.raises(InputError, match="uses the adapter 'stranger'"):
        build_workload(load_scenario(folder / "s.yaml"), 0, built.adapters)


def test_postgresql_is_read_the_same(folder: Path, postgres_registry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        Registry(postgres_registry) as registry,
        AdapterCache(folder / "cache") as cache,
    ):
        registry.add_many([AdapterFetcher(cache).registration("sql", str(folder / "sql-0"))])
    parts = urlsplit(postgres_registry)
    monkeypatch.setenv("PGPASSWORD", str(parts.password))
    plain = postgres_registry.replace(f":{parts.password}@", "@")
    loaded = scenario(folder, json.dumps({"registry": plain}))
    assert [(each.name, each.rank) for each in build(loaded).adapters] == [("sql", 2)]


def test_scenarios_without_a_registry_need_no_database_library() -> None:
    code = (
        "import sys; sys.modules['sqlalchemy'] = None\n"
        "from loratory import load_scenario, run_scenario\n"
        "run_scenario(load_scenario('quickstart', ['seeds=[0]', 'workload.duration_s=5'], policies=['fifo']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
