"""Warm-up: found where there is one, not where there is none, and no steady state where a queue only grows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratory.errors import InputError
from loratory.reports import RunInfo, summarise
from loratory.reports.verdicts import verdicts
from loratory.reports.warmup import BATCH, FEWEST, WarmUp, detect, mser, number_in_system, settled, warmup_notes
from loratory.scenarios.load import load_scenario

SEEDS = range(40)


def noise(seed: int, n: int = 2000, memory: float = 0.8) -> Any:
    """Stationary, with the memory of a queue: an autoregressive series of mean 0 and variance 1."""
    rng = np.random.default_rng(seed)
    shocks = rng.normal(size=n) * np.sqrt(1 - memory**2)
    series = np.empty(n)
    series[0] = rng.normal()
    for place in range(1, n):
        series[place] = memory * series[place - 1] + shocks[place]
    return series


@given(values=st.lists(st.integers(-50, 50), min_size=0, max_size=200), batch=st.sampled_from([1, 2, 5]))
def test_mser_is_the_definition(values: list[int], batch: int) -> None:
    """White (1997): the cut, among the first half, with the least mark."""
    n = len(values) // batch
    means = np.array(values[: n * batch], float).reshape(n, batch).mean(axis=1)
    cut = mser(np.array(values, float), batch)
    assert cut % batch == 0 and cut <= max(len(values) // 2, 0) + batch
    if n >= 2:
        marks = [float(((means[d:] - means[d:].mean()) ** 2).sum()) / (n - d) ** 2 for d in range(n // 2 + 1)]
        assert marks[cut // batch] == pytest.approx(min(marks), rel=1e-6, abs=1e-9)
    else:
        assert cut == 0


def test_a_stationary_series_keeps_nearly_all() -> None:
    cuts = [mser(10 + noise(seed)) for seed in SEEDS]
    assert np.median(cuts) <= 50 and np.mean([cut > 200 for cut in cuts]) <= 0.25
    assert np.mean([settled(noise(seed)) for seed in SEEDS]) >= 0.9


@pytest.mark.parametrize("length", [100, 300, 600])
def test_a_transient_is_cut_where_it_ends(length: int) -> None:
    """An empty system that fills: the mean rises to its level with a time constant of a third of ``length``."""
    rise = -12 * np.exp(-3 * np.arange(2000) / length)
    cuts = np.array([mser(10 + rise + noise(seed)) for seed in SEEDS])
    assert length / 3 < np.median(cuts) < 2 * length
    assert np.mean([settled((10 + rise + noise(seed))[cut:]) for seed, cut in zip(SEEDS, cuts, strict=True)]) >= 0.85


def test_growth_is_no_steady_state() -> None:
    for seed in SEEDS:
        series = 0.02 * np.arange(2000) + noise(seed)
        assert not settled(series[mser(series) :])


def test_a_constant_series_is_steady_from_the_start() -> None:
    for value in (0.0, 1e9):
        series = np.full(500, value)
        assert mser(series) == 0 and settled(series)


@given(
    times=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=40),
)
def test_the_number_in_the_system_by_counting(times: list[tuple[int, int]]) -> None:
    """A request that ends when another arrives is gone."""
    arrival = np.array([a for a, _ in times], float)
    finish = np.array([a + d for a, d in times], float)
    order = np.argsort(arrival, kind="stable")
    found = number_in_system(arrival, finish)
    for rank, place in enumerate(order):
        now = arrival[place]
        assert found[rank] == rank - int((finish <= now).sum())


def queue(seed: int, load: float, n: int = 3000) -> tuple[Any, Any]:
    """Arrivals at rate 1 to one server with service of mean ``load``, empty at first."""
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(1.0, n))
    finish, free = np.empty(n), 0.0
    for place, service in enumerate(rng.exponential(load, n)):
        free = max(free, arrival[place]) + service
        finish[place] = free
    return arrival, finish


def test_a_queue_settles_below_its_capacity_and_never_above() -> None:
    light = [detect(*queue(seed, 0.5)) for seed in range(20)]
    heavy = [detect(*queue(seed, 1.2)) for seed in range(20)]
    assert sum(found.state == "steady" for found in light) >= 18
    assert all(found == WarmUp("no steady state") for found in heavy)
    assert np.median([found.end_s for found in light if found.end_s is not None]) < 300


def test_many_servers_that_fill_slowly() -> None:
    """Every request takes 100 s: the system fills for 100 s and is steady from then on."""
    ends = []
    for seed in range(20):
        arrival = np.cumsum(np.random.default_rng(seed).exponential(0.25, 4000))
        found = detect(arrival, arrival + 100.0)
        if found.end_s is not None:
            ends.append(found.end_s)
    assert len(ends) >= 17 and 80 < np.median(ends) < 120 and min(ends) > 60


def test_few_requests_say_nothing() -> None:
    arrival = np.arange(FEWEST - 1, dtype=float)
    assert detect(arrival, arrival + 1) == WarmUp("too few requests")
    assert detect(np.zeros(0), np.zeros(0)) == WarmUp("too few requests")
    arrival = np.arange(FEWEST, dtype=float)
    assert detect(arrival, arrival + 0.5) == WarmUp("steady", 0.0) and FEWEST % BATCH == 0


def filling(make_stream: Any, record: Any) -> Any:
    """Records of a run whose requests take long: it is warm after a while."""
    return record(make_stream(seed=3, requests=900, rate=5.0, slowness=12.0, rejected=0.0, failed=0.0).events())


def test_auto_cuts_what_is_detected(make_stream: Any, record: Any) -> None:
    records = filling(make_stream, record)
    whole = summarise(records, RunInfo("s", "fifo")).run
    auto = summarise(records, RunInfo("s", "fifo", warmup_s="auto")).run
    assert whole["warmup"]["state"] == "steady" and whole["warmup_s"] == 0.0 and not whole["warmup"]["auto"]
    cut = auto["warmup_s"]
    assert cut == auto["warmup"]["detected_s"] == whole["warmup"]["detected_s"] > 10
    table = records.requests.read().to_pandas()
    assert auto["requests"]["measured"] == int((table["arrival"] >= cut * (1 - 1e-9)).sum()) < 900
    again = summarise(records, RunInfo("s", "fifo", warmup_s=float(np.nextafter(cut, 0) * (1 - 1e-8)))).run
    assert again["ttft_s"] == auto["ttft_s"] and again["requests"] == auto["requests"]


def test_a_late_or_missing_steady_state_is_said(make_stream: Any, record: Any) -> None:
    records = filling(make_stream, record)
    whole = summarise(records, RunInfo("s", "fifo")).run
    auto = summarise(records, RunInfo("s", "fifo", warmup_s="auto")).run
    (note,) = warmup_notes([whole])
    assert "settles only after" in note and "under fifo" in note and "warmup_s: auto" in note
    assert any(verdict.topic == "Warm-up" and verdict.text == note for verdict in verdicts([whole]))
    assert warmup_notes([auto]) == []
    growing = {"policy": "fifo", "duration_s": 9.0, "warmup_s": 0.0}
    lost = growing | {"warmup": {"state": "no steady state", "detected_s": None, "auto": True}}
    fine = growing | {"warmup": {"state": "steady", "detected_s": 0.0, "auto": True}}
    (note,) = warmup_notes([lost, fine])
    assert "No steady state found under fifo (1 of 2 seeds)" in note and "auto cut nothing" in note


def test_a_scenario_takes_seconds_or_auto() -> None:
    assert load_scenario("quickstart", ["warmup_s=auto"]).warmup_s == "auto"
    assert load_scenario("quickstart", ["warmup_s=5"]).warmup_s == 5.0
    for value, says in (
        ("soon", "should be a number of seconds or auto, not 'soon'"),
        ("-1", "should be at least 0, not -1"),
        ("true", "should be a number, not true"),
    ):
        with pytest.raises(InputError, match=says):
            load_scenario("quickstart", [f"warmup_s={value}"])
