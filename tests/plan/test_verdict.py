"""Verdicts against a straightforward computation of the mean's 95 % interval."""

from __future__ import annotations

from math import inf, sqrt

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from loratory.plan.measure import Measured
from loratory.plan.verdict import Judgement, judge
from loratory.reports.slo_target import SloTarget, share_target, time_target

TTFT = time_target("ttft", "p99", 1.0)
TPOT = time_target("tpot", "p99", 0.05)
QUANTILES = (12.7062, 4.30265, 3.18245, 2.77645, 2.57058, 2.44691, 2.36462, 2.306, 2.26216, 2.22814, 2.20099)
"""The 0.975 quantiles of Student's t, with 1 to 11 degrees of freedom, from a table."""
SHARE = share_target(0.9, (("ttft", 1.0),))


def judged(values: list[float | None], target: SloTarget = TTFT, *others: tuple[SloTarget, float]) -> Judgement:
    """The judgement of runs with these values of a target, one a seed; and of other targets, equal in every seed."""
    more = {other.name: value for other, value in others}
    runs = [Measured({target.name: value, **more}) for value in values]
    return judge(runs, [target, *(other for other, _ in others)])


def interval(values: list[float]) -> tuple[float, float]:
    """The 95 % Student-t interval of the mean."""
    half = QUANTILES[len(values) - 2] * float(np.std(values, ddof=1)) / sqrt(len(values))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


@given(st.lists(st.floats(0.01, 3.0), min_size=2, max_size=12).filter(lambda values: np.std(values) > 1e-6))
def test_a_time_is_met_where_its_whole_interval_is_within_the_limit(values: list[float]) -> None:
    low, high = interval(values)
    assume(min(abs(low - 1.0), abs(high - 1.0)) > 1e-6)
    found = judged(values)
    assert found.verdict == ("met" if high < 1.0 else "missed" if low > 1.0 else "too_close")
    estimate = found.metrics[TTFT.name]
    low = max(0.0, low)  # no time is below 0
    assert estimate.low == pytest.approx(low, rel=1e-3, abs=1e-4) and estimate.high == pytest.approx(high, rel=1e-3)
    assert found.margin == pytest.approx(np.mean(values))
    assert found.seeds == len(values)


@given(st.lists(st.floats(0.5, 1.0), min_size=2, max_size=12).filter(lambda values: np.std(values) > 1e-6))
def test_a_share_is_met_where_its_whole_interval_is_above_the_limit(values: list[float]) -> None:
    low, high = interval(values)
    assume(min(abs(low - 0.9), abs(high - 0.9)) > 1e-4)
    found = judged([*values], SHARE)
    assert found.verdict == ("met" if low > 0.9 else "missed" if high < 0.9 else "too_close")
    assert found.margin == pytest.approx((1 - np.mean(values)) / 0.1)


def test_one_seed_decides_without_an_interval() -> None:
    for value, verdict in ((0.99, "met"), (1.0, "met"), (1.01, "missed")):
        found = judged([value])
        assert found.verdict == verdict and found.more_seeds is None
        assert found.metrics[TTFT.name].low is None is found.metrics[TTFT.name].high
    assert judged([0.9], SHARE).verdict == "met" and judged([0.89], SHARE).verdict == "missed"


def test_equal_values_have_an_interval_without_width() -> None:
    assert judged([1.0, 1.0, 1.0]).verdict == "met"
    assert judged([1.0001, 1.0001, 1.0001]).verdict == "missed"


def test_a_seed_that_never_ends_is_a_miss_and_has_no_number_in_the_answer() -> None:
    found = judged([0.2, inf, 0.2])
    assert found.verdict == "missed" and found.first_missed == TTFT.name and "has no end" in found.reason
    assert found.margin == inf and found.metrics[TTFT.name].as_dict()["mean"] is None
    assert judged([inf]).verdict == "missed"


def test_a_target_that_nothing_measured_is_open() -> None:
    found = judged([None, None])
    assert found.verdict == "too_close" and found.more_seeds is None and "not measured" in found.reason


def test_the_target_that_is_missed_by_most_is_named() -> None:
    found = judged([3.0, 3.1, 3.2], TTFT, (TPOT, 0.5))
    assert found.verdict == "missed" and found.first_missed == TPOT.name
    assert found.margin == pytest.approx(10.0)


def test_one_missed_target_is_enough_and_one_open_one_is_not() -> None:
    assert judged([0.1, 0.2], TTFT, (TPOT, 0.06)).verdict == "missed"
    assert judged([0.5, 1.4], TTFT, (TPOT, 0.06)).verdict == "missed"
    assert judged([0.5, 1.4], TTFT, (TPOT, 0.01)).verdict == "too_close"
    assert judged([0.1, 0.2], TTFT, (TPOT, 0.01)).verdict == "met"


def test_runs_that_were_all_stopped_miss_and_some_that_were_stopped_say_nothing() -> None:
    stopped, full = Measured({}, (TTFT.name,)), Measured({TTFT.name: 0.5})
    found = judge([stopped, stopped], [TTFT])
    assert found.verdict == "missed" and found.metrics[TTFT.name].at_least == 1.0
    mixed = judge([stopped, stopped, Measured({}, (TPOT.name,))], [TTFT, TPOT])
    assert mixed.verdict == "missed" and mixed.first_missed == TTFT.name
    assert mixed.reason.startswith("TTFT p99 is above 1 s in 2 of 3 runs, and other targets are missed in the rest")
    share = judge([Measured({}, (SHARE.name,))], [SHARE])
    assert share.verdict == "missed" and "is below 90 %" in share.reason
    assert judge([stopped, full], [TTFT]).metrics[TTFT.name].at_least is None


@given(st.integers(3, 8), st.floats(0.02, 0.4), st.floats(0.02, 0.6), st.booleans())
def test_after_so_many_more_seeds_of_the_same_spread_the_verdict_is_no_longer_open(
    seeds: int, spread: float, part: float, above: bool
) -> None:
    """Values of an exact mean and spread, as many as were asked for, have an interval that excludes the limit."""
    half = QUANTILES[seeds - 2] * spread / sqrt(seeds)
    mean = 1.0 + part * half * (1 if above else -1)
    found = judged([*exactly(seeds, mean, spread)])
    assert found.verdict == "too_close" and found.more_seeds is not None
    again = judged([*exactly(seeds + found.more_seeds, mean, spread)])
    assert again.verdict == ("missed" if above else "met")
    if found.more_seeds > 2:  # nor is it far too many: the t quantile falls, by up to 2.2 times from 3 seeds on
        fewer = seeds + found.more_seeds // 6
        assert judged([*exactly(fewer, mean, spread)]).verdict == "too_close"


def exactly(count: int, mean: float, spread: float) -> list[float]:
    """Values with this mean and standard deviation (of a sample)."""
    values = np.linspace(-1, 1, count)
    scaled: list[float] = (mean + values / values.std(ddof=1) * spread).tolist()
    return scaled
