"""docs/fleets.md: its tables have every router and every name, its errors are the errors, and its router works.

Commands, links and files that the page names are tested with those of the other pages, in test_docs.py.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from command import command_line
from hypothesis import given
from hypothesis import strategies as st
from lab import examples, run
from pages import ROOT, blocks, rows

from loratory import load_scenario, router, run_scenario
from loratory.errors import InputError
from loratory.experiment.placement_spec import placement_names
from loratory.experiment.router_spec import router_factory, router_names
from loratory.testing import World, assert_serves, worlds

PAGE = ROOT / "docs" / "fleets.md"
REAL_PLACEMENTS = ("greedy", "bin_pack", "min_cost_flow")
TEXT = PAGE.read_text(encoding="utf-8")
FILES = {name[1]: block for block in blocks(PAGE) if (name := re.match(r"# (\w+)\.py\n", block.text))}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the files of the page."""
    for name, block in FILES.items():
        (tmp_path / f"{name}.py").write_text(block.text)
    (tmp_path / "my-fleet.yaml").write_text(
        next(block.text for block in blocks(PAGE) if block.text.startswith("name: "))
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_router_is_in_the_table_with_what_it_looks_at() -> None:
    table = {cells[0].strip("`"): cells[2] for cells in rows(PAGE, "router")}
    assert sorted(table) == router_names()
    for name, looks_at in table.items():
        assert ("reports" in looks_at) is router_factory(name).reads_reports


def test_every_placement_is_in_the_table_and_on_the_command_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loratory = command_line(capsys, monkeypatch)
    assert [cells[0].strip("`") for cells in rows(PAGE, "`placement`")] == ["replicate_all", *REAL_PLACEMENTS]
    listed = loratory("placements", "--json").json
    assert [each["name"] for each in listed] == placement_names()
    sources = {each["name"]: each["source"] for each in listed}
    assert all(sources[name] for name in REAL_PLACEMENTS) and "Dynamo" in sources["min_cost_flow"]
    told = loratory("placements", "greedy").out
    assert "Not modelled: the paper's learned model" in told and "most homes of one adapter" in told
    assert all(name in loratory("placements").out for name in placement_names())
    wrong = loratory("placements", "gredy")
    assert wrong.code == 2 and "placement 'gredy' is unknown: did you mean 'greedy'?" in wrong.err


def test_every_name_of_the_view_and_of_a_router_is_in_a_table() -> None:
    named = {word for cells in rows(PAGE, "name") for word in re.findall(r"`(\w+)", cells[0])}
    assert named == {name for name in dir(router.Fleet) if not name.startswith("_")}
    members = {cells[0].strip("`"): cells[1] for cells in rows(PAGE, "member")}
    assert {name.partition("(")[0] for name in members} == {n for n in dir(router.Router) if not n.startswith("_")}
    for name, default in members.items():
        member = getattr(router.Router, name.partition("(")[0])
        if inspect.isfunction(member):
            assert name == f"{member.__name__}({', '.join([*inspect.signature(member).parameters][1:])})"
        else:
            assert default == f"`{member!r}`".replace("'", '"')
    assert set(router.__all__) - set(re.findall(r"\w+", TEXT)) == {"Column", "InputError"}


@pytest.mark.parametrize("cells", [pytest.param(cells, id=cells[0]) for cells in rows(PAGE, "in the class")])
def test_what_cannot_be_meant_is_refused_with_the_sentence_of_the_page(cells: list[str], here: Path) -> None:
    code = cells[0].strip("`")
    (here / "mine.py").write_text(f"from loratory.router import Router\n\n\nclass Mine(Router):\n    {code}\n")
    with pytest.raises(InputError) as error:
        router_factory("mine.py:Mine")
    assert str(error.value) == f"router 'mine.py:Mine': {cells[1]}"


def test_the_router_of_the_page_serves_every_world(here: Path) -> None:
    make: Any = router_factory("my_router.py:Sticky:most=1")

    @examples(15)
    @given(world=worlds(), replicas=st.integers(2, 4))
    def anywhere(world: World, replicas: int) -> None:
        assert_serves(run(world, "fifo", replicas=replicas, router=make()))

    anywhere()


def test_the_router_of_the_page_is_short_and_loads_less_than_taking_turns(here: Path) -> None:
    body = FILES["my_router"].text.partition("class Sticky")[2].splitlines()
    assert len(body) <= 15
    loads = {}
    for spec in ("round_robin", "my_router.py:Sticky:most=8"):
        scenario = load_scenario("my-fleet.yaml", [f"cluster={{replicas: 4, router: '{spec}'}}"])
        (found,) = run_scenario(scenario)["runs"]
        assert found["requests"]["completed"] == found["requests"]["submitted"]
        loads[spec] = found["adapters"]["loads"]
    assert loads["my_router.py:Sticky:most=8"] < 0.8 * loads["round_robin"]
