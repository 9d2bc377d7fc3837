"""Examples: each runs from start to end, in a folder of its own, and the notebooks are kept without outputs."""

from __future__ import annotations

import json
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


def test_adapters_are_trained_and_registered(tmp_path: Path) -> None:
    """On a tiny random model, two steps each: files that a registry accepts; one that is there is left as it is."""
    pytest.importorskip("peft", reason="training needs torch and PEFT")
    from loratory.adapters.fetch import AdapterFetcher
    from loratory.adapters.files.validation import FileLimits
    from loratory.adapters.sources.cache import AdapterCache
    from loratory.executor.random_checkpoint import model_config, random_checkpoint

    config = model_config("tiny-llama")
    random_checkpoint(tmp_path / "model", config)
    out = tmp_path / "adapters"

    def train(*names: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, EXAMPLES / "train_adapters.py", tmp_path / "model", out, *names, "--steps", "2"]
        return subprocess.run(program, capture_output=True, text=True)

    first = train("json", "one-word")
    assert first.returncode == 0, first.stderr
    fetcher = AdapterFetcher(AdapterCache(tmp_path / "cache"), FileLimits(base=config.shape))
    ranks = {name: fetcher.verified(name, str(out / name), None).description.rank for name in ("json", "one-word")}
    assert ranks == {"json": 8, "one-word": 4}
    settings = json.loads((out / "json" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tmp_path / "model")
    weights = out / "json" / "adapter_model.safetensors"
    before = (weights.read_bytes(), weights.stat().st_mtime_ns)
    again = train("json")
    assert again.returncode == 0 and again.stdout == f"json: {out / 'json'} is there already\n"
    assert (weights.read_bytes(), weights.stat().st_mtime_ns) == before
    wrong = train("jsn")
    assert wrong.returncode == 2 and "did you mean 'json'?" in wrong.stderr
