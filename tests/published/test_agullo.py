"""Agullo et al. (arXiv:2508.08343): real vLLM 0.8.5 on an H100 of 64 GB, KV memory and an hour a cell.

The default tests run every cell, about 70 CPU seconds.
"""

from __future__ import annotations

import csv

import numpy as np
import pytest

from loratory.reproduce.agullo import FIT_CELLS, reproduce
from loratory.reproduce.agullo_cells import SCENARIO, Cell, CellFigures, figures_of, published_cells
from loratory.reproduce.cases import Case, run_case
from loratory.reproduce.comparison import Reproduction
from loratory.reproduce.fit import agullo, sharegpt
from loratory.scenarios.cost_spec import LinearCostSpec
from loratory.scenarios.library_index import published_folder
from loratory.scenarios.load import load_scenario

LIMITS = {
    "KV cache tokens, largest relative error of a cell": 0.02,
    "KV cache, cells wrongly out of memory or not": 0,
    "runs, cells wrongly out of memory or not": 0,
    "completed requests, mean symmetric error over cells not fitted": 0.03,
    "mean ITL, mean symmetric error over cells not fitted": 0.12,
    "mean ITL, mean relative error over cells not fitted": 0.12,
    "median TTFT, cells on another side of 100 ms and 1 s than published": 0,
    "cliff: completed with 128 slots over completed with 64, larger of 320 and 384 adapters": 0.95,
    "cliff: preemptions, fewer of the two cells": 1000,
    "cliff: peak share of KV blocks in use, lower of the two cells": 0.99,
    "preemptions in all other cells together": 100,
}
"""What the issue asks for, and what we take the right reason of the cliff to mean."""


@pytest.fixture(scope="module")
def result() -> Reproduction:
    return reproduce()


@pytest.mark.parametrize("what", LIMITS)
def test_the_check_holds(result: Reproduction, what: str) -> None:
    [check] = [check for check in result.checks if check.what == what]
    assert check.limit == LIMITS[what]
    assert check.as_expected and check.holds, check


def test_there_is_no_other_check(result: Reproduction) -> None:
    assert {check.what for check in result.checks} == set(LIMITS)


def test_at_most_six_cells_are_fitted_and_every_cell_is_shown(result: Reproduction) -> None:
    assert len({row.case for row in result.rows if row.use == "fit"}) == len(FIT_CELLS) <= 6
    shown = {row.case for row in result.rows if row.metric != "KV cache, tokens"}
    assert len(shown) == len(published_cells()) == 41
    assert all(np.isfinite(row.simulated) for row in result.rows if not isinstance(row.simulated, str))


def test_the_cliff_is_the_fault_of_the_kv_pool(result: Reproduction) -> None:
    """With KV blocks without end, 128 slots and 384 adapters preempt nobody and serve a tenth more.

    The rest of the way to 64 slots (74,000 requests) is the time 128 adapters take in each step.
    """
    [scarce] = [r for r in result.rows if r.case == "128 slots, 384 adapters" and r.metric == "completed requests"]
    [run] = run_case(Case(SCENARIO, (*Cell(128, 384).changes, "engine.num_gpu_blocks=60000")))
    plenty = figures_of(run, 60_000)
    assert plenty.preemptions == 0 and plenty.kv_peak < 0.5
    assert not isinstance(scarce.simulated, str)
    assert plenty.completed > 1.1 * scarce.simulated


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
    fixed = agullo.known()
    truth = {"decode_base_s": 0.014, "decode_per_seq_s": 4e-5, "per_adapter_s": 4e-4, "slot_token_s": 3e-7}
    rng = np.random.default_rng(0)
    means = [agullo.Means(*(rng.uniform(0.5, 1.5, 6) * (1e-4, 100, 4e4, 100, 20, 5e3)).tolist()) for _ in FIT_CELLS]
    itl_s = [
        m.load_s
        + fixed["decode_per_kv_token_s"] * m.kv_tokens
        + fixed["prefill_per_token_s"] * m.prefill_tokens
        + truth["decode_base_s"]
        + truth["decode_per_seq_s"] * m.decode_seqs
        + truth["per_adapter_s"] * m.adapters
        + truth["slot_token_s"] * m.slot_tokens
        for m in means
    ]
    assert agullo.equations(means, itl_s, fixed) == pytest.approx(truth)


def constants() -> dict[str, float]:
    cost = load_scenario(SCENARIO).cost
    assert isinstance(cost, LinearCostSpec)
    return {key: value for key, value in cost.model_dump().items() if isinstance(value, float) and value}


def test_the_scenario_has_the_constants_that_need_no_fit() -> None:
    for key, value in agullo.known().items():
        assert constants()[key] == pytest.approx(value, rel=0.005)


@pytest.mark.slow
def test_the_scenario_has_the_fitted_constants() -> None:
    """About 75 CPU seconds."""
    assert constants() == pytest.approx(agullo.fit(), rel=0.01)
