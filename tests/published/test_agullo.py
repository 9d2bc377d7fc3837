"""Agullo et al. (arXiv:2508.08343): real vLLM 0.8.5 on an H100 of 64 GB, KV memory and an hour a cell.

The tests marked slow run every cell, about two CPU minutes; by default the two sides of the cliff are run.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from loratory.errors import InputError
from loratory.reproduce.agullo import FIT_SLOTS, SHOWN_EVERY, reproduce
from loratory.reproduce.agullo_cells import (
    SCENARIO,
    Cell,
    CellFigures,
    cells_of,
    figures_of,
    more_cells,
    published_cells,
)
from loratory.reproduce.cases import Case, run_case
from loratory.reproduce.comparison import Reproduction
from loratory.reproduce.fit import lora, sharegpt
from loratory.scenarios.library_index import published_folder
from loratory.scenarios.load import load_scenario

LIMITS = {
    "KV cache tokens, largest relative error of a cell": 0.02,
    "KV cache, cells wrongly out of memory or not": 0,
    "runs, cells wrongly out of memory or not": 0,
    "completed requests, mean symmetric error": 0.03,
    "mean ITL, mean relative error": 0.12,
    "median TTFT, share of cells on the measured side of 100 ms and 1 s": 0.95,
    "completed requests, mean symmetric error over cells not fitted": 0.03,
    "mean ITL, mean symmetric error over cells not fitted": 0.12,
    "mean ITL, mean relative error over cells not fitted": 0.12,
    "median TTFT at low rates, cells on another side of 100 ms and 1 s than published": 0,
    "cliff: completed with 128 slots over completed with 64, larger of 320 and 384 adapters": 0.95,
    "cliff: preemptions, fewer of the two cells": 1000,
    "cliff: peak share of KV blocks in use, lower of the two cells": 0.99,
    "preemptions in all other cells together": 100,
    **{
        f"{slots} slots, 64 adapters, high rates: completed requests of seeds 0 to 3, their range over its middle": 0.1
        for slots in (8, 16)
    },
}
"""What the issue asks for, and what we take the right reason of the cliff to mean."""


@pytest.fixture(scope="module")
def result() -> Reproduction:
    return reproduce()


@pytest.mark.slow
@pytest.mark.parametrize("what", LIMITS)
def test_the_check_holds(result: Reproduction, what: str) -> None:
    [check] = [check for check in result.checks if check.what == what]
    assert check.limit == LIMITS[what]
    assert check.as_expected and check.holds, check


@pytest.mark.slow
def test_there_is_no_other_check(result: Reproduction) -> None:
    assert {check.what for check in result.checks} == set(LIMITS)


@pytest.mark.slow
def test_what_set_constants_is_marked_and_every_cell_is_shown(result: Reproduction) -> None:
    fitted = [row for row in result.rows if row.use == "fit"]
    assert {row.metric for row in fitted} == {"mean ITL, ms", "completed requests"}
    assert all("high rates" in row.case for row in fitted if row.metric == "completed requests")
    slots = {row.case.partition(" slots")[0].rpartition(" ")[2] for row in fitted if row.metric == "mean ITL, ms"}
    assert slots <= {str(each) for each in FIT_SLOTS} == {"8", "32", "128", "256"}
    shown = {row.case for row in result.rows if row.metric != "KV cache, tokens"}
    assert len(shown) == len(published_cells()) + -(-len(more_cells()) // SHOWN_EVERY) == 41 + 24
    assert all(np.isfinite(row.simulated) for row in result.rows if not isinstance(row.simulated, str))


def test_the_cliff_is_the_fault_of_the_kv_pool() -> None:
    """With KV blocks without end, 128 slots and 384 adapters preempt nobody and serve a tenth more.

    The rest of the way to 64 slots (74,000 requests) is the time 128 adapters take in each step.
    """
    [scarce, fewer] = [
        figures_of(run, 1) for slots in (128, 64) for run in run_case(Case(SCENARIO, Cell(slots, 384).changes))
    ]
    assert scarce.preemptions > 1000 and scarce.completed < 0.95 * fewer.completed
    [run] = run_case(Case(SCENARIO, (*Cell(128, 384).changes, "engine.num_gpu_blocks=60000")))
    plenty = figures_of(run, 60_000)
    assert plenty.preemptions == 0 and plenty.kv_peak < 0.5
    assert plenty.completed > 1.1 * scarce.completed


def test_a_cell_has_as_many_adapters_at_each_rate_as_published() -> None:
    with (published_folder() / "measured" / "agullo_h100_vllm085_llama31_8b_r16.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["rates_req_s"]]
    for row in rows:
        scenario = load_scenario(SCENARIO, Cell(int(row["slots"]), int(row["adapters"])).changes)
        rates = scenario.adapters.rates
        assert isinstance(rates, list)
        counts = {group.rate: group.count for group in rates}
        published = zip(row["rates_req_s"].split(), row["adapters_per_rate"].split(), strict=True)
        assert counts == {float(rate): int(count) for rate, count in published}


def test_a_side_is_below_or_above_both_marks() -> None:
    sides = {ms: CellFigures(0.0, 0.0, ms, 0.0).side for ms in (99.0, 434.6, 1001.0)}
    assert sides == {99.0: "below 100 ms", 434.6: "between", 1001.0: "above 1 s"}


def test_lengths_are_those_of_vllms_sharegpt_benchmark() -> None:
    path = published_folder() / "measured" / "sharegpt_lengths.csv"
    prompt, output = np.loadtxt(path, delimiter=",", skiprows=1).T
    assert prompt.mean() == pytest.approx(sharegpt.MEAN_PROMPT, rel=0.01)
    assert output.mean() == pytest.approx(sharegpt.MEAN_OUTPUT, rel=0.01)
    assert prompt.min() >= 4 and output.min() >= 4 and prompt.max() <= 1024 and (prompt + output).max() <= 2048
    assert np.corrcoef(prompt, output)[0, 1] < -0.2, "long prompts have short outputs: they fill the context"


def test_tokens_are_estimated_from_words_and_a_cut_file_is_read() -> None:
    assert sharegpt.estimated_tokens("Hello, world 2024!") == pytest.approx(6, abs=1)
    whole = '[\n  {"conversations": []\n  },\n  {"conversations": [1]\n  },\n  {"conve'
    assert sharegpt.conversations(whole) == [{"conversations": []}, {"conversations": [1]}]


def test_the_equations_give_back_the_constants_they_were_made_with() -> None:
    truth = {key: 1.1 * value for key, value in lora.START.items()}
    rng = np.random.default_rng(0)
    made = [
        lora.Equation(0.0, 0.01, tuple((rng.uniform(0.5, 1.5, 6) / lora._unknowns(lora.START)).tolist()))
        for _ in range(40)
    ]
    itl_s = [e.fixed_s + float(np.dot(e.per, lora._unknowns(truth))) for e in made]
    assert lora.solve(made, itl_s) == pytest.approx(truth)
    assert lora.errors(made, itl_s, truth) == pytest.approx([0.0] * 40, abs=1e-9)


def test_the_equation_of_a_cell_is_its_simulation() -> None:
    """Without decode attention, which the host's work hides, the equation is the ITL of the cell's own simulation."""
    found = lora.simulated((Cell(8, 16), lora.START))
    assert lora.errors([found], [found.itl_s], lora.START) == pytest.approx([0.0], abs=0.03)


def test_rows_of_a_file_are_compared_and_bad_files_refused(tmp_path: Path) -> None:
    whole = published_folder() / "measured" / "agullo_h100_vllm085_more.csv"
    head, *lines = whole.read_text(encoding="utf-8").splitlines()
    first = next(line for line in lines if line.startswith("qwen-2.5-7b-instruct,32,8,8,0.025"))
    path = tmp_path / "rows.csv"
    path.write_text(f"{head}\n{first}\n")
    assert cells_of(path) == {cell: found for cell, found in more_cells().items() if cell in cells_of(path)}
    found = reproduce(path)
    assert {row.case for row in found.rows} == {"qwen-2.5-7b, 8 slots, 8 adapters, rank 32"}
    assert found.holds and "mean ITL, mean relative error" in {check.what for check in found.checks}
    assert not reproduce(path, ["cost.host_step_s=0.05"]).holds, "--set reaches the simulation"
    for line, says in (
        (first.replace("qwen-2.5-7b", "qwen-9"), "qwen-9"),
        (first.replace(",32,8,8,", ",32,8,many,"), "adapters is 'many'"),
        (first.replace(",32,8,8,", ",32,8,9,"), "add up to adapters"),
        (first.replace("0.025 0.05 0.1", "0.025 0.05"), "as many numbers"),
        (f"{first}\n{first}", "has the settings of"),
        ("", "has no rows"),
    ):
        path.write_text(f"{head}\n{line}\n")
        with pytest.raises(InputError, match=says):
            reproduce(path)


@pytest.mark.slow
def test_the_roofline_has_the_fitted_constants() -> None:
    """About 20 CPU minutes."""
    found, fitted, others = lora.fit(1)
    assert found == pytest.approx(lora.START, rel=0.1)
    assert np.abs(fitted).mean() < 0.05 and np.abs(others).mean() < 0.05
