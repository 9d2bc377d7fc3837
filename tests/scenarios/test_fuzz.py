"""Whatever stands in a scenario file, the answer is a scenario or one line; never a traceback of ours."""

from __future__ import annotations

import copy
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from loratory.errors import InputError
from loratory.scenarios.library_index import library
from loratory.scenarios.load import load_text
from loratory.scenarios.schema import Scenario

LIBRARY = [yaml.safe_load(entry.path.read_text()) for entry in library()]
WORDS = ["uniform", "poisson", "fixed", "zipf", "adapter-000", "", "x", "8", "1e3", "none", "exact", "-1", "~", "list"]
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 99), st.floats(-5, 5), st.sampled_from(WORDS), st.just(float("nan"))
)
keys = st.one_of(
    st.sampled_from(["count", "fixed", "poisson", "kind", "mean", "weights", "a", "streams"]), st.integers(0, 9)
)
values = st.recursive(
    scalars,
    lambda below: st.one_of(st.lists(below, max_size=3), st.dictionaries(keys, below, max_size=3)),
    max_leaves=6,
)


def paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(path for key, below in items for path in paths(below, (*here, key)))]


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_any_value_anywhere_gives_a_scenario_or_one_line(data: st.DataObject) -> None:
    raw = copy.deepcopy(data.draw(st.sampled_from(LIBRARY)))
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(paths(raw)[1:]))
        here = raw
        for key in path[:-1]:
            here = here[key]
        if data.draw(st.booleans()):
            here[path[-1]] = data.draw(values)
        elif isinstance(here, dict):
            here[data.draw(keys)] = data.draw(values)
    try:
        assert isinstance(load_text(yaml.safe_dump(raw), "my.yaml"), Scenario)
    except InputError as error:
        text = str(error)
        assert text.startswith("my.yaml") and "\n" not in text and len(text) < 600


@given(st.text(max_size=80))
@settings(max_examples=200, deadline=None)
def test_any_text_gives_one_line(text: str) -> None:
    try:
        load_text(text, "my.yaml")
    except InputError as error:
        assert str(error).startswith("my.yaml") and "\n" not in str(error)


@given(st.sampled_from(LIBRARY), st.text("abcdefghijklmnopqrstuvwxyz_.=0123[]{}:, ", max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_override_gives_a_scenario_or_one_line(raw: dict[str, Any], setting: str) -> None:
    for text in (setting, f"workload.{setting}", f"adapters.popularity={setting}", f"workload.arrivals.{setting}"):
        try:
            load_text(yaml.safe_dump(raw), "my.yaml", overrides=[text])
        except InputError as error:
            assert "\n" not in str(error)
