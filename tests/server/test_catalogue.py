"""Adapters by name: from the command line, from a registry, over HTTP; and what is refused without harm to others."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from running_server import GREEDY, RunningServer, TinyFiles

from loratory.adapters.fetch import AdapterFetcher
from loratory.adapters.registry.registry import Registry
from loratory.adapters.sources.cache import AdapterCache
from loratory.errors import InputError

NAMES = ("a0", "a1", "a2")


@pytest.fixture(scope="module")
def root(tiny: TinyFiles) -> Path:
    """A folder below which clients may load."""
    folder = tiny.folder / "root"
    for name in NAMES:
        shutil.copytree(tiny.adapters[name], folder / name)
    tiny.adapter("root/high", rank=32, seed=9)
    tiny.adapter("root/head", target_modules=("q_proj", "lm_head"), seed=10)
    tiny.adapter("root/foreign", base_model="acme/another-model", seed=12)
    tiny.adapter("outside", seed=11)
    (folder / "link").symlink_to(tiny.folder / "outside")
    shutil.copytree(tiny.adapters["a0"], folder / "broken")
    weights = folder / "broken" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    return folder


@pytest.fixture(scope="module")
def registry(tiny: TinyFiles) -> Iterator[Registry]:
    """A registry with sql@1, sql@2 (the default is 1) and chat@1, for another base."""
    with Registry(tiny.folder / "registry.db") as registry, AdapterCache(tiny.folder / "cache") as cache:
        fetcher = AdapterFetcher(cache)
        registry.add_many([fetcher.registration("sql", str(tiny.adapters["a0"]), tenant="acme")])
        registry.add_many([fetcher.registration("sql", str(tiny.adapters["a1"]), new_version=True)])
        other = tiny.adapter("other-base", base_model="acme/another-model", seed=5)
        registry.add_many([fetcher.registration("foreign", str(other))])
        yield registry


@pytest.fixture(scope="module")
def running(tiny: TinyFiles, root: Path, registry: Registry) -> Iterator[RunningServer]:
    settings = tiny.settings(
        registry=registry.where, allow_runtime_lora=True, lora_roots=(root,), lora_modules=(f"own={root / 'a2'}",)
    )
    with RunningServer(settings) as running:
        running.server.catalogue._names._clock = running.clock = _Clock()  # type: ignore
        yield running


class _Clock:
    """Each look is two seconds later: what the registry said is never fresh."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 2.0
        return self.now


@pytest.fixture(scope="module")
def texts(running: RunningServer) -> dict[str, str]:
    """What each adapter answers, loaded under names of their own."""
    found = {}
    for name in NAMES:
        assert load(running, f"plain-{name}", name).status_code == 200
        found[name] = running.text(f"plain-{name}")
        assert unload(running, f"plain-{name}").status_code == 200
    assert len(set(found.values())) == 3
    return found


def load(running: RunningServer, name: str, path: str, **fields: Any) -> Any:
    return running.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path} | fields)


def unload(running: RunningServer, name: str, **fields: Any) -> Any:
    return running.post("/v1/unload_lora_adapter", {"lora_name": name} | fields)


def card(running: RunningServer, name: str) -> dict[str, Any] | None:
    cards = running.http.get("/v1/models").json()["data"]
    return next((each for each in cards if each["id"] == name), None)


def test_a_registry_names_adapters_and_their_versions(
    running: RunningServer, registry: Registry, texts: dict[str, str]
) -> None:
    listed = card(running, "sql")
    assert listed is not None and (listed["version"], listed["lora_int_id"]) == (1, registry.resolve("sql").lora_int_id)
    assert running.text("sql") == running.text("sql@1") == texts["a0"] and running.text("sql@2") == texts["a1"]
    answer = running.complete(model="sql@2")
    assert answer["lora"] == {"name": "sql", "lora_int_id": registry.resolve("sql@2").lora_int_id, "version": 2}
    assert (
        running.post("/v1/completions", GREEDY | {"prompt": "x", "model": "sql"}).headers["x-loratory-tenant"] == "acme"
    )
    assert running.server.catalogue.shown("sql@1") == "sql" and running.server.catalogue.shown("sql@2") == "sql@2"


def test_a_promotion_and_a_rollback_reach_new_requests(
    running: RunningServer, registry: Registry, texts: dict[str, str]
) -> None:
    assert running.text("sql") == texts["a0"]
    registry.promote("sql", 2)
    assert running.text("sql") == texts["a1"] and card(running, "sql@1") is not None
    listed = card(running, "sql")
    assert listed is not None and listed["version"] == 2
    registry.rollback("sql")
    assert running.text("sql") == texts["a0"]


def test_a_removed_version_is_404_and_another_bases_adapter_400(running: RunningServer, registry: Registry) -> None:
    answer = running.post("/v1/completions", GREEDY | {"prompt": "x", "model": "sql@3"})
    assert answer.status_code == 404 and "sql@2" in answer.json()["error"]["message"]
    answer = running.post("/v1/completions", GREEDY | {"prompt": "x", "model": "foreign"})
    assert answer.status_code == 400 and "--base-model-name acme/another-model" in answer.json()["error"]["message"]


def test_changed_content_is_refused_and_healed(
    running: RunningServer, registry: Registry, tiny: TinyFiles, tmp_path: Path
) -> None:
    """The registry's digest is compared: other content is 400 for that adapter alone, and the right one heals it."""
    place = tmp_path / "kept"
    shutil.copytree(tiny.adapters["a2"], place)
    with AdapterCache(tmp_path / "cache") as cache:
        registry.add_many([AdapterFetcher(cache).registration("kept", str(place))])
    held = (place / "adapter_model.safetensors").read_bytes()
    shutil.copy(tiny.adapters["a1"] / "adapter_model.safetensors", place)
    body = GREEDY | {"prompt": "x", "model": "kept"}
    answer = running.post("/v1/completions", body)
    assert answer.status_code == 400 and "registered with the digest" in answer.json()["error"]["message"]
    assert running.text("sql")
    (place / "adapter_model.safetensors").write_bytes(held)
    running.server.catalogue._refused.clear()  # a refusal stands for a second
    assert running.post("/v1/completions", body).status_code == 200


def test_a_version_never_changes_its_content(
    running: RunningServer, registry: Registry, tiny: TinyFiles, tmp_path: Path, texts: dict[str, str]
) -> None:
    """A registry file that is replaced is noticed; a version or an id that the engine knows means what it meant."""
    place, kept = Path(registry.where), tmp_path / "kept.db"
    assert running.text("sql@1") == texts["a0"]
    registry.close()
    with Registry(tmp_path / "new.db") as new, AdapterCache(tmp_path / "cache") as cache:
        fetcher = AdapterFetcher(cache)
        new.add_many([fetcher.registration("sql", str(tiny.adapters["a2"]))])
        new.add_many([fetcher.registration("second", str(tiny.adapters["a1"]))])  # with the id of sql@2
        new.add_many([fetcher.registration("third", str(tiny.adapters["a1"]))])  # with that of the foreign one
    shutil.copy(place, kept)
    os.replace(tmp_path / "new.db", place)
    try:
        assert running.text("third") == texts["a1"]
        answer = running.post("/v1/completions", GREEDY | {"prompt": "x", "model": "second"})
        assert answer.status_code == 400 and "means adapter 'sql@2'" in answer.json()["error"]["message"]
        answer = running.post("/v1/completions", GREEDY | {"prompt": "x", "model": "sql@1"})
        assert answer.status_code == 400 and "register it as a new version" in answer.json()["error"]["message"]
        place.unlink()
        assert running.text("third") == texts["a1"]  # the last answer stands
    finally:
        os.replace(kept, place)
    assert running.text("sql@1") == texts["a0"]


def test_the_engine_knows_the_registrys_adapters_that_were_asked_for_last(
    running: RunningServer, registry: Registry, texts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running.server.catalogue, "_most_known", 1)
    adapters = running.server.executor.engine.ledger.adapters
    for ref, other, text in (("sql@1", "sql@2", "a0"), ("sql@2", "sql@1", "a1"), ("sql@1", "sql@2", "a0")):
        assert running.text(ref) == texts[text]
        running.until(lambda other=other: other not in adapters)
        running.until(lambda: "own@1" in adapters)


def test_load_and_unload_answer_as_vllm_does(running: RunningServer, texts: dict[str, str]) -> None:
    assert load(running, "new", "a1").text == "Success: LoRA adapter 'new' added successfully."
    listed = card(running, "new")
    assert listed is not None and listed["root"].endswith("root/a1") and listed["parent"] == "tiny"
    assert running.text("new") == texts["a1"]
    again = load(running, "new", "a1")
    assert again.status_code == 400 and "has already been loaded" in again.json()["error"]["message"]
    wrong = unload(running, "new", lora_int_id=5)
    assert wrong.status_code == 400 and str(listed["lora_int_id"]) in wrong.json()["error"]["message"]
    gone = unload(running, "new", lora_int_id=listed["lora_int_id"])
    assert gone.text == "Success: LoRA adapter 'new' removed successfully."
    assert unload(running, "new").status_code == 404 and card(running, "new") is None
    assert running.post("/v1/completions", GREEDY | {"prompt": "x", "model": "new"}).status_code == 404
    running.until(lambda: "new@1" not in running.server.executor.engine.ledger.adapters)
    assert load(running, "new", "a1").status_code == 200 and card(running, "new")["version"] == 2  # type: ignore[index]
    assert unload(running, "new").status_code == 200


def test_loading_in_place_makes_a_version_and_leaves_what_runs(running: RunningServer, texts: dict[str, str]) -> None:
    assert load(running, "live", "a0").status_code == 200
    whole, before = running.text("live", max_tokens=100), card(running, "live")
    assert before is not None
    with running.held(), ThreadPoolExecutor(1) as thread:
        old = thread.submit(lambda: running.complete(model="live", max_tokens=100))
        running.step(3)
        same = running.meanwhile(lambda: load(running, "live", "a0", load_inplace=True))
        assert same.status_code == 200 and card(running, "live") == before  # equal content: nothing changes
        changed = running.meanwhile(lambda: load(running, "live", "a1", load_inplace=True))
        assert changed.status_code == 200 and not old.done()
        after = card(running, "live")
        assert after is not None and (before["version"], after["version"]) == (1, 2)
        assert after["lora_int_id"] != before["lora_int_id"]
        running._holding = False
        assert running.text("live") == texts["a1"]
        answer = old.result()
    assert answer["choices"][0]["text"] == whole
    assert answer["lora"] == {"name": "live", "lora_int_id": before["lora_int_id"], "version": 1}
    running.until(lambda: "live@1" not in running.server.executor.engine.ledger.adapters)
    assert unload(running, "live").status_code == 200


def test_a_misspelt_key_of_a_load_is_told_what_it_may_mean(running: RunningServer) -> None:
    answer = load(running, "x", "a0", load_in_place=True)
    assert answer.status_code == 400 and "did you mean 'load_inplace'?" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("name", "path", "status", "told"),
    [
        ("x", "nothing", 400, "no folder"),
        ("x", "broken", 400, "broken"),
        ("x", "high", 400, "rank"),
        ("x", "head", 400, "lm_head"),
        ("x", "../outside", 403, "--lora-root"),
        ("x", "/etc", 403, "--lora-root"),
        ("x", "link", 403, "--lora-root"),
        ("x", "../root", 400, "no folder"),
        ("x", "a0\0", 400, "no path"),
        ("tiny", "a0", 400, "in use"),
        ("sql", "a0", 400, "in use"),
        ("own", "a0", 400, "already been loaded"),
        ("a@2", "a0", 400, "@"),
        ("a,b", "a0", 400, "commas"),
        ("..", "a0", 400, "dots"),
        ("x", "foreign", 400, "--base-model-name acme/another-model"),
        (" a", "a0", 400, "blanks"),
        ("", "a0", 400, "lora_name"),
    ],
)
def test_a_bad_load_is_refused_and_hurts_nobody(
    running: RunningServer, texts: dict[str, str], name: str, path: str, status: int, told: str
) -> None:
    before = running.http.get("/v1/models").json()
    answer = load(running, name, path)
    assert (answer.status_code, told in answer.json()["error"]["message"]) == (status, True), answer.text
    assert running.http.get("/v1/models").json() == before and running.text("own") == texts["a2"]


def test_unloading_frees_slot_host_and_files_when_requests_have_ended(running: RunningServer) -> None:
    executor = running.server.executor
    assert load(running, "brief", "a0").status_code == 200
    with running.held(), ThreadPoolExecutor(1) as thread:
        asked = thread.submit(lambda: running.complete(model="brief", max_tokens=100))
        running.step(3)
        assert running.meanwhile(lambda: unload(running, "brief")).status_code == 200
        gone = running.post("/v1/completions", GREEDY | {"prompt": "x", "model": "brief"})
        assert gone.status_code == 404 and not asked.done() and "brief@1" in executor.tiers.resident
        running._holding = False
        assert asked.result()["usage"]["completion_tokens"] == 100
    running.until(lambda: "brief@1" not in {*executor.tiers.resident, *executor.tiers.in_host, *executor.tiers.files})
    running.until(lambda: "brief@1" not in running.server.catalogue._known)


def test_a_bad_module_ends_the_start(tiny: TinyFiles, root: Path) -> None:
    with pytest.raises(InputError, match="high"), RunningServer(tiny.settings(lora_modules=(f"x={root / 'high'}",))):
        pass
    with pytest.raises(InputError, match="given twice"):
        RunningServer(tiny.settings(lora_modules=("x=a", "x=b"))).__enter__()
