"""Scenarios of published measurements: valid, explained, listed, and found by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from loratory.errors import InputError
from loratory.scenarios.library_index import LibraryEntry, library, published
from loratory.scenarios.load import dump, load_scenario, load_text


@pytest.fixture(params=published(), ids=lambda entry: entry.name)
def entry(request: pytest.FixtureRequest) -> LibraryEntry:
    found: LibraryEntry = request.param
    return found


def test_each_is_valid_explained_and_round_trips(entry: LibraryEntry) -> None:
    scenario = load_scenario(entry.name)
    assert entry.name == f"published/{scenario.name}" and scenario.description == entry.description != ""
    assert entry.path.read_text().startswith("# ")
    assert load_text(dump(scenario)) == scenario


def test_names_do_not_clash_with_the_library() -> None:
    stems = {Path(entry.name).name for entry in published()}
    assert stems and not stems & {entry.name for entry in library()}


def test_a_near_name_is_offered() -> None:
    with pytest.raises(InputError, match="did you mean 'published/aiconfigurator'"):
        load_scenario("published/aiconfigurater")
