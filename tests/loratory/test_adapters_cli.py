"""``loratory adapters`` as an operator meets it: every command, text and JSON; bad input; nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from adapters_home import ok, refused
from adapters_on_disk import CONFIG, WEIGHTS, config, tensors, write
from command import Command
from servers import Server, adapter

from loratory.adapters.registry.manifest import parse_manifest
from loratory.adapters.registry.registry import Registry

ROOT = Path(__file__).resolve().parents[2]


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
