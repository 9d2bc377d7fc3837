"""Registry against a plain model: adding, promoting, rolling back, removing in any order, in both databases."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from registry_process import description
from schemas import own_schema

from loratory.adapters.record import Registration
from loratory.adapters.registry.check import problems
from loratory.adapters.registry.registry import Registry
from loratory.errors import InputError

NAMES = st.sampled_from(["a", "b", "ab"])
CONTENTS = st.sampled_from([("/1", "x"), ("/1", "y"), ("/2", "x"), ("/3", "z")])


@dataclass
class Name:
    """The model of one name: the content of each version, which are removed, and the defaults, the last in force."""

    contents: list[tuple[str, str]] = field(default_factory=list)
    removed: set[int] = field(default_factory=set)
    defaults: list[int] = field(default_factory=list)


class RegistryMachine(RuleBasedStateMachine):
    """``where`` names an empty place for a registry; set by the tests below."""

    postgres: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        if self.postgres is None:
            where = str(Path(self.stack.enter_context(tempfile.TemporaryDirectory())) / "registry.db")
        else:
            where = self.stack.enter_context(own_schema(self.postgres))
        self.where = where
        self.registry = self.stack.enter_context(Registry(where))
        self.model: dict[str, Name] = {}
        self.ids: dict[str, int] = {}

    def teardown(self) -> None:
        assert problems(self.registry) == []
        self.stack.close()

    def expect(self, name: str, content: tuple[str, str], new_version: bool) -> int | None:
        """The version the model answers with, after taking the registration in; None where it refuses."""
        entry = self.model.get(name)
        if entry is None:
            entry = self.model[name] = Name()
        else:
            same = [v for v, c in enumerate(entry.contents, 1) if c == content and v not in entry.removed]
            if same:
                return same[-1]
            if not new_version:
                return None
        entry.contents.append(content)
        if not entry.defaults:
            entry.defaults.append(len(entry.contents))
        return len(entry.contents)

    @rule(name=NAMES, content=CONTENTS, new_version=st.booleans())
    def add(self, name: str, content: tuple[str, str], new_version: bool) -> None:
        version = self.expect(name, content, new_version)
        if version is None:
            with pytest.raises(InputError, match="new version"):
                self.registry.add(name, content[0], description(content[1]), new_version=new_version)
            return
        record = self.registry.add(name, content[0], description(content[1]), new_version=new_version)
        assert (record.version, record.source, record.digest) == (version, content[0], f"sha256:{content[1]}")
        assert self.ids.setdefault(record.ref, record.lora_int_id) == record.lora_int_id

    @rule(batch=st.lists(st.tuples(NAMES, CONTENTS), min_size=1, max_size=4), spoiled=st.booleans())
    def add_many(self, batch: list[tuple[str, tuple[str, str]]], spoiled: bool) -> None:
        wishes = [Registration(name, source, description(digest), new_version=True) for name, (source, digest) in batch]
        if spoiled:
            wishes.append(Registration("a", "/1", description("x"), lora_int_id=2**31 - 1))
            with pytest.raises(InputError):
                self.registry.add_many(wishes)
            return
        records = self.registry.add_many(wishes)
        assert [record.version for record in records] == [self.expect(*each, True) for each in batch]
        for record in records:
            assert self.ids.setdefault(record.ref, record.lora_int_id) == record.lora_int_id

    @rule(name=NAMES, version=st.integers(1, 6))
    def promote(self, name: str, version: int) -> None:
        entry = self.model.get(name, Name())
        if not 1 <= version <= len(entry.contents) or version in entry.removed:
            with pytest.raises(InputError):
                self.registry.promote(name, version)
            return
        assert self.registry.promote(name, version).version == version
        if entry.defaults[-1] != version:
            entry.defaults.append(version)

    @rule(name=NAMES)
    def rollback(self, name: str) -> None:
        entry = self.model.get(name, Name())
        former = [version for version in entry.defaults if version != entry.defaults[-1]]
        if not former:
            with pytest.raises(InputError):
                self.registry.rollback(name)
            return
        current = entry.defaults[-1]
        while entry.defaults[-1] == current:
            entry.defaults.pop()
        assert self.registry.rollback(name).version == entry.defaults[-1]

    @rule(name=NAMES, version=st.none() | st.integers(1, 6))
    def remove(self, name: str, version: int | None) -> None:
        entry = self.model.get(name, Name())
        live = set(range(1, len(entry.contents) + 1)) - entry.removed
        gone = live if version is None else live & {version}
        ref = name if version is None else f"{name}@{version}"
        if not gone or (gone != live and version == entry.defaults[-1]):
            with pytest.raises(InputError):
                self.registry.remove(ref)
            return
        removed = self.registry.remove(ref)
        assert {record.version for record in removed} == gone and all(record.removed for record in removed)
        entry.removed |= gone
        entry.defaults = [version for version in entry.defaults if version not in gone]

    @rule()
    def reopen(self) -> None:
        self.registry.close()
        self.registry = self.stack.enter_context(Registry(self.where, create=False))

    @rule(name=NAMES, version=st.integers(1, 6))
    def resolve_a_version(self, name: str, version: int) -> None:
        entry = self.model.get(name, Name())
        if version > len(entry.contents) or version in entry.removed:
            with pytest.raises(InputError):
                self.registry.resolve(f"{name}@{version}")
        else:
            record = self.registry.resolve(f"{name}@{version}")
            assert record.lora_int_id == self.ids[record.ref]
            assert (record.source, record.digest.removeprefix("sha256:")) == entry.contents[version - 1]

    @invariant()
    def defaults_are_the_models(self) -> None:
        expected = {name: entry.defaults[-1] for name, entry in self.model.items() if entry.defaults}
        assert self.registry.defaults() == expected
        for name, version in expected.items():
            assert self.registry.resolve(name).version == version
        for name in self.model.keys() - expected.keys():
            with pytest.raises(InputError):
                self.registry.resolve(name)

    @invariant()
    def ids_belong_to_one_adapter_for_ever(self) -> None:
        records = self.registry.list(removed=True)
        assert {record.ref: record.lora_int_id for record in records} == self.ids
        assert len(set(self.ids.values())) == len(self.ids)
        assert len(self.registry) == sum(not record.removed for record in records)


def test_sqlite_does_what_the_model_does() -> None:
    run_state_machine_as_test(RegistryMachine, settings=settings(max_examples=40, stateful_step_count=20))


def test_postgresql_does_what_the_model_does(postgres_url: str) -> None:
    class OnPostgres(RegistryMachine):
        postgres = postgres_url

    # The code is SQLite's above, where a failure shrinks fast; here that would take minutes.
    limits = settings(max_examples=15, stateful_step_count=20, phases=[Phase.generate])
    run_state_machine_as_test(OnPostgres, settings=limits)
