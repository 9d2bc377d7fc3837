"""Registry: what it keeps, what it refuses and with which sentence, in both databases."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from registry_process import description
from sqlalchemy import create_engine, text

from loratory.adapters.files.description import AdapterDescription, LoRAModule
from loratory.adapters.ids import MAX_ID, IdClaim, IssuedIds
from loratory.adapters.record import AdapterRecord, Change, Registration, split_ref
from loratory.adapters.registry.check import problems
from loratory.adapters.registry.registry import IdMeaning, Registry
from loratory.errors import InputError
from loratory.serving.lora import LoRARequest

ROOT = Path(__file__).parents[3]
NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)


@pytest.fixture
def registry(registry_url: str) -> Iterator[Registry]:
    with Registry(registry_url, clock=lambda: NOON) as opened:
        yield opened
        assert problems(opened) == []


def test_a_record_comes_back_as_it_went(registry: Registry, registry_url: str) -> None:
    module = LoRAModule("m.0.q", "q", 0, 4, 2.0, 16, 32, "a", "b")
    facts = AdapterDescription(4, 8.5, True, ("q", "v"), "org/base", "F16", 2**40, "sha256:ab", (module,))
    labels = {"team": "größer", "a.b/c-d_e": 'quote " and \\ and $'}
    added = registry.add("acme/sql ✓", "hf://acme/sql@v1", facts, tenant="acme", labels=labels)
    expected = AdapterRecord(
        "acme/sql ✓", 1, 1, "hf://acme/sql@v1", "sha256:ab", 4, ("q", "v"), 8.5, True, "org/base", "F16", 2**40,
        4 * 48, NOON, "acme", labels,
    )  # fmt: skip
    assert added == expected
    with Registry(registry_url, create=False) as another:
        assert another.resolve("acme/sql ✓") == another.resolve("acme/sql ✓@1") == another.by_id(1) == expected
        assert another.lora_request("acme/sql ✓") == LoRARequest("acme/sql ✓@1", 1, "hf://acme/sql@v1", "org/base")
        assert another.lora_request("acme/sql ✓@1", "/cache/ab").lora_path == "/cache/ab"


def test_the_same_content_is_registered_once(registry: Registry) -> None:
    first = registry.add("a", "/a", description("1"), labels={"x": "1"})
    assert registry.add("a", "/a", description("1"), labels={"x": "2"}) == first
    assert registry.add("a", "/a", description("1"), new_version=True) == first
    assert registry.history("a") == (Change(NOON, "a", "add", 1, 1),)


@pytest.mark.parametrize(("source", "digest", "says"), [("/b", "1", "source '/a', not '/b'"), ("/a", "2", "digest")])
def test_other_content_needs_a_new_version(registry: Registry, source: str, digest: str, says: str) -> None:
    registry.add("a", "/a", description("1"))
    with pytest.raises(InputError, match=f"{says}.*new version a@2"):
        registry.add("a", source, description(digest))
    second = registry.add("a", source, description(digest), new_version=True)
    assert (second.ref, second.lora_int_id) == ("a@2", 2)
    assert registry.resolve("a").version == 1


def test_another_tenant_or_id_is_not_the_same_adapter(registry_url: str) -> None:
    with Registry(registry_url, "user") as registry:
        registry.add("a", "/a", description("1"), tenant="acme", lora_int_id=70)
        with pytest.raises(InputError, match="belongs to tenant 'acme', not None"):
            registry.add("a", "/a", description("1"), lora_int_id=70)
        with pytest.raises(InputError, match="the id 70 for ever, not 71"):
            registry.add("a", "/a", description("1"), tenant="acme", lora_int_id=71)
        with pytest.raises(InputError, match="given to adapter 'a@1'"):
            registry.add("b", "/b", description("1"), lora_int_id=70)


def test_promotions_are_undone_one_by_one_and_pass_over_removed_versions(registry: Registry) -> None:
    for content in "1234":
        registry.add("a", "/a", description(content), new_version=True)
    for version in (2, 3, 2, 4):
        registry.promote("a", version)
    assert [registry.rollback("a").version for _ in range(2)] == [2, 3]
    registry.remove("a@2")
    assert registry.rollback("a").version == 1
    with pytest.raises(InputError, match="no former default"):
        registry.rollback("a")
    assert [change.action for change in registry.history("a")] == (
        ["add"] * 4 + ["promote"] * 4 + ["rollback"] * 2 + ["remove", "rollback"]
    )


def test_a_removed_adapter_leaves_its_id_and_version_taken(registry: Registry) -> None:
    registry.add("a", "/a", description("1"))
    registry.add("a", "/a", description("2"), new_version=True)
    with pytest.raises(InputError, match="a@1 is what 'a' resolves to"):
        registry.remove("a@1")
    assert [record.ref for record in registry.remove("a")] == ["a@1", "a@2"]
    for ref in ("a", "a@1"):
        with pytest.raises(InputError, match=f"{ref}' was removed: register a new version, a@3"):
            registry.resolve(ref)
    with pytest.raises(InputError, match="removed already"):
        registry.remove("a")
    with pytest.raises(InputError, match="was removed: register it as the new version a@3"):
        registry.add("a", "/a", description("1"))
    back = registry.add("a", "/a", description("1"), new_version=True)
    assert (back.ref, back.lora_int_id, registry.resolve("a")) == ("a@3", 3, back)
    assert registry.by_id(1).removed and len(registry) == 1


def test_listing_filters(registry: Registry) -> None:
    registry.add("ab", "/1", description("1"), tenant="t", labels={"k": "v", "l": "w"})
    registry.add("Ab", "/2", description("2"), labels={"k": "v"})
    registry.add("a%", "/3", AdapterDescription(1, 1.0, False, (), "other", "F32", 1, "d", ()), tenant="t")
    registry.add("é", "/4", description("4"))
    registry.remove("é")

    def refs(**filters: object) -> list[str]:
        return [record.ref for record in registry.list(**filters)]  # type: ignore[arg-type]

    assert refs() == ["Ab@1", "a%@1", "ab@1"]
    assert refs(removed=True) == ["Ab@1", "a%@1", "ab@1", "é@1"]
    assert refs(prefix="a") == ["a%@1", "ab@1"]
    assert refs(prefix="a%") == ["a%@1"]
    assert refs(tenant="t") == ["a%@1", "ab@1"]
    assert refs(base_model="other") == ["a%@1"]
    assert refs(labels={"k": "v"}) == ["Ab@1", "ab@1"]
    assert refs(labels={"k": "v", "l": "w"}, tenant="t") == ["ab@1"]
    assert registry.names() == ("Ab", "a%", "ab")


def test_many_are_registered_together_or_not_at_all(registry: Registry) -> None:
    wishes = [Registration(name, "/x", description(name)) for name in ("a", "b", "c")]
    with pytest.raises(InputError, match="'a' is registered with the source '/x', not '/y'"):
        registry.add_many([*wishes, Registration("a", "/y", description("a"))])
    assert len(registry) == 0
    assert [record.lora_int_id for record in registry.add_many(wishes)] == [1, 2, 3]


def test_a_semantic_registry_reads_its_ids_back(registry_url: str) -> None:
    with Registry(registry_url, "semantic") as registry:
        labels = {"task": "sql", "domain": "law"}
        first = registry.add("a", "/a", description("1"), labels=labels)
        second = registry.add("a", "/a", description("2"), labels=labels, new_version=True)
        other = registry.add("b", "/b", description("1"), labels={"task": "chat", "domain": "law"})
        assert [registry.decode(record.lora_int_id) for record in (first, second, other)] == [
            IdMeaning("sql", "law", 1), IdMeaning("sql", "law", 2), IdMeaning("chat", "law", 1),
        ]  # fmt: skip
        with pytest.raises(InputError, match="task code 9 of id"):
            registry.decode(9 << 21 | 1)
    with Registry(registry_url, create=False) as registry:
        assert registry.decode(second.lora_int_id) == IdMeaning("sql", "law", 2)


class AlwaysSeven:
    """A strategy of somebody's, which is wrong."""

    name = "seven"

    def assign(self, claim: IdClaim, book: IssuedIds) -> int:
        return MAX_ID + 7 if claim.name == "far" else 7


def test_a_wrong_strategy_cannot_give_an_id_twice(registry_url: str) -> None:
    with Registry(registry_url, AlwaysSeven()) as registry:
        assert registry.add("a", "/a", description("1")).lora_int_id == 7
        with pytest.raises(InputError, match="'seven' gave 'b' the id 7, which is adapter 'a@1'"):
            registry.add("b", "/b", description("1"))
        with pytest.raises(InputError, match="is not in 1 to"):
            registry.add("far", "/b", description("1"))
    with pytest.raises(InputError, match="has ids of a strategy 'seven'"):
        Registry(registry_url).open()


def test_a_registry_keeps_its_strategy(registry_url: str) -> None:
    with Registry(registry_url, "hash"):
        pass
    with Registry(registry_url) as registry:
        assert registry.ids == "hash"
        with pytest.raises(InputError, match="hash ids, which have no meaning"):
            registry.decode(1)
    with pytest.raises(InputError, match="gives 'hash' ids, not 'user'"):
        Registry(registry_url, "user").open()


def test_a_promotion_elsewhere_is_seen_at_once(registry: Registry, registry_url: str) -> None:
    registry.add("a", "/a", description("1"))
    registry.add("a", "/a", description("2"), new_version=True)
    with Registry(registry_url) as other:
        for version in (1, 2, 1, 2):
            other.promote("a", version)
            assert registry.resolve("a").version == version


@pytest.mark.parametrize(
    ("ref", "says"),
    [
        ("sql-writr", "did you mean 'sql-writer'"),
        ("zzz", "register it first"),
        ("sql-writer@2", "there is sql-writer@1"),
        ("sql-writer@0", "write name@2"),
        ("sql-writer@x", "write name@2"),
        ("@1", "not empty"),
        ("", "not empty"),
    ],
)
def test_a_name_that_does_not_resolve_is_told_what_is_near(registry: Registry, ref: str, says: str) -> None:
    registry.add("sql-writer", "/a", description("1"))
    with pytest.raises(InputError, match=says):
        registry.resolve(ref)
    with pytest.raises(InputError, match=says):
        registry.remove(ref)


def test_what_was_never_given_is_said(registry: Registry) -> None:
    for call in (lambda: registry.history("a"), lambda: registry.by_id(1), lambda: registry.rollback("a")):
        with pytest.raises(InputError):
            call()


@pytest.mark.parametrize(
    "bad", ["", " a", "a ", "a@1", "a\n", "a\0b", "\x1b[0m", "\ud800", "a\u2028b", "x" * 201, None, 3]
)
def test_bad_names_are_refused(registry: Registry, bad: str) -> None:
    with pytest.raises(InputError):
        registry.add(bad, "/a", description("1"))
    with pytest.raises(InputError):
        registry.promote(bad, 1)


@pytest.mark.parametrize(
    "more", [{"source": ""}, {"source": "a\0"}, {"tenant": ""}, {"labels": {"": "x"}}, {"labels": {'a"b': "x"}},
             {"labels": {"a": ""}}, {"labels": {"a": "\ud800"}}],
)  # fmt: skip
def test_bad_texts_are_refused(more: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Registration(**{"name": "a", "source": "/a", "description": description("1"), **more})  # type: ignore[arg-type]


def test_refs_are_split() -> None:
    assert split_ref("a/b") == ("a/b", None)
    assert split_ref("a/b@12") == ("a/b", 12)


def test_a_newer_schema_is_refused(registry_url: str) -> None:
    with Registry(registry_url) as registry:
        registry.add("a", "/a", description("1"))
    url = f"sqlite:///{registry_url}" if "://" not in registry_url else registry_url.replace("://", "+psycopg://")
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE loratory_registry SET schema_version = 99"))
    engine.dispose()
    with pytest.raises(InputError, match="has schema 99, but this Loratory reads 1: upgrade"):
        Registry(registry_url).resolve("a")


def test_tampering_is_found(registry_url: str) -> None:
    with Registry(registry_url) as registry:
        registry.add("a", "/a", description("1"))
        registry.add("a", "/a", description("2"), new_version=True)
    url = f"sqlite:///{registry_url}" if "://" not in registry_url else registry_url.replace("://", "+psycopg://")
    engine = create_engine(url)
    for change in ("names SET default_version = 2", "adapters SET removed = true", "names SET versions = 3"):
        with engine.begin() as connection:
            connection.execute(text(f"UPDATE loratory_{change}"))
        with Registry(registry_url) as registry:
            assert problems(registry)
    engine.dispose()


def test_a_registry_that_must_exist_is_not_made(registry_url: str) -> None:
    with pytest.raises(InputError, match="there is no registry at"):
        Registry(registry_url, create=False).open()
    if "://" not in registry_url:
        assert not Path(registry_url).exists()


def test_a_file_is_in_wal_mode_and_an_url_names_it_too(tmp_path: Path) -> None:
    with Registry(f"sqlite:///{tmp_path}/r.db") as registry:
        registry.add("a", "/a", description("1"))
    with sqlite3.connect(tmp_path / "r.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert Registry(tmp_path / "r.db").resolve("a").lora_int_id == 1


def test_a_file_that_is_replaced_is_read_anew_and_one_that_is_gone_is_told(tmp_path: Path) -> None:
    place, other = tmp_path / "r.db", tmp_path / "other.db"
    for path, digest in ((place, "1"), (other, "2")):
        with Registry(path) as registry:
            registry.add("a", f"/{path.name}", description(digest))
    with Registry(other) as registry:
        registry.add("b", "/b", description("3"))
    with Registry(place) as holds, Registry(place, create=False, hold=False) as reader:
        assert holds.names() == ("a",)
        assert reader.names() == ("a",) and reader.resolve("a").source == "/r.db"
        os.replace(other, place)
        assert reader.names() == ("a", "b") and reader.resolve("a").source == "/other.db"
        assert holds.names() == ("a", "b")
        holds.close()
        with Registry(place) as writer:  # a change by another process is no replacement
            writer.add("c", "/c", description("4"))
        assert reader.names() == ("a", "b", "c")
        place.rename(other)
        with pytest.raises(InputError, match="was there before, and is gone now"):
            reader.names()
        assert not place.exists()
        place.write_bytes(b"")
        with pytest.raises(InputError, match="there is no registry at"):
            reader.names()
        os.replace(other, place)
        assert reader.names() == ("a", "b", "c")


def test_a_registry_in_memory_ends_when_it_is_closed() -> None:
    registry = Registry(":memory:")
    registry.add("a", "/a", description("1"))
    assert registry.names() == ("a",)
    registry.close()
    assert registry.names() == ()


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root may write anywhere: somebody else, for the time being."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_place_one_may_not_write_is_refused() -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "r.db"
        with Registry(path) as registry:
            registry.add("a", "/a", description("1"))
        path.chmod(0o444)
        Path(folder).chmod(0o555)
        with unprivileged():
            with pytest.raises(InputError, match=r"cannot be (opened|written to)"):
                Registry(path).add("b", "/b", description("1"))
            with pytest.raises(InputError, match=r"cannot be (opened|written to)"):
                Registry(Path(folder) / "new.db").open()
        Path(folder).chmod(0o755)


def test_places_that_hold_no_registry_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is no database, though it is long enough to have a header" * 9)
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE mine (x)")
    (tmp_path / "pointer.db").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n")
    for where, says in (
        (tmp_path / "text", "is not a SQLite file"),
        (tmp_path / "pointer.db", "pointer.db is a Git LFS pointer, not the file"),
        (tmp_path / "other.db", "a database without a registry"),
        (tmp_path, "cannot be opened"),
        (tmp_path / "nowhere" / "r.db", "create it first"),
        ("", "no place for a registry"),
        ("mysql://host/db", "a registry cannot be at 'mysql://host/db'"),
        ("postgresql://host:port/db", "cannot be read"),
    ):
        with pytest.raises(InputError, match=says) as raised:
            Registry(where).open()
        assert "\n" not in str(raised.value)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    with Registry(path) as registry:
        registry.add_many(Registration(f"a{i}", "/a", description("1")) for i in range(300))
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(InputError, match="is damaged"):
        Registry(path).list()


def test_a_server_that_does_not_answer_is_told_without_the_password() -> None:
    with pytest.raises(InputError, match="cannot be reached") as raised:
        Registry("postgresql://me:hush@127.0.0.1:1/db").open()
    assert "hush" not in str(raised.value) and "\n" not in str(raised.value)


def test_a_wrong_password_is_told(postgres_url: str) -> None:
    user, _, rest = postgres_url.partition("://")[2].partition(":")
    with pytest.raises(InputError, match="authentication failed"):
        Registry(f"postgresql://{user}:wrong@{rest.partition('@')[2]}").open()


def test_without_the_driver_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(InputError, match=r'pip install "loratory\[postgres\]"'):
        Registry("postgresql://127.0.0.1/db").open()


def test_the_simulator_does_not_load_sqlalchemy() -> None:
    code = (
        "import importlib, pathlib, sys\n"
        "for room in ('serving', 'policies', 'sim'):\n"
        "    for file in pathlib.Path(room).glob('*.py'):\n"
        "        if not file.name.startswith('registry'):\n"
        "            importlib.import_module(f'{room}.{file.stem}')\n"
        "assert 'sqlalchemy' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
