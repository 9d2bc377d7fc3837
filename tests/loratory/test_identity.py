"""An id stands for one content: the executor serves no other under it, however the adapter was named or swapped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the executor needs torch")

import yaml
from command import Command, command_line
from servers import Server

from loratory.adapters.fetch import AdapterFetcher
from loratory.adapters.registry.registry import Registry
from loratory.adapters.sources.cache import AdapterCache
from loratory.executor.machine import Machine
from loratory.executor.random_checkpoint import hugging_face_config, model_config, random_adapter

SCENARIO = """
name: identity
model: config.json
gpu: l4
engine: {max_loras: 1, max_cpu_loras: 1, max_lora_rank: 8, max_num_seqs: 8, max_num_batched_tokens: 64,
         num_gpu_blocks: 100, block_size: 4, max_model_len: 64}
adapters: ADAPTERS
workload: {arrivals: 60, input_tokens: {uniform: [4, 10]}, output_tokens: 3, duration_s: 0.4}
executor: {dtype: float32, device: cpu, threads: 1}
"""
SWAPPED = "was registered with the digest sha256:"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's config, the adapters sql (two versions) and chat, and a registry of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORATORY_CACHE", str(tmp_path / "cache"))
    config = model_config("tiny-llama")
    (tmp_path / "config.json").write_text(json.dumps(hugging_face_config(config)))
    with Registry(tmp_path / "r.db") as registry, AdapterCache(tmp_path / "cache") as cache:
        for seed, folder in enumerate(("sql", "sql-next", "chat"), 1):
            place = random_adapter(tmp_path / folder, config, 4, seed=seed)
            name = folder.removesuffix("-next")
            registry.add_many([AdapterFetcher(cache).registration(name, str(place), new_version=name != folder)])
    return tmp_path


@pytest.fixture
def loratory(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    return command_line(capsys, monkeypatch)


def swap(home: Path, name: str) -> None:
    """Other weights of the same shape in the same file."""
    other = random_adapter(home / "other" / name, model_config("tiny-llama"), 4, seed=99)
    shutil.copyfile(other / "adapter_model.safetensors", home / name / "adapter_model.safetensors")


def digests(home: Path) -> dict[str, str]:
    """What the registry has."""
    with Registry(home / "r.db") as registry:
        return {record.ref: record.digest for record in registry.list()}


def run(loratory: Command, home: Path, adapters: str, on: str = "executor") -> tuple[int, str, dict[str, Any]]:
    """Exit code, stderr, and the run's object in summary.json."""
    (home / "s.yaml").write_text(SCENARIO.replace("ADAPTERS", adapters))
    return again(loratory, home / "s.yaml", on)


def again(loratory: Command, file: Path, on: str = "executor") -> tuple[int, str, dict[str, Any]]:
    out = file.parent / f"out-{on}"
    shutil.rmtree(out, ignore_errors=True)
    where = ("--on", "executor") if on == "executor" else ()
    done = loratory("run", file, *where, "--policy", "fifo", "--out", out)
    summary = out / "summary.json"
    return done.code, done.err, json.loads(summary.read_text())["runs"][0] if summary.exists() else {}


def record(name: str, number: int, home: Path, **more: Any) -> dict[str, Any]:
    """A record as somebody writes it by hand."""
    parameters = 4 * sum(map(sum, widths()))
    plain = {"name": name, "lora_int_id": number, "rank": 4, "parameters": parameters, "source": str(home / name)}
    return {**plain, "target_modules": ["q_proj"], **more}


def widths() -> list[tuple[int, int]]:
    c = model_config("tiny-llama").shape
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    layer = [(c.hidden, q), (c.hidden, kv), (c.hidden, kv), (q, c.hidden)]
    layer += [(c.hidden, c.intermediate), (c.hidden, c.intermediate), (c.intermediate, c.hidden)]
    return layer * c.layers


@pytest.mark.parametrize(
    ("adapters", "swapped", "ref"),
    [
        ("{registry: r.db}", "sql", "sql@1"),
        ("{registry: r.db, names: [chat, sql@2]}", "sql-next", "sql@2"),
        ("{registry: r.db, names: [sql@1, sql@2]}", "sql", "sql@1"),
    ],
)
def test_swapped_weights_are_refused_with_the_sentence_of_resolve(
    home: Path, loratory: Command, adapters: str, swapped: str, ref: str
) -> None:
    code, err, ran = run(loratory, home, adapters)
    assert (code, err) == (0, "") and ran["requests"]["completed"] == ran["requests"]["submitted"] > 5
    stands_for = digests(home)
    for row in ran["per_adapter"]:
        full = row["adapter"] if "@" in row["adapter"] else f"{row['adapter']}@1"
        assert row["digest"] == stands_for[full] and row["version"] == int(full[-1])
    info = json.loads((home / "out-executor/run_info.json").read_text())
    page = (home / "out-executor/report.html").read_text()
    assert all(each["digest"] in page for each in info["adapters"])
    assert {each["digest"] for each in info["adapters"]} <= set(stands_for.values()) and len(info["adapters"]) == 2
    swap(home, swapped)
    resolved = loratory("adapters", "resolve", ref, "--registry", "r.db")
    code, err, ran = run(loratory, home, adapters)
    assert code == 2 and ran == {} and err == resolved.err and f"{ref!r} {SWAPPED}" in err
    assert not (home / "out-executor").exists()


def test_a_result_runs_again_only_with_the_weights_it_was_made_with(home: Path, loratory: Command) -> None:
    code, _, simulated = run(loratory, home, "{registry: r.db}", on="sim")
    assert code == 0 and {row["digest"] for row in simulated["per_adapter"]} <= set(digests(home).values())
    shutil.copy(home / "out-sim/scenario.yaml", home / "kept.yaml")
    (home / "r.db").unlink()
    assert again(loratory, home / "kept.yaml")[0] == 0
    swap(home, "chat")
    code, err, _ = again(loratory, home / "kept.yaml")
    assert code == 2 and f"'chat@1' {SWAPPED}" in err


def test_the_registry_may_move_on_between_reading_and_running(home: Path, loratory: Command) -> None:
    """A default promoted afterwards changes nothing: the scenario holds the version it was given."""
    from loratory.experiment.execute import execute_scenario
    from loratory.scenarios.load import load_scenario

    (home / "s.yaml").write_text(SCENARIO.replace("ADAPTERS", "{registry: r.db, names: [sql, chat]}"))
    loaded = load_scenario(home / "s.yaml")
    with Registry(home / "r.db") as registry:
        registry.promote("sql", 2)
    (ran,) = execute_scenario(loaded)["runs"]
    (row,) = (row for row in ran["per_adapter"] if row["adapter"] == "sql")
    assert row["version"] == 1 and row["digest"] == digests(home)["sql@1"]


def test_records_by_hand_are_held_to_their_digest(home: Path, loratory: Command) -> None:
    known = digests(home)
    good = [record("sql", 7, home, digest=known["sql@1"].upper().replace("SHA", "sha"))]
    code, err, ran = run(loratory, home, json.dumps({"records": good, "target_modules": "all-linear"}))
    assert (code, err) == (0, "") and ran["per_adapter"][0]["digest"] == known["sql@1"]
    assert not [note for note in ran["warnings"] if "not registered" in note]
    bad = [record("sql", 7, home, digest=known["chat@1"])]
    code, err, _ = run(loratory, home, json.dumps({"records": bad, "target_modules": "all-linear"}))
    assert code == 2 and f"'sql' {SWAPPED}" in err and len(err) < 500
    code, err, _ = run(loratory, home, json.dumps({"records": [record("sql", 7, home, digest="sha256:12")]}))
    assert code == 2 and "adapters.records.0.digest should be sha256: and 64 hex digits" in err


def test_records_by_hand_without_a_digest_are_pinned_to_what_was_read(home: Path, loratory: Command) -> None:
    adapters = json.dumps({"records": [record("sql", 7, home)], "target_modules": "all-linear"})
    code, err, ran = run(loratory, home, adapters)
    digest = digests(home)["sql@1"]
    assert code == 0 and f"adapter 'sql' is not registered, its digest is {digest}" in ran["warnings"]
    assert ran["per_adapter"][0]["digest"] == digest
    left = yaml.safe_load((home / "out-executor/scenario.yaml").read_text())
    assert left["adapters"]["records"][0]["digest"] == digest
    shutil.copy(home / "out-executor/scenario.yaml", home / "kept.yaml")
    swap(home, "sql")
    code, err, _ = again(loratory, home / "kept.yaml")
    assert code == 2 and f"'sql' {SWAPPED}" in err


def test_records_that_are_wrong_about_their_files_have_a_note(home: Path, loratory: Command) -> None:
    wrong = [record("sql", 7, home, rank=2, parameters=10)]
    _, _, ran = run(loratory, home, json.dumps({"records": wrong, "target_modules": "all-linear"}))
    assert any("adapter 'sql' has rank 4 and" in note and "has rank 2 and 10" in note for note in ran["warnings"])
    (home / "chat/adapter_config.json").write_text("{}")
    broken = json.dumps({"records": [record("chat", 7, home)], "target_modules": "all-linear"})
    code, err, _ = run(loratory, home, broken)
    assert code == 2 and "adapter 'chat' is refused: " in err


@pytest.mark.parametrize("how", ["before the first load", "after an eviction from host memory"])
def test_a_swap_during_a_run_fails_the_requests_that_would_have_got_other_weights(
    how: str, home: Path, loratory: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are compared when they are read, each time, not only when the run begins."""
    read: Callable[[Machine, str], Any] = Machine.read
    reads: list[str] = []

    def and_swap(machine: Machine, name: str) -> Any:
        if name == "sql" and reads.count("sql") == (how.startswith("after")):
            swap(home, "sql")
        reads.append(name)
        return read(machine, name)

    monkeypatch.setattr(Machine, "read", and_swap)
    code, _, ran = run(loratory, home, "{registry: r.db}")
    rows = {row["adapter"]: row for row in ran["per_adapter"]}
    assert code == 0 and reads.count("sql") > how.startswith("after")
    assert ran["requests"]["failed"] > 0 and rows["chat"]["completed"] == rows["chat"]["requests"]
    assert rows["sql"]["completed"] < rows["sql"]["requests"]
    assert rows["sql"]["completed"] > 0 or how.startswith("before")
    assert all("'sql@1' " + SWAPPED in why for why in ran["never_served"]["why"])


def test_a_copy_in_the_cache_is_held_to_the_digest_too(home: Path, loratory: Command) -> None:
    """A copy from a web server that was tampered with is downloaded again, or refused when the server is gone."""
    with Server().running() as web:
        for file in (home / "sql").iterdir():
            web.files[f"/sql/{file.name}"] = file.read_bytes()
        assert loratory("adapters", "add", "far", f"{web.url}/sql", "--registry", "r.db").code == 0
        far = "{registry: r.db, names: [far]}"
        digest = digests(home)["far@1"]
        plain = json.dumps(
            {"records": [record("far", 7, home, source=f"{web.url}/sql")], "target_modules": "all-linear"}
        )
        assert run(loratory, home, far)[0] == 0
        (copy,) = (home / "cache/entries").glob("*/adapter_model.safetensors")
        good = copy.read_bytes()
        for adapters in (far, plain):
            copy.chmod(0o644)
            copy.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
            code, _, ran = run(loratory, home, adapters)
            assert code == 0 and ran["per_adapter"][0]["digest"] == digest and copy.read_bytes() == good
    copy.chmod(0o644)
    copy.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    code, err, _ = run(loratory, home, far)
    assert code == 2 and "adapter 'far@1' is refused" in err


def test_a_machine_takes_no_adapter_whose_digest_is_not_its_files(home: Path) -> None:
    from bench_machine import Zoo
    from roster import POLICIES

    from loratory.errors import RefusedAdapter
    from loratory.executor.clock import RealClock
    from loratory.serving.config import EngineConfig
    from loratory.serving.lora import Adapter
    from loratory.testing import ToyCost

    zoo = Zoo.make(home / "zoo", "llama", ({"rank": 4}, {"rank": 4}))
    machine = zoo.machine(EngineConfig(max_loras=2, max_lora_rank=8, num_gpu_blocks=20, block_size=4))
    first, second = zoo.adapters
    wrong = Adapter(first.lora, first.rank, first.bytes, digest=zoo.files[second.name].digest)
    with pytest.raises(RefusedAdapter, match=SWAPPED):
        machine.executor([wrong, second], POLICIES["fifo"](), ToyCost(), RealClock())
