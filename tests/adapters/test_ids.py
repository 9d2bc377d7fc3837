"""Id strategies: unique, in range, the same in any process, and semantic ids to be read back."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratory.adapters.ids import (
    MAX_ID,
    HashIds,
    IdClaim,
    IdStrategy,
    SemanticId,
    SemanticIds,
    id_strategies,
    id_strategy,
)
from loratory.errors import InputError

ROOT = Path(__file__).parents[2]
TEXT = st.text(min_size=1, max_size=8)


class Book:
    """An IssuedIds in memory."""

    def __init__(self, taken: dict[int, str] | None = None) -> None:
        self.owners = dict(taken or {})
        self.counter = count(1)
        self.words: dict[str, list[str]] = {}

    def owner(self, lora_int_id: int) -> str | None:
        return self.owners.get(lora_int_id)

    def next_id(self) -> int:
        return next(self.counter)

    def code(self, kind: str, word: str) -> int:
        words = self.words.setdefault(kind, [])
        if word not in words:
            words.append(word)
        return words.index(word)

    def give(self, strategy: IdStrategy, claim: IdClaim) -> int:
        number = strategy.assign(claim, self)
        assert 1 <= number <= MAX_ID and number not in self.owners
        self.owners[number] = f"{claim.name}@{claim.version}"
        return number


def claims(strategy: str, names: list[tuple[str, str]]) -> list[IdClaim]:
    return [
        IdClaim(
            f"adapter-{index}", 1, source, digest, index * 7 + 1 if strategy == "user" else None,
            {"task": source, "domain": f"{index}"},
        )
        for index, (source, digest) in enumerate(names)
    ]  # fmt: skip


@pytest.mark.parametrize("strategy", id_strategies())
@given(contents=st.lists(st.tuples(TEXT, TEXT), max_size=30))
def test_ids_are_unique_in_range_and_depend_on_the_registrations_alone(
    strategy: str, contents: list[tuple[str, str]]
) -> None:
    chosen, book, again = id_strategy(strategy), Book(), Book()
    wanted = claims(strategy, contents)
    assert [book.give(chosen, claim) for claim in wanted] == [again.give(id_strategy(strategy), c) for c in wanted]


@given(st.lists(st.tuples(TEXT, TEXT), unique=True, min_size=1, max_size=20), st.randoms())
def test_hashed_ids_do_not_depend_on_who_came_first_but_for_collisions(contents, rng) -> None:
    one, other, shuffled = Book(), Book(), list(contents)
    rng.shuffle(shuffled)
    ids = {
        content: one.give(HashIds(), claim) for content, claim in zip(contents, claims("hash", contents), strict=True)
    }
    again = {c: other.give(HashIds(), claim) for c, claim in zip(shuffled, claims("hash", shuffled), strict=True)}
    assert ids == again


@given(TEXT, TEXT, st.integers(1, 5))
def test_collisions_are_hashed_again_in_order_of_registration(source: str, digest: str, others: int) -> None:
    rounds = [HashIds.candidate(source, digest, tried) for tried in range(others + 1)]
    book = Book(dict.fromkeys(rounds[:-1], "somebody@1"))
    assert book.give(HashIds(), IdClaim("late", 1, source, digest)) == rounds[-1]
    assert Book().give(HashIds(), IdClaim("first", 1, source, digest)) == rounds[0]


@given(st.lists(TEXT, min_size=2, max_size=2), st.lists(TEXT, min_size=2, max_size=2))
def test_source_and_digest_are_hashed_apart(one: list[str], other: list[str]) -> None:
    # ("ab", "c") and ("a", "bc") must not be the same text to the hash.
    joined = "".join(one) == "".join(other) and one != other
    if joined:
        assert HashIds.candidate(*one) != HashIds.candidate(*other)
    assert HashIds.candidate("ab", "c") != HashIds.candidate("a", "bc")


@pytest.mark.parametrize("seed", ["0", "1", "4242"])
def test_hashed_ids_are_the_same_in_any_process(seed: str) -> None:
    code = "print(*[HashIds.candidate(f's3://b/{i}', 'sha256:é') for i in range(50)])"
    code = f"from loratory.adapters.ids import HashIds; {code}"
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == [str(HashIds.candidate(f"s3://b/{i}", "sha256:é")) for i in range(50)]


def test_a_hashed_id_never_changes_between_releases() -> None:
    assert HashIds.candidate("hf://acme/sql-writer", "sha256:00") == 1569119870


@given(st.integers(0, 1023), st.integers(0, 1023), st.integers(1, 2047))
def test_semantic_ids_are_read_back(task: int, domain: int, version: int) -> None:
    fields = SemanticId(task, domain, version)
    number = SemanticIds.encode(fields)
    assert 1 <= number <= MAX_ID
    assert SemanticIds.decode(number) == fields


def test_semantic_ids_fill_31_bits() -> None:
    assert SemanticIds.encode(SemanticId(1023, 1023, 2047)) == MAX_ID
    assert SemanticIds.encode(SemanticId(0, 0, 1)) == 1


@pytest.mark.parametrize("fields", [(1024, 0, 1), (0, 1024, 1), (0, 0, 2048), (0, 0, 0), (-1, 0, 1), (0, -1, 1)])
def test_a_semantic_field_that_overflows_is_refused(fields: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match=r"does not fit in the 1[01] bits"):
        SemanticIds.encode(SemanticId(*fields))


@pytest.mark.parametrize("number", [0, -1, 2048, MAX_ID + 1, 2**40 + 1])
def test_what_is_no_semantic_id_is_refused(number: int) -> None:
    with pytest.raises(InputError, match="not a semantic id"):
        SemanticIds.decode(number)


def test_the_1025th_task_is_refused() -> None:
    book = Book()
    for index in range(1024):
        book.give(SemanticIds(), IdClaim("a", 1, "s", "d", labels={"task": f"t{index}", "domain": "d"}))
    with pytest.raises(InputError, match="task code 1024 does not fit"):
        SemanticIds().assign(IdClaim("a", 1, "s", "d", labels={"task": "t1024", "domain": "d"}), book)


@pytest.mark.parametrize(
    ("strategy", "claim", "says"),
    [
        ("user", IdClaim("a", 1, "s", "d"), "has no lora_int_id"),
        ("user", IdClaim("a", 1, "s", "d", 0), "from 1 to"),
        ("user", IdClaim("a", 1, "s", "d", 2**31), "from 1 to"),
        ("user", IdClaim("a", 1, "s", "d", True), "from 1 to"),
        ("user", IdClaim("a", 1, "s", "d", 7), "'first@1' and is never given again"),
        ("sequential", IdClaim("a", 1, "s", "d", 7), "'sequential' strategy assigns ids itself"),
        ("hash", IdClaim("a", 1, "s", "d", 7), "'hash' strategy assigns ids itself"),
        ("semantic", IdClaim("a", 1, "s", "d"), "no label 'task'"),
        ("semantic", IdClaim("a", 1, "s", "d", labels={"task": "t"}), "no label 'domain'"),
    ],
)
def test_what_cannot_get_an_id_is_told_why(strategy: str, claim: IdClaim, says: str) -> None:
    with pytest.raises(InputError, match=says):
        id_strategy(strategy).assign(claim, Book({7: "first@1"}))


def test_two_adapters_cannot_mean_the_same_semantically() -> None:
    book, labels = Book(), {"task": "sql", "domain": "law"}
    book.give(SemanticIds(), IdClaim("first", 1, "s", "d", labels=labels))
    with pytest.raises(InputError, match=r"is the id of adapter 'first@1'"):
        book.give(SemanticIds(), IdClaim("second", 1, "s", "d", labels=labels))
    book.give(SemanticIds(), IdClaim("first", 2, "s", "d", labels=labels))


def test_sequential_ids_pass_over_taken_ones_and_end() -> None:
    assert Book({1: "x@1", 2: "y@1"}).give(id_strategy("sequential"), IdClaim("a", 1, "s", "d")) == 3
    book = Book()
    book.counter = count(MAX_ID)
    assert book.give(id_strategy("sequential"), IdClaim("a", 1, "s", "d")) == MAX_ID
    with pytest.raises(InputError, match="all ids"):
        book.give(id_strategy("sequential"), IdClaim("b", 1, "s", "d"))


@pytest.mark.parametrize(("name", "says"), [("sematic", "did you mean 'semantic'"), ("", "choose one of sequential")])
def test_an_unknown_strategy_is_told_the_nearest(name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        id_strategy(name)
