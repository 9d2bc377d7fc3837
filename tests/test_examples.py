"""Examples: each runs from start to end, in a folder of its own, and the notebooks are kept without outputs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [(cell.outputs, cell.execution_count) for cell in code] == [([], None)] * len(code)


def test_the_notebook_compares_three_policies_and_draws_them(tmp_path: Path) -> None:
    """What its text says of the figures is true of them."""
    notebook = nbformat.read(EXAMPLES / "compare_policies.ipynb", as_version=4)
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    results = [output["data"] for output in outputs if output.get("data")]
    two, three = (data["text/plain"] for data in results if "text/html" in data)
    p99 = {line.split()[0]: [float(each) for each in line.split()[1:]] for line in three.splitlines()[2:]}
    first = {line.split()[0]: [float(each) for each in line.split()[1:]] for line in two.splitlines()[2:]}
    assert len(first) == 2 and all(p99[policy] == figures for policy, figures in first.items())
    fifo, fair, fewest = p99["fifo"], p99["fair_share"], p99["fewest_running.py:FewestRunning"]
    assert max(fair[1:]) < 7.5 < 20 < min(fifo) and fair[0] > 2 * fifo[0]
    assert max(fewest[1:]) < 0.5 * max(fifo[1:])
    assert 8.5 < fewest[0] - fifo[0] < 9.5 and 97 < fair[0] - fifo[0] < 98.5
    assert any("image/png" in data for data in results)


def test_the_program_prints_a_row_for_each_size_and_policy(tmp_path: Path) -> None:
    program = [sys.executable, EXAMPLES / "how_many_slots.py", "--slots", "4", "64", "--duration-s", "5"]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    policies = ("fifo", "affine_deficit")
    assert [row[:2] for row in rows] == [[slots, policy] for slots in ("4", "64") for policy in policies]
    hits = [float(row[4].rstrip("%")) for row in rows]
    assert max(hits[:2]) < min(hits[2:]), "more slots, more hits"
