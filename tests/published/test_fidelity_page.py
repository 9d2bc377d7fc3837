"""docs/fidelity.md: a block for every reproduction, and the cheap ones are what the command makes today."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from loratory.reproduce import REPRODUCTIONS, reproduce
from loratory.reproduce.page import block
from loratory.reproduce.render import markdown

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8")
CHEAP = ("roofline",)


@pytest.mark.parametrize("name", REPRODUCTIONS)
def test_every_reproduction_has_a_block(name: str) -> None:
    assert block(PAGE, name) is not None


@pytest.mark.parametrize("name", CHEAP)
def test_the_block_is_what_is_generated(name: str) -> None:
    found = block(PAGE, name)
    assert found == f"\n{markdown(reproduce(name))}\n", "run: loratory reproduce NAME --docs docs/fidelity.md"


def test_every_block_names_a_reproduction_and_scenarios_that_exist() -> None:
    assert re.findall(r"<!-- made by: loratory reproduce (\S+) -->", PAGE) == list(REPRODUCTIONS)
    folder = ROOT / "scenarios" / "published"
    for name in re.findall(r"loratory run published/([\w.-]+)", PAGE):
        assert (folder / f"{name}.yaml").is_file(), name
