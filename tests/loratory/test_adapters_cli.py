"""``loratory adapters`` as an operator meets it: every command, text and JSON; bad input; nothing half-written."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from adapters_on_disk import BASE, CONFIG, WEIGHTS, config, tensors, write
from command import Command, command_line
from servers import Server, adapter

from loratory.adapters.registry.manifest import parse_manifest
from loratory.adapters.registry.registry import Registry
from loratory.adapters.registry.vllm_lora_modules import parse_lora_modules

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An operator's home with three adapters in it and nothing else, and the working folder."""
    for name in ("LORATORY_REGISTRY", "LORATORY_CACHE", "LORATORY_CACHE_SIZE", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("sql", "sql-next", "chat")):
        write(tmp_path / "adapters" / name, found=tensors(seed=seed))
    shapes = {"model_type": "llama", "hidden_size": BASE.hidden, "num_hidden_layers": BASE.layers}
    shapes |= {"num_attention_heads": BASE.heads, "num_key_value_heads": BASE.kv_heads, "vocab_size": BASE.vocab}
    shapes |= {"intermediate_size": BASE.intermediate, "max_position_embeddings": 128}
    (tmp_path / "config.json").write_text(json.dumps(shapes))
    return tmp_path


@pytest.fixture
def loratory(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    return command_line(capsys, monkeypatch)


@pytest.fixture
def web() -> Iterator[Server]:
    with Server().running() as server:
        yield server


def ok(loratory: Command, *arguments: object) -> str:
    done = loratory("adapters", *arguments)
    assert (done.code, done.err) == (0, ""), done.err
    return done.out


def refused(loratory: Command, *arguments: object) -> str:
    """Bad input: exit code 2, one line on stderr, nothing on stdout."""
    done = loratory("adapters", *arguments)
    lines = done.err.splitlines()
    assert done.code == 2 and done.out == "" and len(lines) == 1 and lines[0].startswith("loratory: "), done
    return lines[0]


def test_a_pipe_gets_every_path_whole(home: Path, loratory: Command) -> None:
    deep = Path("adapters", *(f"a-folder-with-a-long-name-{level}" for level in range(9)))
    shutil.copytree(home / "adapters/sql", home / deep)
    ok(loratory, "add", "sql", deep)
    assert str(home / deep) in ok(loratory, "list") and len(str(deep)) > 160


def test_from_the_first_adapter_to_a_rollback(home: Path, loratory: Command) -> None:
    said = ok(loratory, "add", "sql", "adapters/sql", "--tenant", "acme", "--label", "task=sql", "--label", "env=prod")
    assert said == "registered sql@1: id 1, rank 2, q v, 448 B (F32), for some/llama\n"
    assert (home / ".local/share/loratory/adapters.db").is_file()
    assert ok(loratory, "add", "sql", "adapters/sql", "--tenant", "acme").startswith("already registered: sql@1")
    said = ok(loratory, "add", "sql", "adapters/sql-next", "--new-version")
    assert "registered sql@2: id 2" in said and "sql still resolves to sql@1" in said
    listed = ok(loratory, "list")
    assert [
        word
        for word in ("sql@1 *", "sql@2", "acme", "task=sql, env=prod", str(home / "adapters/sql"))
        if word not in listed
    ] == []
    assert ok(loratory).splitlines() == listed.splitlines()
    assert ok(loratory, "promote", "sql", "2") == "sql resolves to sql@2 (id 2)\n"
    assert ok(loratory, "resolve", "sql") == f"sql@2\t2\t{home}/adapters/sql-next\n"
    assert ok(loratory, "resolve", "sql@1", "--no-fetch") == f"sql@1\t1\t{home}/adapters/sql\n"
    assert ok(loratory, "rollback", "sql") == "sql resolves to sql@1 (id 1) again\n"
    shown = ok(loratory, "show", "sql")
    assert all(
        word in shown for word in ("sql@1", "sha256:", "2, 4", "112 parameters", "versions: @1, @2", "some/llama")
    )
    assert "sql@2" in ok(loratory, "show", "--id", 2)
    history = ok(loratory, "history", "sql")
    assert [line.split()[2] for line in history.splitlines() if "@" in line] == ["add", "add", "promote", "rollback"]
    assert ok(loratory, "remove", "sql@2") == "removed sql@2; these ids are never used again: 2\n"
    assert "(removed)" in ok(loratory, "list", "--removed") and "removed" in ok(loratory, "show", "--id", "2")
    assert ok(loratory, "verify") == "1 of 1 adapters match their records; the registry agrees with its history\n"
    assert ok(loratory, "remove", "sql") == "removed sql@1; these ids are never used again: 1\n"
    assert ok(loratory, "list").startswith("no adapter matches")
    assert "sql@3: id 3" in ok(loratory, "add", "sql", "adapters/sql", "--new-version")


def test_every_command_speaks_json(home: Path, loratory: Command) -> None:
    def json_of(*arguments: object) -> Any:
        return loratory("adapters", *arguments, "--json").json

    added = json_of("add", "sql", "adapters/sql", "--tenant", "acme", "--label", "task=sql")
    assert added["added"] and added["ref"] == "sql@1" and added["default"] and added["labels"] == {"task": "sql"}
    assert (added["rank"], added["parameters"], added["bytes"], added["dtype"]) == (2, 112, 448, "F32")
    assert not json_of("add", "sql", "adapters/sql", "--tenant", "acme")["added"]
    second = json_of("add", "sql", "adapters/sql-next", "--new-version")
    assert second["lora_int_id"] == 2 and not second["default"]
    assert [each["ref"] for each in json_of("list")] == ["sql@1", "sql@2"]
    assert [each["ref"] for each in json_of("list", "--tenant", "acme", "--label", "task=sql")] == ["sql@1"]
    assert json_of("list", "--base-model", "other") == [] == json_of("list", "zz")
    assert json_of("show", "sql")["versions"] == ["sql@1", "sql@2"]
    assert json_of("promote", "sql", "2")["ref"] == "sql@2"
    assert json_of("resolve", "sql") == {
        "lora_name": "sql@2",
        "lora_int_id": 2,
        "lora_path": str(home / "adapters/sql-next"),
        "base_model_name": "some/llama",
    }
    assert json_of("rollback", "sql")["ref"] == "sql@1"
    assert [each["action"] for each in json_of("history", "sql")] == ["add", "add", "promote", "rollback"]
    scanned = json_of("scan", "adapters")
    outcomes = {each["name"]: each["outcome"] for each in scanned}
    assert outcomes == {"chat": "added", "sql": "known", "sql-next": "added"}
    assert json_of("verify")["registry"] == [] and all(each["ok"] for each in json_of("verify")["adapters"])
    assert {each["name"] for each in json_of("export", "--format", "vllm")} == {"chat", "sql", "sql-next"}
    imported = json_of("import", "--lora-modules", "more=adapters/chat", "--lora-modules", "chat=adapters/chat")
    assert [each["ref"] for each in imported["added"]] == ["more@1"] and imported["known"] == 1
    assert [each["removed"] for each in json_of("remove", "sql@2")] == [True]


def test_a_refused_adapter_leaves_no_registry_behind(home: Path, loratory: Command) -> None:
    write(home / "adapters" / "dora", {"use_dora": True})
    assert "use_dora is True" in refused(loratory, "add", "dora", "adapters/dora")
    assert "does not exist" in refused(loratory, "add", "x", "adapters/nowhere")
    assert "more than max_lora_rank 1" in refused(loratory, "add", "x", "adapters/sql", "--max-lora-rank", 1)
    assert "model.layers.2" in refused(loratory, "add", "x", "adapters/sql", "--model", "llama-3.1-8b")
    assert not (home / ".local").exists()
    assert "registered" in ok(loratory, "add", "x", "adapters/sql", "--model", "config.json")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("list",), "there is no registry at"),
        (("show", "sql"), "there is no registry at"),
        (("verify",), "there is no registry at"),
        (("export",), "there is no registry at"),
        (("remove", "sql"), "there is no registry at"),
        (("add", "a@b", "adapters/sql"), "has an @"),
        (("add", "sql", "ftp://host/x"), "ftp:// is not known"),
        (("add", "sql", "adapters/sql", "--label", "task"), "--label 'task' has no ="),
        (("add", "sql", "adapters/sql", "--label", "a=1", "--label", "a=2"), "--label has the key 'a' twice"),
        (("add", "sql", "adapters/sql", "--label", "a b=2"), "is not a valid key"),
        (("add", "sql", "adapters/sql", "--id", "7"), "assigns ids itself"),
        (("add", "sql", "adapters/sql", "--ids", "user"), "has no lora_int_id"),
        (("add", "sql", "adapters/sql", "--ids", "usr"), "did you mean 'user'"),
        (("add", "sql", "adapters/sql", "--model", "llama-9"), "--model: "),
        (("add", "sql", "adapters/sql", "--registry", "mysql://host/x"), "a registry cannot be at"),
        (("add", "sql", "adapters/sql", "--registry", "no/such/folder/x.db"), "there is no folder"),
        (("add", "sql", "adapters/sql", "--registry", "config.json"), "is not a SQLite file"),
        (("add", "sql", "adapters/sql", "--cache-size", "much"), "is 'much', which is not a size above 0"),
        (("add", "sql", "adapters/sql", "--cache-size", "0"), "is not a size above 0"),
        (("add", "sql", "adapters/sql", "--max-lora-rank", "0"), "max-lora-rank"),
        (("add", "sql"), "Missing argument 'source'"),
        (("show",), "give either NAME[@VERSION] or --id N"),
        (("promote", "sql", "two"), "should be a valid integer"),
        (("scan", "nowhere"), "is not a folder"),
        (("scan", "https://host/x"), "cannot be listed"),
        (("import",), "needs one list: give either a file, or --lora-modules"),
        (("import", "a.yaml", "b.yaml"), "needs one list: give either a file, or --lora-modules"),
        (("import", "a.yaml", "--lora-modules", "a=adapters/sql"), "has both --lora-modules and the file a.yaml"),
        (
            ("import", "config.json", "--lora-modules", "a=adapters/sql"),
            "has both --lora-modules and the file config.json",
        ),
        (("import", "--lora-modules", "a=adapters/sql", "a=adapters/chat"), "the name 'a' is given twice"),
        (("import", "--lora-modules", "a=adapters/sql", "b"), "'b' is neither name=path nor"),
        (("import", "nowhere.yaml"), "nowhere.yaml cannot be read"),
        (("import", "adapters"), "adapters cannot be read"),
        (("import", "config.json"), "config.json: --lora-modules:"),
        (("import", os.devnull), "lists no adapter"),
        (("import", "--lora-modules", "a=b=c"), "has two ="),
        (("import", "--lora-modules", "a=adapters/nowhere"), "adapter 'a' is refused, so nothing was imported"),
        (("export", "--local"), "need --format vllm"),
        (("export", "--format", "toml"), "toml"),
        (("frobnicate",), "frobnicate"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    arguments: tuple[str, ...], says: str, home: Path, loratory: Command
) -> None:
    assert says in refused(loratory, *arguments)
    assert not [path for path in home.rglob("*.db*") if sqlite_rows(path)]


def sqlite_rows(path: Path) -> int:
    """Adapters in a registry's file."""
    if path.suffix != ".db":
        return 0
    with sqlite3.connect(path) as connection:
        tables = connection.execute("select count(*) from sqlite_master where name = 'loratory_adapters'").fetchone()
        return int(connection.execute("select count(*) from loratory_adapters").fetchone()[0]) if tables[0] else 0


def test_bad_references_say_what_there_is(home: Path, loratory: Command) -> None:
    ok(loratory, "add", "sql-writer", "adapters/sql")
    assert "did you mean 'sql-writer'" in refused(loratory, "resolve", "sql-writr")
    assert "there is sql-writer@1" in refused(loratory, "show", "sql-writer@7")
    assert "there is sql-writer@1" in refused(loratory, "promote", "sql-writer", 7)
    assert "no former default" in refused(loratory, "rollback", "sql-writer")
    for never in (99, 0, -1, 2**31, 10**30):
        assert "was never given" in refused(loratory, "show", "--id", never)
    assert "is not an adapter version" in refused(loratory, "promote", "sql-writer", 10**30)
    assert "did you mean" in refused(loratory, "history", "sql-writr")
    assert "new version sql-writer@2" in refused(loratory, "add", "sql-writer", "adapters/chat")
    ok(loratory, "add", "sql-writer", "adapters/chat", "--new-version")
    assert "promote another version" in refused(loratory, "remove", "sql-writer@1")


def test_verify_finds_each_kind_of_damage_and_exits_1(home: Path, loratory: Command) -> None:
    for name in ("sql", "sql-next", "chat"):
        ok(loratory, "add", name, f"adapters/{name}")
    write(home / "adapters/sql", found=tensors(seed=99))
    (home / "adapters/chat" / WEIGHTS).unlink()
    done = loratory("adapters", "verify")
    assert done.code == 1 and done.err == ""
    assert "'sql@1' was registered with the digest" in done.out and "'chat@1' is refused" in done.out
    assert "1 of 3 adapters match their records" in done.out
    found = {each["ref"]: each["ok"] for each in loratory("adapters", "verify", "--json").json["adapters"]}
    assert found == {"sql@1": False, "chat@1": False, "sql-next@1": True}
    assert loratory("adapters", "verify", "sql-next").code == 0
    assert loratory("adapters", "verify", "sql").code == 1
    with sqlite3.connect(home / ".local/share/loratory/adapters.db") as connection:
        connection.execute("delete from loratory_changes where name = 'sql-next'")
    done = loratory("adapters", "verify", "sql-next")
    assert done.code == 1 and "registry: sql-next is" in done.out and "the registry has 1 problems" in done.out


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


def test_places_come_from_the_environment(home: Path, loratory: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORATORY_REGISTRY", "mine.db")
    ok(loratory, "add", "sql", "adapters/sql")
    assert (home / "mine.db").is_file() and "sql@1" in ok(loratory)
    monkeypatch.delenv("LORATORY_REGISTRY")
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))
    ok(loratory, "add", "sql", "adapters/sql")
    assert (home / "data/loratory/adapters.db").is_file()


def test_ids_of_every_strategy(home: Path, loratory: Command) -> None:
    user = ("--registry", "user.db")
    assert "id 4711" in ok(loratory, "add", "sql", "adapters/sql", "--ids", "user", "--id", 4711, *user)
    assert "was given to adapter 'sql@1'" in refused(loratory, "add", "x", "adapters/chat", "--id", 4711, *user)
    assert "gives 'user' ids, not" in refused(loratory, "add", "x", "adapters/chat", "--ids", "hash", *user)
    words = ("--label", "task=sql", "--label", "domain=law")
    ok(loratory, "add", "sql", "adapters/sql", "--ids", "semantic", *words, "--registry", "s.db")
    assert "the id means: task sql, domain law, version 1" in ok(loratory, "show", "sql", "--registry", "s.db")
    shown = loratory("adapters", "show", "sql", "--registry", "s.db", "--json").json
    assert shown["decoded_id"] == {"task": "sql", "domain": "law", "version": 1}
    first, second = (
        loratory("adapters", "add", "sql", "adapters/sql", "--ids", "hash", "--registry", place, "--json").json
        for place in ("one.db", "two.db")
    )
    assert first["lora_int_id"] == second["lora_int_id"] > 2


def test_names_that_look_like_markup_are_shown_as_they_are(home: Path, loratory: Command) -> None:
    ok(loratory, "add", "[bold]x[/bold]", "adapters/sql", "--tenant", "[red]")
    assert "[bold]x[/bold]@1" in ok(loratory, "list") and "[red]" in ok(loratory, "show", "[bold]x[/bold]")


def test_the_same_commands_on_postgresql(home: Path, loratory: Command, postgres_registry: str) -> None:
    place = ("--registry", postgres_registry)
    ok(loratory, "add", "sql", "adapters/sql", *place)
    ok(loratory, "add", "sql", "adapters/sql-next", "--new-version", *place)
    ok(loratory, "promote", "sql", 2, *place)
    assert ok(loratory, "resolve", "sql", *place).startswith("sql@2\t2\t")
    assert "2 of 2 adapters" in ok(loratory, "verify", *place)
    assert len(parse_manifest(ok(loratory, "export", *place)).entries) == 2
    with Registry(postgres_registry) as registry:
        assert registry.names() == ("sql",)


def test_an_installed_command_needs_no_torch_for_all_this(home: Path) -> None:
    code = "import sys; sys.modules['torch'] = None\nfrom loratory.cli.main import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for arguments in (("add", "sql", "adapters/sql"), ("verify",), ("list", "--json")):
        command = [sys.executable, "-c", code, "adapters", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert (done.returncode, done.stderr) == (0, "")
    assert [each["ref"] for each in json.loads(done.stdout)] == ["sql@1"]


def test_the_help_names_every_command(loratory: Command) -> None:
    said = loratory("adapters", "--help").out
    wanted = [
        "add",
        "list",
        "show",
        "resolve",
        "promote",
        "rollback",
        "remove",
        "verify",
        "scan",
        "import",
        "export",
        "history",
    ]
    assert [word for word in wanted if word not in said] == []


def test_a_configuration_that_is_no_json_names_the_source_not_the_cache(
    home: Path, loratory: Command, web: Server
) -> None:
    files = adapter()
    files[CONFIG] = json.dumps(config(use_dora=True)).encode()
    web.files.update({f"/sql/{name}": data for name, data in files.items()})
    said = refused(loratory, "add", "sql", f"{web.url}/sql/", "--cache", "store")
    assert f"{web.url}/sql/{CONFIG}: use_dora" in said and "store" not in said
