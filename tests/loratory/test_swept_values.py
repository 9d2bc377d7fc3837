"""Values of ``--set key=a,b,c``: where a value is split, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from loratory.errors import InputError
from loratory.experiment.swept_values import Axis, axes_of, plain, split_values


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("8", ["8"]),
        ("8,16,32", ["8", "16", "32"]),
        ("{a: 1, b: 2}", ["{a: 1, b: 2}"]),
        ("[8, 16]", ["[8, 16]"]),
        ("[8, 16],[32]", ["[8, 16]", "[32]"]),
        ("{a: [1, {b: 2, c: 3}], d: 4},5", ["{a: [1, {b: 2, c: 3}], d: 4}", "5"]),
        ("'a, b',c", ["'a, b'", "c"]),
        ("'it''s, one',2", ["'it''s, one'", "2"]),
        ('"a\\", b",c', ['"a\\", b"', "c"]),
        ("{name: 'x, ]', n: \"}\"},y", ["{name: 'x, ]', n: \"}\"}", "y"]),
        ("don't,can't", ["don't", "can't"]),
        ("path/it's.csv,b", ["path/it's.csv", "b"]),
        ("8,,16", ["8", "", "16"]),
        ("", [""]),
        ("[8, 16", ["[8, 16"]),  # YAML tells what is wrong with these
        ("8], 16", ["8], 16"]),
        ("[8}, 16", ["[8}, 16"]),
        ("'open, 16", ["'open, 16"]),
    ],
)
def test_a_value_is_split_at_its_outer_commas(text: str, parts: list[str]) -> None:
    assert split_values(text) == parts


_words = st.text(st.sampled_from("ab,[]{}'\"\\:# é"), max_size=8)
_scalars = st.none() | st.booleans() | st.integers(-99, 99) | _words
_values: st.SearchStrategy[Any] = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_words, inner, max_size=3), max_leaves=6
)


@given(st.lists(_values, min_size=1, max_size=4), st.sampled_from([",", ", ", " ,"]))
def test_values_that_are_joined_by_commas_are_found_again(values: list[Any], comma: str) -> None:
    """JSON texts are YAML, with every kind of bracket, quote and escape."""
    texts = [json.dumps(value) for value in values]
    parts = split_values(comma.join(texts))
    assert [part.strip() for part in parts] == texts
    assert [yaml.safe_load(part) for part in parts] == values


@given(_words)
def test_a_quoted_text_is_one_value(text: str) -> None:
    quoted = "'" + text.replace("'", "''") + "'"
    assert split_values(f"{quoted},8") == [quoted, "8"]


@given(st.text(st.characters(exclude_characters=","), max_size=20))
def test_a_value_without_a_comma_is_left_as_it_is(text: str) -> None:
    setting = f"engine.max_loras={text}"
    assert axes_of([setting]) == [setting]


def test_settings_keep_their_order_and_only_lists_of_values_are_swept() -> None:
    settings = ["engine.max_loras=8, 16", "workload.arrivals={poisson: 3}", "description=one, two", "seeds=[0, 1]"]
    assert axes_of(settings) == [Axis("engine.max_loras", ("8", "16")), *settings[1:]]
    assert axes_of(["no equals, sign", "=8,16"]) == ["no equals, sign", "=8,16"]  # loading refuses these


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["engine.max_loras=8,,16"], "has an empty value"),
        (["engine.max_loras=8,16,"], "has an empty value"),
        (["engine.max_loras=8,16, 8"], "has 8 twice"),
        (["engine.max_loras=8,16,0x8"], "has 0x8 twice"),
        (["seeds=0,1,2"], "give a list, seeds=[0,1,2]"),
        (["policies=fifo,affinity"], "give a list, policies=[fifo,affinity]"),
        (["policies.0=fifo,affinity"], "give a list"),
        (["engine.max_loras=8,16", "engine.max_loras=4"], "replaces --set engine.max_loras=8,16"),
        (["engine.max_loras=4", "engine.max_loras=8,16"], "replaces --set engine.max_loras=4"),
        (["engine.max_loras=8,16", "engine={max_loras: 4}"], "replaces --set engine.max_loras=8,16"),
    ],
)
def test_what_cannot_be_swept_is_refused(settings: list[str], says: str) -> None:
    with pytest.raises(InputError, match=r"^--set ") as refused:
        axes_of(settings)
    assert says in str(refused.value)


def test_a_key_given_twice_without_a_sweep_means_what_it_did() -> None:
    """The later one counts, and a section may be given before a swept key in it."""
    assert axes_of(["engine.max_loras=8", "engine.max_loras=4"]) == ["engine.max_loras=8", "engine.max_loras=4"]
    assert axes_of(["engine={max_loras: 4}", "engine.max_num_seqs=8,16"])[1] == Axis("engine.max_num_seqs", ("8", "16"))


def test_values_of_a_summary_are_those_of_json() -> None:
    assert [plain(text) for text in ("8", "1.5", "true", "null", "fifo", "{a: [1]}", "2026-01-01", "[1")] == [
        8, 1.5, True, None, "fifo", {"a": [1]}, "2026-01-01", "[1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("lora_affinity:queue=2,kv=0", None),
        ("a,lora_affinity:queue=2, kv=0,b", ("a", "lora_affinity:queue=2, kv=0", "b")),
        ("mine.py:Mine:x=1,y=2,b:z=1", ("mine.py:Mine:x=1,y=2", "b:z=1")),
    ],
)
def test_a_second_parameter_is_no_value_of_a_sweep(text: str, values: tuple[str, ...] | None) -> None:
    setting = f"cluster.router={text}"
    assert axes_of([setting]) == [setting if values is None else Axis("cluster.router", values)]
