"""``loratory adapters`` with many at once: scans, manifests, vLLM's lists, and snapshots of the Hub's cache."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from adapters_home import ok, refused
from adapters_on_disk import CONFIG, WEIGHTS, write
from command import Command
from servers import Server, adapter

from loratory.adapters.registry.vllm_lora_modules import parse_lora_modules


def test_scan_reports_what_it_refuses_and_exits_1(home: Path, loratory: Command) -> None:
    write(home / "adapters/dora", {"use_dora": True})
    dry = loratory("adapters", "scan", "adapters", "--dry-run")
    assert dry.code == 1 and "3 valid, 1 refused" in dry.out and "use_dora" in dry.out
    assert loratory("adapters", "list").code == 2
    done = loratory("adapters", "scan", "adapters", "--tenant", "acme")
    assert done.code == 1 and "3 added, 1 refused" in done.out
    assert "1 valid" in ok(loratory, "scan", "adapters/sql", "--dry-run")
    (home / "empty").mkdir()
    assert "no adapter is at or below empty" in ok(loratory, "scan", "empty")


def test_export_and_import_move_a_registry(home: Path, loratory: Command) -> None:
    for name, source in (("sql", "sql"), ("gone", "chat"), ("chat", "chat")):
        ok(loratory, "add", name, f"adapters/{source}", "--tenant", "acme")
    ok(loratory, "add", "sql", "adapters/sql-next", "--new-version")
    ok(loratory, "promote", "sql", 2)
    ok(loratory, "remove", "gone")
    text = ok(loratory, "export")
    assert ok(loratory, "export", "--out", "all.yaml") == ""
    assert (home / "all.yaml").read_text() == text
    said = ok(loratory, "import", "all.yaml", "--registry", "copy.db")
    assert "4 added, 0 known" in said
    assert ok(loratory, "export", "--registry", "copy.db") == text
    assert "0 added, 4 known" in ok(loratory, "import", "all.yaml", "--registry", "copy.db")
    first, second = (
        loratory("adapters", "list", "--json", "--removed", *more).json for more in ((), ("--registry", "copy.db"))
    )
    for one, two in zip(first, second, strict=True):
        assert {**one, "created": ""} == {**two, "created": ""}
    assert "is a folder" in refused(loratory, "export", "--out", "adapters")
    (home / "link.yaml").symlink_to("all.yaml")
    ok(loratory, "export", "--out", "link.yaml")
    assert (home / "link.yaml").is_symlink()
    os.mkfifo(home / "pipe")
    reader = subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE, text=True)
    ok(loratory, "export", "--out", "pipe")
    assert reader.communicate()[0] == text and (home / "pipe").is_fifo()
    assert "cannot be written" in refused(loratory, "export", "--out", "no/where.yaml")


def test_a_manifest_names_its_own_id_strategy_and_folders_beside_it(home: Path, loratory: Command) -> None:
    (home / "lists").mkdir()
    (home / "lists/mine.yaml").write_text(
        "ids: user\nadapters:\n- {name: sql, source: ../adapters/sql, lora_int_id: 77, labels: {task: sql}}\n"
    )
    assert "registered sql@1: id 77" in ok(loratory, "import", "lists/mine.yaml", "--registry", "new.db")
    assert "note: sql@1 has the id 1 here, but 77 in the manifest" in ok(
        loratory, "import", "lists/mine.yaml", "--registry", "other.db", "--ids", "sequential"
    )
    (home / "lists/mine.yaml").write_text("adapters:\n- {name: sql, sauce: x}\n")
    assert "did you mean 'source'" in refused(loratory, "import", "lists/mine.yaml")


def test_the_lists_of_vllm_go_in_and_out(home: Path, loratory: Command) -> None:
    (home / "modules.txt").write_text(
        "--lora-modules sql=adapters/sql \\\n"
        '  \'{"name": "chat", "path": "adapters/chat", "base_model_name": "other/llama"}\'\n'
    )
    said = ok(loratory, "import", "modules.txt")
    assert (
        "2 added, 0 known" in said
        and "note: chat is for some/llama by its configuration, but for other/llama by the list" in said
    )
    text = ok(loratory, "export", "--format", "vllm")
    items = shlex.split(text.replace("\\\n", " "))
    assert items[0] == "--lora-modules"
    assert {module.name: module.path for module in parse_lora_modules(items)} == {
        "chat": str(home / "adapters/chat"),
        "sql": str(home / "adapters/sql"),
    }
    (home / "again.txt").write_text(text)
    assert "2 added" in ok(loratory, "import", "again.txt", "--registry", "copy.db")


def test_what_comes_from_elsewhere_is_cached_and_exported_by_its_folder(
    home: Path, loratory: Command, web: Server
) -> None:
    web.files.update({f"/sql/{name}": data for name, data in adapter().items()})
    ok(loratory, "add", "sql", f"{web.url}/sql", "--cache", "store", "--cache-size", "1MB")
    asked = len(web.requests)
    name, number, path = ok(loratory, "resolve", "sql", "--cache", "store").strip().split("\t")
    assert (name, number) == ("sql@1", "1") and Path(path).is_relative_to("store") and (Path(path) / CONFIG).is_file()
    assert len(web.requests) == asked
    assert "export with --local" in refused(loratory, "export", "--format", "vllm", "--cache", "store")
    (module,) = loratory("adapters", "export", "--format", "vllm", "--local", "--cache", "store", "--json").json
    assert Path(module["path"]).resolve() == Path(path).resolve()
    web.files.update({f"/sql/{name}": data for name, data in adapter(seed=5).items()})
    assert loratory("adapters", "resolve", "sql", "--cache", "store").code == 0
    assert loratory("adapters", "verify", "--cache", "store").code == 1
    assert "put back what was registered" in refused(loratory, "resolve", "sql", "--cache", "empty")
    assert "needs" in refused(loratory, "add", "big", f"{web.url}/sql", "--cache", "small", "--cache-size", "100")
    assert not (home / ".cache").exists()


def test_one_flag_takes_as_many_items_as_vllms(home: Path, loratory: Command) -> None:
    item = json.dumps({"name": "next", "path": "adapters/sql-next", "base_model_name": "some/llama"})
    said = ok(loratory, "import", "--lora-modules", "sql=adapters/sql", item, "--lora-modules", "chat=adapters/chat")
    assert [line.split(":")[0] for line in said.splitlines()] == [
        "registered sql@1", "registered chat@1", "registered next@1", "3 added, 0 known",
    ]  # fmt: skip
    assert "0 added, 2 known" in ok(loratory, "import", "--lora-modules", "sql=adapters/sql", "chat=adapters/chat")


@pytest.fixture
def snapshot(home: Path) -> Path:
    """What huggingface_hub.snapshot_download returns: links to the repository's blobs."""
    repository = home / "hub/models--acme--sql"
    folder = repository / "snapshots/0dfa"
    (repository / "blobs").mkdir(parents=True)
    for number, place in enumerate((folder, folder / "checkpoints/last")):
        place.mkdir(parents=True)
        for name in (CONFIG, WEIGHTS):
            blob = repository / "blobs" / f"{name}-{number}"
            shutil.copy(home / "adapters" / ("sql", "chat")[number] / name, blob)
            (place / name).symlink_to(os.path.relpath(blob, place))
    return folder


def test_a_snapshot_of_the_hubs_cache_is_imported_as_vllms_documentation_does(
    home: Path, loratory: Command, snapshot: Path
) -> None:
    ok(loratory, "import", "--lora-modules", f"sql={snapshot}", f"deep={snapshot / 'checkpoints/last'}")
    (home / "link").symlink_to(snapshot)
    ok(loratory, "add", "linked", "link")
    assert ok(loratory, "scan", "hub", "--dry-run").endswith("2 valid\n")
    assert ok(loratory, "verify").startswith("3 of 3 adapters match their records")
    assert str(snapshot) in ok(loratory, "resolve", "sql")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_link_of_a_snapshot_that_leaves_its_repository_is_refused(
    name: str, home: Path, loratory: Command, snapshot: Path
) -> None:
    (snapshot / name).unlink()
    (snapshot / name).symlink_to(home / "adapters/chat" / name)
    assert "is a symbolic link out of the folder" in refused(loratory, "add", "sql", snapshot)
    (snapshot / name).unlink()
    (snapshot / name).symlink_to("../../../models--acme--sql-evil/blobs/x")
    (home / "hub/models--acme--sql-evil/blobs").mkdir(parents=True)
    shutil.copy(home / "adapters/chat" / name, home / "hub/models--acme--sql-evil/blobs/x")
    assert "is a symbolic link out of the folder" in refused(loratory, "add", "sql", snapshot)


def test_a_snapshots_links_are_followed_in_the_hubs_layout_only(home: Path, loratory: Command, snapshot: Path) -> None:
    """The same links under another name are those of any folder, and may lead to any file."""
    (home / "hub/models--acme--sql").rename(home / "hub/acme--sql")
    said = refused(loratory, "add", "sql", "hub/acme--sql/snapshots/0dfa")
    assert "is a symbolic link out of the folder" in said
