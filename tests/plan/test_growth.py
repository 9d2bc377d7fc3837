"""Growth of each factor of the load, over every kind of arrivals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_plan import small

from loratory.errors import InputError
from loratory.experiment.resolve import build
from loratory.plan.growth import CannotGrowError, grown, ladder, requests_per_s
from loratory.scenarios.build import build_workload
from loratory.scenarios.plan_spec import FACTORS, Factor
from loratory.scenarios.schema import Scenario
from loratory.serving.workload import Workload

ARRIVALS: dict[str, dict[str, Any]] = {
    "poisson": {"poisson": 8.0},
    "gamma": {"gamma": {"rate": 8.0, "cv": 2.0}},
    "constant": {"constant": 8.0},
    "on_off": {"on_off": {"on_s": 5.0, "off_s": 10.0, "rate_on": 20.0, "rate_off": 2.0}},
    "diurnal": {"diurnal": {"rate": 8.0, "period_s": 100.0}},
}
LENGTHS = {"input_tokens": {"uniform": [20, 200]}, "output_tokens": {"uniform": [4, 24]}}


def by(arrivals: dict[str, Any], **workload: Any) -> Scenario:
    """A scenario with these arrivals."""
    given = {"requests": 4000} if "duration_s" not in workload else {}
    return small(workload={"_replace": True, **LENGTHS, "arrivals": arrivals, **given, **workload}).scenario


def by_rates(rates: Any, count: int | None = None) -> Scenario:
    """A scenario with a rate for each adapter."""
    adapters = {"_replace": True, "rates": rates, "initial_tier": "host", **({} if count is None else {"count": count})}
    return small(adapters=adapters, workload={"_replace": True, **LENGTHS, "duration_s": 400.0}).scenario


def by_trace(folder: Path, adapter: str = "", **workload: Any) -> Scenario:
    """A scenario with a trace of 600 requests in 150 s; with ``adapter``, that column names adapters."""
    rng = np.random.default_rng(3)
    times = np.sort(rng.uniform(0, 150, 600))
    rows = [f"{t:.4f},{rng.integers(20, 200)},{rng.integers(4, 24)},lora-{rng.integers(8)}" for t in times]
    head = f"timestamp_s,input_length,output_length,{adapter or 'who'}"
    (folder / "trace.csv").write_text("\n".join([head, *rows]) + "\n")
    adapters = {"_replace": True} if adapter else {}
    given = {"_replace": True, "trace": str(folder / "trace.csv"), **workload}
    return small(adapters=adapters, workload=given).scenario


def workload(scenario: Scenario, seed: int = 0) -> Workload:
    return build_workload(scenario, seed, build(scenario).adapters)


def rate(scenario: Scenario) -> float:
    """Mean requests/s over three seeds."""
    made = [workload(scenario, seed) for seed in range(3)]
    return float(np.mean([requests_per_s(scenario, len(each), float(each.arrival[-1])) for each in made]))


def same(one: Workload, other: Workload) -> bool:
    keys = ("arrival", "adapter", "prompt_tokens", "output_tokens", "tenant")
    return all(np.array_equal(getattr(one, key), getattr(other, key)) for key in keys)


@pytest.mark.parametrize("kind", ARRIVALS)
@pytest.mark.parametrize("span", [{}, {"duration_s": 500.0}])
def test_twice_the_traffic_is_twice_the_rate(kind: str, span: dict[str, float]) -> None:
    scenario = by(ARRIVALS[kind], **span)
    assert rate(grown(scenario, "traffic", 2.0)) / rate(scenario) == pytest.approx(2.0, rel=0.1)


def test_twice_the_traffic_is_twice_the_clients_of_a_closed_loop() -> None:
    scenario = by({"closed_loop": {"concurrency": 5}})
    assert workload(grown(scenario, "traffic", 2.0)).concurrency == 10
    assert workload(grown(scenario, "traffic", 0.01)).concurrency == 1


@pytest.mark.parametrize(
    "rates, count",
    [
        ([{"count": 4, "rate": 2.0}, {"count": 2, "rate": 0.5}], None),
        ([{"share": 0.5, "rate": 2.0}, {"share": 0.5, "rate": 0.5}], 6),
        (1.5, 6),
        ({"a": 5.0, "b": 1.0}, None),
    ],
)
def test_twice_the_traffic_is_twice_the_rate_of_every_adapter(rates: Any, count: int | None) -> None:
    scenario = by_rates(rates, count)
    assert rate(grown(scenario, "traffic", 2.0)) / rate(scenario) == pytest.approx(2.0, rel=0.1)
    if isinstance(rates, dict):
        with pytest.raises(CannotGrowError, match="one by one"):
            grown(scenario, "adapters", 2.0)
    else:
        twice = grown(scenario, "adapters", 2.0)
        assert len(build(twice).adapters) == 2 * len(build(scenario).adapters)
        assert rate(twice) / rate(scenario) == pytest.approx(2.0, rel=0.1)


def test_twice_the_traffic_of_streams_is_that_of_each() -> None:
    streams = [{"tenant": name, "arrivals": arrivals} for name, arrivals in ARRIVALS.items()]
    scenario = small(workload={"_replace": True, **LENGTHS, "streams": streams, "duration_s": 400.0}).scenario
    now, twice = workload(scenario), workload(grown(scenario, "traffic", 2.0))
    for place, name in enumerate(now.tenants):
        assert twice.tenants[place] == name
        before, after = (now.tenant == place).sum(), (twice.tenant == place).sum()
        assert after / before == pytest.approx(2.0, rel=0.12), name


def test_twice_the_traffic_of_a_trace_is_the_trace_in_half_the_time(tmp_path: Path) -> None:
    scenario = by_trace(tmp_path)
    now, twice = workload(scenario), workload(grown(scenario, "traffic", 2.0))
    assert np.allclose(twice.arrival * 2, now.arrival) and np.array_equal(twice.prompt_tokens, now.prompt_tokens)
    faster = by_trace(tmp_path, rate_scale=3.0)
    assert np.allclose(workload(grown(faster, "traffic", 2.0)).arrival * 6, now.arrival)


@pytest.mark.parametrize("kind", [*ARRIVALS, "closed_loop", "rates", "trace", "streams"])
def test_a_factor_as_it_is_changes_nothing(kind: str, tmp_path: Path) -> None:
    scenario = {
        "closed_loop": lambda: by({"closed_loop": {"concurrency": 5}}),
        "rates": lambda: by_rates([{"count": 4, "rate": 2.0}]),
        "trace": lambda: by_trace(tmp_path),
        "streams": lambda: (
            small(
                workload={"_replace": True, **LENGTHS, "streams": [{"arrivals": {"poisson": 3.0}}], "duration_s": 30.0}
            ).scenario
        ),
    }.get(kind, lambda: by(ARRIVALS[kind]))()
    now = workload(scenario)
    for factor in FACTORS:
        try:
            steps = ladder(scenario, factor)
        except CannotGrowError as error:
            assert str(error) and "\n" not in str(error)
            continue
        if factor == "burstiness" and kind in ("poisson", "constant", "streams"):
            continue  # these become gamma arrivals of another draw
        assert same(workload(grown(scenario, factor, steps.now)), now), factor


@pytest.mark.parametrize("kind", ARRIVALS)
def test_every_value_of_every_ladder_can_be(kind: str) -> None:
    scenario = by(ARRIVALS[kind], requests=50)
    known = 0
    for factor in FACTORS:
        try:
            steps = ladder(scenario, factor)
        except CannotGrowError:
            continue
        known += 1
        assert steps.up[0] > steps.now and list(steps.up) == sorted(steps.up)
        for value in steps.up:
            assert len(workload(grown(scenario, factor, value))) == 50
    assert known == (5 if kind in ("poisson", "gamma", "constant") else 4)


def test_twice_the_adapters() -> None:
    scenario = by(ARRIVALS["poisson"])
    twice = grown(scenario, "adapters", 2.0)
    assert (len(build(scenario).adapters), len(build(twice).adapters)) == (8, 16)
    assert len(np.unique(workload(twice).adapter)) == 16
    assert rate(twice) == pytest.approx(rate(scenario))
    many = grown(scenario, "adapters", 6.0)  # max_cpu_loras is 16, and all start in host memory
    assert len(build(many).adapters) == many.engine.max_cpu_loras == 48


@pytest.mark.parametrize("ranks, now, most", [(16, 16, 32), ([8, 32], 32, 64), ({"8": 0.5, "16": 0.5}, 16, 32)])
def test_twice_the_rank_raises_the_largest_that_is_allowed(ranks: Any, now: int, most: int) -> None:
    scenario = small(adapters={"ranks": ranks}, engine={"max_lora_rank": now}).scenario
    twice = grown(scenario, "rank", 2.0)
    before, after = build(scenario).adapters, build(twice).adapters
    assert [each.rank for each in after] == [2 * each.rank for each in before]
    assert twice.engine.max_lora_rank == max(each.rank for each in after) == most
    roomy = small(adapters={"ranks": 8}, engine={"max_lora_rank": 64}).scenario
    assert grown(roomy, "rank", 2.0).engine.max_lora_rank == 64


def test_more_skew_uses_fewer_adapters_for_most_requests() -> None:
    scenario = by(ARRIVALS["poisson"])

    def first(scenario: Scenario) -> float:
        return float((workload(scenario).adapter == 0).mean())

    shares = [first(grown(scenario, "skew", exponent)) for exponent in (0.0, 1.0, 2.0)]
    weights = [1 / sum(k**-s for k in range(1, 9)) for s in (0.0, 1.0, 2.0)]
    assert shares == pytest.approx(weights, abs=0.03)
    assert ladder(scenario, "skew").now == 1.0
    assert ladder(small(adapters={"popularity": {"uniform": True}}).scenario, "skew").now == 0.0
    drifting = small(adapters={"popularity": {"drift": {"zipf": 0.5, "period_s": 5.0, "step": 2}}}).scenario
    drift = grown(drifting, "skew", 0.9).adapters.popularity
    assert drift is not None and drift.drift is not None
    assert (drift.drift.zipf, drift.drift.period_s, drift.drift.step) == (0.9, 5.0, 2)


@pytest.mark.parametrize("kind, now", [("poisson", 1.0), ("gamma", 2.0), ("constant", 0.0)])
def test_burstier_arrivals_have_the_same_rate_and_that_cv(kind: str, now: float) -> None:
    scenario = by(ARRIVALS[kind], requests=30_000)
    assert ladder(scenario, "burstiness").now == now
    bursty = grown(scenario, "burstiness", 3.0)
    gaps = np.diff(workload(bursty).arrival)
    assert gaps.std() / gaps.mean() == pytest.approx(3.0, rel=0.1)
    assert rate(bursty) == pytest.approx(8.0, rel=0.06)


@pytest.mark.parametrize("kind", ["on_off", "diurnal"])
def test_arrivals_with_bursts_of_their_own_say_so(kind: str) -> None:
    with pytest.raises(CannotGrowError, match=f"{kind} arrivals have bursts of their own"):
        grown(by(ARRIVALS[kind]), "burstiness", 3.0)


def refused(scenario: Scenario) -> dict[Factor, str]:
    """The factors that a scenario does not have, and why."""
    found: dict[Factor, str] = {}
    for factor in FACTORS:
        try:
            ladder(scenario, factor)
        except InputError as error:
            found[factor] = str(error)
            assert "\n" not in str(error)
    return found


def test_a_scenario_without_adapters_grows_in_traffic_and_bursts_only() -> None:
    found = refused(small(adapters={"_replace": True, "count": 0}).scenario)
    assert set(found) == {"adapters", "skew", "rank"}
    assert all("there are no adapters" in why for why in found.values())


def test_rates_have_neither_skew_nor_bursts() -> None:
    found = refused(by_rates([{"count": 4, "rate": 2.0}]))
    assert "how popular" in found["skew"] and "Poisson by adapter" in found["burstiness"] and len(found) == 2


def test_adapters_that_are_named_one_by_one_cannot_be_more() -> None:
    names = small(adapters={"_replace": True, "names": ["a", "b"], "popularity": {"zipf": 1.0}}).scenario
    weights = small(adapters={"popularity": {"weights": {"a": 1.0, "b": 3.0}}, "count": None}).scenario
    assert "one by one" in refused(names)["adapters"]
    assert "one by one" in refused(weights)["adapters"] and "no exponent" in refused(weights)["skew"]


def test_a_trace_that_names_its_adapters_determines_them(tmp_path: Path) -> None:
    found = refused(by_trace(tmp_path, "adapter"))
    assert set(found) == {"adapters", "skew", "burstiness"}
    assert "trace determines the adapters" in found["adapters"]
    assert "workload.adapter_from" in found["skew"] and "given" in found["burstiness"]
    chosen = by_trace(tmp_path, adapter_from="popularity")
    assert set(refused(chosen)) == {"burstiness"}
