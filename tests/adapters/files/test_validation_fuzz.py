"""Fuzz: whatever an adapter's files hold, they are described or refused; patterns match as Python's do."""

from __future__ import annotations

import json
import re
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from adapters_on_disk import BASE, CONFIG, WEIGHTS, config, data, header, packed, tensors
from adapters_on_disk import write as write_adapter
from hypothesis import given
from hypothesis import strategies as st
from lab import examples

from loratory.adapters.files.description import AdapterDescription
from loratory.adapters.files.peft_patterns import Patterns
from loratory.adapters.files.validation import FileLimits, validate
from loratory.errors import InvalidAdapter
from loratory.models.linear_layers import BLOCKS

pytestmark = pytest.mark.filterwarnings("ignore:Possible (nested|set):FutureWarning")

LIMITS = FileLimits(16, base=BASE)


def outcome(folder: Path, limits: FileLimits | None = None) -> AdapterDescription | str:
    """A description or a refusal; anything else is a failure of the test."""
    try:
        return validate(folder, limits or LIMITS)
    except InvalidAdapter as refusal:
        assert "\n" not in str(refusal)
        return str(refusal)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("fuzz"))


RAW = packed(header(tensors()), data(tensors()))
LENGTH = struct.unpack("<Q", RAW[:8])[0]


@examples(250)
@given(
    edits=st.lists(st.tuples(st.integers(0, LENGTH + 200), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.one_of(st.none(), st.integers(0, len(RAW))),
)
def test_mutated_bytes_give_a_description_or_a_refusal(
    fuzzed: Path, edits: list[tuple[int, int]], cut: int | None
) -> None:
    raw = bytearray(RAW)
    for place, byte in edits:
        raw[place] = byte
    (fuzzed / CONFIG).write_text(json.dumps(config()))
    (fuzzed / WEIGHTS).write_bytes(raw[:cut])
    found = outcome(fuzzed)
    if cut is not None and cut < len(raw):
        assert isinstance(found, str)
    if isinstance(found, AdapterDescription):
        assert found.bytes == len(data(tensors()))


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 2**70), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)


@examples(250)
@given(
    changes=st.lists(
        st.tuples(
            st.sampled_from(sorted(header(tensors()))),
            st.sampled_from(["dtype", "shape", "data_offsets", "", "key"]),
            JSON,
        ),
        min_size=1,
        max_size=3,
    )
)
def test_mutated_headers_give_a_description_or_a_refusal(fuzzed: Path, changes: list[tuple[str, str, Any]]) -> None:
    entries = header(tensors())
    for key, field, value in changes:
        if field == "key":
            entries[str(value)] = entries.pop(key, None)
        elif field and isinstance(entries.get(key), dict):
            entries[key][field] = value
        else:
            entries[key] = value
    (fuzzed / CONFIG).write_text(json.dumps(config()))
    (fuzzed / WEIGHTS).write_bytes(packed(entries, data(tensors())))
    outcome(fuzzed)


FIELDS = sorted(
    {*config(), "layers_to_transform", "layers_pattern", "exclude_modules", "use_dora", "auto_mapping", "new"}
)
PATTERN = st.text("qv_proj.*+?|()[]{}^$\\d0123,-<>!=:Pi", max_size=14)


@examples(400)
@given(
    changes=st.lists(
        st.tuples(
            st.sampled_from(FIELDS),
            st.one_of(
                JSON, PATTERN, st.lists(PATTERN, max_size=3), st.dictionaries(PATTERN, st.integers(0, 4), max_size=3)
            ),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_mutated_configurations_give_a_description_or_a_refusal(fuzzed: Path, changes: list[tuple[str, Any]]) -> None:
    (fuzzed / CONFIG).write_text(json.dumps(config() | dict(changes)))
    (fuzzed / WEIGHTS).write_bytes(RAW)
    outcome(fuzzed)
    outcome(fuzzed, FileLimits())


PATHS = [f"model.layers.{layer}.{parent}.{name}" for layer in (0, 11) for name, parent in BLOCKS.items()]
PIECES = st.sampled_from(
    [
        "q_proj",
        "proj",
        ".",
        r"\.",
        ".*",
        ".*?",
        "[qkv]",
        "[^.]+",
        "[a-z_]*",
        r"\d+",
        r"\w",
        r"\W",
        r"\b",
        r"\B",
        "(",
        ")",
        "(?:",
        "(?!",
        "(?=",
        "|",
        "*",
        "+",
        "?",
        "{1,3}",
        "{2}",
        "^",
        "$",
        "model",
        "layers",
        "1",
        "mlp",
        r"\Z",
        "x{0}",
    ]
)


@examples(1500)
@given(pattern=st.lists(PIECES, min_size=1, max_size=8).map("".join), path=st.sampled_from(PATHS))
def test_patterns_match_as_python_and_peft_do(pattern: str, path: str) -> None:
    patterns = Patterns("file")
    try:
        whole, begins = re.fullmatch(pattern, path), re.match(pattern, path)
    except re.error:
        with pytest.raises(InvalidAdapter, match="no regular expression"):
            patterns.whole(pattern, path)
        return
    peft_rule = re.match(rf"(.*\.)?({pattern})$", path) is not None
    try:
        assert patterns.whole(pattern, path) is (whole is not None)
        assert patterns.begins(pattern, path) is (begins is not None)
        assert (patterns.key([pattern], path) == pattern) is peft_rule
    except InvalidAdapter as refusal:
        assert re.search(r"[*+?}]\+", pattern) and "uses possessive repeat" in str(refusal)


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "nested repetitions": ({"target_modules": "(((.*)*)*)*.*.*.*.*.*.*.*.*.*.*.*x"}, "{}"),
    "thousands of expressions": ({"rank_pattern": {f"(.*)*{i}x": 1 for i in range(9000)}}, "{}"),
    "long expressions": ({"rank_pattern": {"(.|a)" * 700 + str(i): 1 for i in range(250)}}, "{}"),
    "long plain keys": ({"rank_pattern": {"a." * 2000 + str(i): 1 for i in range(250)}}, "{}"),
    "layers patterns": ({"layers_to_transform": [0, 1], "layers_pattern": [f"(.*){i}" for i in range(5000)]}, "{}"),
    "deep expression": ({"target_modules": "(a|" * 1000 + ")" * 1000}, "{}"),
    "wide configuration": ({"new": [{} for _ in range(250_000)]}, "{}"),
    "wide header": ({}, '{"a":[' + "[]," * 600_000 + "[]]}"),
    "many tensors": (
        {},
        json.dumps({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(30_000)}),
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_bounded_memory(name: str, tmp_path: Path) -> None:
    fields, text = HOSTILE[name]
    write_adapter(tmp_path, fields)
    if text != "{}":
        (tmp_path / WEIGHTS).write_bytes(packed(text, b""))
    traced = name.startswith(("wide", "many"))  # tracing the many small objects of the others would take seconds
    if traced:
        tracemalloc.start()
    try:
        found = outcome(tmp_path, FileLimits())
        peak = tracemalloc.get_traced_memory()[1] if traced else 0
    finally:
        tracemalloc.stop()
    assert peak < 64_000_000
    assert isinstance(found, str) is (name != "long plain keys")
