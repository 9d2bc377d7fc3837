"""loratory reproduce: what it prints and writes, its exit codes, and how verdicts come about."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from loratory.cli.reproduce import reproduce_command
from loratory.errors import InputError
from loratory.reproduce import REPRODUCTIONS
from loratory.reproduce.comparison import Check, Reproduction, Row, mean_error
from loratory.reproduce.page import block, with_block
from loratory.reproduce.plot import plot
from loratory.reproduce.render import figures_grids, headline, markdown, metrics_grid, number

ROOT = Path(__file__).resolve().parents[2]


def made_up(*checks: Check) -> Reproduction:
    rows = (
        Row("rate 1", "throughput, req/s", 1.0, 1.0, "fit"),
        Row("rate 2", "throughput, req/s", 2.0, 1.9),
        Row("rate 2 [a|b]", "throughput, req/s", 100.0, 104.0),
        Row("8 slots", "kv_tokens", 305104, 305120),
        Row("256 slots", "kv_tokens", "OOM", "OOM"),
        Row("300 slots", "kv_tokens", "OOM", 5.0),
        Row("idle", "gap, tokens", 0.0, 3.0),
    )
    return Reproduction(
        "made-up", "A made-up one", "Nobody (2026)", ("published/x",), "One row.", rows, checks, ("All.",)
    )


KEPT = Check("mean error", 0.045, 0.05, metric="throughput, req/s")
EXPLAINED = Check("gap", 9.0, 5.0, note="their clock stops at 8", expected=(8.5, 9.5))
MISSED = Check("attainment", 0.6, 0.9, at_least=True)
KEPT_AFTER_ALL = Check("gap", 4.0, 5.0, note="their clock stops at 8", expected=(8.5, 9.5))


def test_verdicts() -> None:
    verdicts = [check.verdict for check in (KEPT, EXPLAINED, MISSED, KEPT_AFTER_ALL)]
    assert verdicts == ["holds", "expected difference", "FAILS", "FAILS"]
    assert Check("odd", float("nan"), 1.0).verdict == "FAILS"
    assert made_up(KEPT, EXPLAINED).holds and not made_up(KEPT, MISSED).holds
    assert headline(made_up(KEPT, EXPLAINED)) == "made-up: A made-up one: 1 hold, 1 differ as expected"


def test_errors_are_of_predictions() -> None:
    found = made_up()
    assert mean_error(found.rows, "throughput, req/s") == pytest.approx(0.045)
    assert mean_error(found.rows, "throughput, req/s", symmetric=True) == pytest.approx((0.1 / 1.95 + 4 / 102) / 2)
    grid = {row[0]: row[1:] for row in metrics_grid(found).rows}
    assert grid["throughput, req/s"] == ["1", "2", "4.5%", "-5.0%", "rate 2"]
    assert grid["kv_tokens"] == ["0", "3", "0.0%, 1 of 2 words the same", "+0.0%", "8 slots"]


def test_every_figure_is_shown_once() -> None:
    found = made_up()
    rows = [row for grid in figures_grids(found) for row in grid.rows]
    assert len(rows) == len(found.rows)
    assert ["rate 1", "1*", "1", "+0.0%"] in rows and ["8 slots", "305,104", "305,120", "+0.0%"] in rows
    assert ["256 slots", "OOM", "OOM", "same"] in rows and ["300 slots", "OOM", "5", "DIFFERS"] in rows
    assert [number(value) for value in (0.012346, 12.0, 1234.5, "OOM")] == ["0.01235", "12", "1,234", "OOM"]


def test_metrics_of_the_same_cases_share_a_table() -> None:
    rows = tuple(Row(f"rate {n}", metric, 1.0, 1.0) for metric in "abcd" for n in range(3))
    grids = figures_grids(Reproduction("n", "t", "s", (), "", rows, ()))
    assert [grid.heads[1::3] for grid in grids] == [["a", "b", "c"], ["d"]]


def test_markdown_has_tables_notes_and_limits() -> None:
    text = markdown(made_up(KEPT, EXPLAINED))
    assert "| gap | 9 | at most 5 | expected difference (8.5 to 9.5) |" in text
    assert "*gap*: their clock stops at 8" in text and "* All." in text and "rate 2 [a\\|b]" in text
    many = tuple(Row(f"rate {n}", "a", 1.0, 1.0) for n in range(50))
    assert "<details><summary>All 50 published figures</summary>\n\n|" in markdown(
        Reproduction("n", "t", "s", (), "", many, ())
    )


def test_the_plot_has_a_panel_for_each_metric_with_numbers() -> None:
    svg = plot(made_up(KEPT))
    assert svg is not None and ElementTree.fromstring(svg).tag.endswith("svg") and "axes_3" in svg
    assert svg == plot(made_up(KEPT))
    assert plot(Reproduction("n", "t", "s", (), "", (Row("c", "m", "OOM", "OOM"),), ())) is None


def test_blocks_of_a_page_are_replaced_in_place() -> None:
    x, y, end = "<!-- made by: loratory reproduce x -->", "<!-- made by: loratory reproduce y -->", "<!-- end -->"
    page = f"a\n{x}\nold\n{end}\nb\n{y}{end}"
    once = with_block(page, "x", "new \\1\n")
    assert block(once, "x") == "new \\1\n" and block(once, "y") == "" and once.startswith("a\n") and "old" not in once
    assert with_block(once, "x", "new \\1\n") == once
    with pytest.raises(InputError, match="no block for z"):
        with_block(page, "z", "")


def test_a_failing_check_exits_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for checks, code in (((KEPT, EXPLAINED), 0), ((MISSED,), 1)):
        monkeypatch.setattr("loratory.cli.reproduce.reproduce", lambda *given, checks=checks: made_up(*checks))
        assert reproduce_command(["roofline"], None, None, None, False, None, None, False) == code
        printed = capsys.readouterr()
        assert printed.out.count("rate 2 [a|b]") == 1 and ("checks fail for made-up" in printed.err) == bool(code)
    assert "FAILS" in printed.out


def loratory(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loratory", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)


def test_it_runs_as_a_command(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- made by: loratory reproduce roofline -->\n<!-- end -->\n")
    done = loratory(
        *("reproduce", "roofline", "--json", "--out", tmp_path / "out"),
        *("--markdown", tmp_path / "all.md", "--docs", page),
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    (found,) = json.loads(done.stdout)
    assert found["holds"] and all(check["verdict"] == "holds" for check in found["checks"])
    assert {row["use"] for row in found["rows"]} == {"fit", "test"}
    assert json.loads((tmp_path / "out" / "roofline.json").read_text()) == found
    assert (tmp_path / "out" / "roofline.svg").stat().st_size > 10_000
    assert "| h200, batch 8 |" in page.read_text() and "## Kernel and step times" in (tmp_path / "all.md").read_text()


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing here\n")
    file = tmp_path / "file"
    file.write_text("")
    for arguments, says in (
        (("rooflin",), "did you mean 'roofline'?"),
        (("zzz",), "choose from slora, vtc"),
        (("roofline", "--docs", page), "no block for roofline"),
        (("roofline", "--docs", tmp_path / "none.md"), "cannot be read"),
        (("roofline", "--out", file), "is a file"),
    ):
        done = loratory("reproduce", *arguments)
        assert done.returncode == 2 and says in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_list_names_every_reproduction() -> None:
    listed = json.loads(loratory("reproduce", "--list", "--json").stdout)
    assert {entry["name"]: entry["description"] for entry in listed} == REPRODUCTIONS
    assert all(name in loratory("reproduce", "--list").stdout for name in REPRODUCTIONS)
