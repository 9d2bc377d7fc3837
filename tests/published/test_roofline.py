"""Kernel and step times: every published row within 15 %, and the constants are those the figures give."""

from __future__ import annotations

import pytest

from loratory.reproduce import Reproduction, reproduce
from loratory.reproduce.fit.roofline import fit, main, used
from loratory.reproduce.kernel_times import PublishedTime, figures
from loratory.reproduce.roofline import DECODE, LINEAR, PREFILL, UNSEEN
from loratory.sim.catalogue import gpu, model
from loratory.sim.cost import RooflineCost, RooflineOptions


@pytest.fixture(scope="module")
def found() -> Reproduction:
    return reproduce("roofline")


def test_every_row_is_within_15_percent(found: Reproduction) -> None:
    assert {row.metric: sum(r.metric == row.metric for r in found.rows) for row in found.rows} == {
        LINEAR: 8,
        DECODE: 8,
        PREFILL: 4,
        UNSEEN: 6,
    }
    for row in found.rows:
        assert row.error is not None and abs(row.error) <= 0.15, row


def test_every_check_holds_at_the_limit_of_the_promise(found: Reproduction) -> None:
    assert found.holds and all(check.limit == 0.15 and check.expected is None for check in found.checks)
    assert {check.metric for check in found.checks} == {row.metric for row in found.rows}


def test_rows_that_set_a_constant_say_so(found: Reproduction) -> None:
    """Nine of the figures are predictions; of the fit's, the H200 gives but its step at batch 1."""
    assert sum(not used(figure) for figure in figures()) == 9
    tested = {(row.metric, row.case) for row in found.rows if row.use == "test"}
    assert {case for metric, case in tested if metric == DECODE} == {f"h200, batch {n}" for n in (8, 32, 64)}
    assert {case for metric, case in tested if metric == LINEAR} == {"a100-80gb, 64 tokens", "h100-80gb, 64 tokens"}


def test_runs_of_the_scenario_are_the_cost_model(found: Reproduction) -> None:
    """A decode step is linear in its context, so that the mean of a run's steps is the step at its mean context."""
    simulated = {(row.metric, row.case): row.simulated for row in found.rows}
    for figure in figures():
        if figure.kind != "linear":
            metric = DECODE if figure.kind == "decode" else PREFILL
            expected = 1e3 * figure.predicted_s()
            assert simulated[metric, f"{figure.gpu}, batch {figure.size}"] == pytest.approx(expected, rel=0.002)


def test_the_defaults_are_the_fit_rounded() -> None:
    constants, defaults = fit(), RooflineOptions()
    assert defaults.memory_efficiency == round(constants.memory, 2)
    assert defaults.compute_efficiency == round(constants.compute, 2)
    assert defaults.decode_attention_efficiency == round(constants.attention, 2)
    for card, architecture in (("a100-80gb", "Ampere"), ("h100-80gb", "Hopper"), ("h200", "Hopper")):
        per_layer = constants.layer_overhead_s[architecture]
        overhead = RooflineCost(model("llama-3.1-8b"), gpu(card)).explain(PublishedTime("decode", card, 1, 0.0).shape)[
            "overhead"
        ]
        ours = (overhead - defaults.step_overhead_s) / model("llama-3.1-8b").shape.layers
        assert ours == pytest.approx(per_layer, abs=1.5e-6)
    assert "memory 0.761" in main()
