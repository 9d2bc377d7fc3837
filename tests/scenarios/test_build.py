"""From a scenario and a seed to adapters and a workload."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from loratory.scenarios.build import build_adapters, build_workload
from loratory.scenarios.schema import Scenario
from loratory.serving.lora import Adapter
from loratory.serving.workload import Workload

BASE: dict[str, Any] = {
    "name": "t",
    "model": "m",
    "gpu": "g",
    "engine": {"max_loras": 4, "max_lora_rank": 128},
    "adapters": {"count": 4},
    "workload": {
        "arrivals": 100.0,
        "input_tokens": {"uniform": [1, 900]},
        "output_tokens": {"uniform": [1, 90]},
        "duration_s": 50,
    },
}


def scenario(**sections: Any) -> Scenario:
    merged = {
        key: {**value, **sections.pop(key, {})} if isinstance(value, dict) else sections.pop(key, value)
        for key, value in BASE.items()
    }
    return Scenario.model_validate({**merged, **sections})


def adapters_of(s: Scenario) -> tuple[Adapter, ...]:
    return build_adapters(s, lambda rank: 1000 * rank)


def built(s: Scenario, seed: int = 0) -> Workload:
    return build_workload(s, seed, adapters_of(s))


def test_adapters_have_names_ids_ranks_sizes_and_pins() -> None:
    made = adapters_of(scenario(adapters={"count": 5, "ranks": [8, 16], "pinned": 2, "initial_tier": "remote"}))
    assert [a.name for a in made] == ["adapter-000", "adapter-001", "adapter-002", "adapter-003", "adapter-004"]
    assert [a.lora.lora_int_id for a in made] == [1, 2, 3, 4, 5]
    assert made[0].lora.lora_path == "synthetic://adapter-000"
    assert [a.rank for a in made] == [8, 16, 8, 16, 8]
    assert [a.bytes for a in made] == [8000, 16000, 8000, 16000, 8000]
    assert [a.pinned for a in made] == [True, True, False, False, False]
    assert {a.tier for a in made} == {"remote"}


@pytest.mark.parametrize("count", [1, 7, 40, 333])
def test_rank_shares_hold_over_every_prefix(count: int) -> None:
    shares = {8: 0.5, 16: 0.3, 64: 0.2}
    ranks = [a.rank for a in adapters_of(scenario(adapters={"count": count, "ranks": shares}))]
    for end in range(1, count + 1):
        for rank, share in shares.items():
            assert abs(ranks[:end].count(rank) - share * end) <= 1


def test_the_same_seed_gives_the_same_bytes_and_another_does_not() -> None:
    one, two, other = built(scenario()), built(scenario()), built(scenario(), seed=1)
    assert one.arrival.tobytes() == two.arrival.tobytes()
    assert one.prompt_tokens.tobytes() == two.prompt_tokens.tobytes()
    assert one.arrival.tobytes() != other.arrival.tobytes()


def test_changing_one_distribution_leaves_the_other_columns_alone() -> None:
    one = built(scenario())
    two = built(scenario(workload={"input_tokens": 7}, adapters={"popularity": {"zipf": 2.0}, "base_share": 0.5}))
    np.testing.assert_array_equal(one.arrival, two.arrival)
    np.testing.assert_array_equal(one.output_tokens, two.output_tokens)
    assert (one.prompt_tokens != two.prompt_tokens).any()
    # Requests that keep an adapter keep the one they had without base_share.
    three = built(scenario(adapters={"popularity": {"zipf": 2.0}}))
    kept = two.adapter >= 0
    np.testing.assert_array_equal(two.adapter[kept], three.adapter[kept])
    assert kept.mean() == pytest.approx(0.5, abs=0.03)


def test_per_adapter_rates_are_independent_poisson_processes() -> None:
    rates = [{"share": 0.5, "rate": 40.0}, {"count": 2, "rate": 10.0}]
    s = scenario(
        adapters={"count": 4, "rates": rates, "base_share": 0.2}, workload={"arrivals": None, "duration_s": 400}
    )
    w = built(s)
    for index, rate in enumerate([40.0, 40.0, 10.0, 10.0]):
        times = w.arrival[w.adapter == index]
        assert len(times) / 400 == pytest.approx(rate, rel=0.05)
        gaps = np.diff(times)
        assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.06)
    assert (w.adapter < 0).mean() == pytest.approx(0.2, abs=0.02)


def test_rates_by_name_and_alone() -> None:
    named = scenario(adapters={"count": None, "rates": {"sql": 30.0, "chat": 3.0}}, workload={"arrivals": None})
    assert [a.name for a in adapters_of(named)] == ["sql", "chat"]
    counts = np.bincount(built(named).adapter)
    assert counts[0] / counts[1] == pytest.approx(10, rel=0.25)
    alike = built(scenario(adapters={"rates": 5.0}, workload={"arrivals": None, "duration_s": 200}))
    assert np.bincount(alike.adapter) == pytest.approx([1000] * 4, rel=0.15)


def test_max_tokens_is_a_cap_a_number_or_the_truth() -> None:
    cap = built(scenario())
    assert set(cap.max_tokens.tolist()) == {int(cap.output_tokens.max())}
    exact = built(scenario(workload={"max_tokens": "exact"}))
    np.testing.assert_array_equal(exact.max_tokens, exact.output_tokens)
    cut = built(scenario(workload={"max_tokens": 30}))
    assert cut.output_tokens.max() == 30
    assert cut.notes == (f"outputs cut at max_tokens (30): {int((cap.output_tokens > 30).sum())}",)


def test_predictions() -> None:
    assert built(scenario()).predicted_tokens is None
    exact = built(scenario(workload={"predicted_tokens": "exact"}))
    assert exact.predicted_tokens is not None
    np.testing.assert_array_equal(exact.predicted_tokens, exact.output_tokens)
    noisy = built(scenario(workload={"predicted_tokens": {"noise": 0.5}, "output_tokens": 1000}))
    assert noisy.predicted_tokens is not None
    assert noisy.predicted_tokens.mean() == pytest.approx(1000, rel=0.05)
    assert noisy.predicted_tokens.std() == pytest.approx(500, rel=0.1)
    mean = built(scenario(workload={"predicted_tokens": "adapter_mean"}))
    assert mean.predicted_tokens is not None
    for index in range(4):
        mine = mean.adapter == index
        assert set(mean.predicted_tokens[mine].tolist()) == {round(float(mean.output_tokens[mine].mean()))}


@pytest.mark.parametrize(
    ("tenants", "names"),
    [
        ({"map": "by_adapter"}, ("adapter-000", "adapter-001", "adapter-002", "adapter-003", "default")),
        ({"map": "single"}, ("default",)),
        ({"map": {"groups": 2}}, ("tenant-0", "tenant-1", "default")),
        ({"map": {"shares": {"a": 3, "b": 1}}}, ("a", "b")),
        ({"map": {"owners": {"a": ["adapter-000", "adapter-003"]}}}, ("a", "default")),
    ],
)
def test_tenant_maps(tenants: dict[str, Any], names: tuple[str, ...]) -> None:
    w = built(scenario(tenants=tenants, adapters={"base_share": 0.3}))
    assert w.tenants == names
    tenant = np.array(w.tenants)[w.tenant]
    kind = next(iter(tenants["map"])) if isinstance(tenants["map"], dict) else tenants["map"]
    if kind == "by_adapter":
        assert (tenant == np.array([*w.adapters, "default"])[w.adapter]).all()
    elif kind == "groups":
        assert (tenant == np.array(["tenant-0", "tenant-1", "tenant-0", "tenant-1", "default"])[w.adapter]).all()
    elif kind == "shares":
        assert (tenant == "a").mean() == pytest.approx(0.75, abs=0.02)
    elif kind == "owners":
        assert (tenant == np.array(["a", "default", "default", "a", "default"])[w.adapter]).all()


def test_weights_and_priorities_follow_the_tenant() -> None:
    w = built(scenario(tenants={"weights": {"adapter-001": 3}, "priorities": {"adapter-002": 5}}))
    assert w.tenant_weights == (1.0, 3.0, 1.0, 1.0)
    assert w.priority is not None
    np.testing.assert_array_equal(w.priority, np.where(w.adapter == 2, 5, 0))
    assert w.request(int(np.flatnonzero(w.adapter == 1)[0])).weight == 3.0


def test_streams_keep_their_own_tenant_arrivals_lengths_and_adapters() -> None:
    streams = [
        {"tenant": "steady", "arrivals": {"constant": 2}, "adapters": ["adapter-003"], "input_tokens": 11},
        {
            "tenant": "late",
            "arrivals": 20,
            "adapters": {"start": 1, "count": 2},
            "start_s": 30,
            "end_s": 40,
            "priority": -1,
        },
        {"arrivals": {"constant": 1}, "base_share": 1.0, "deadline_s": 9},
    ]
    w = built(scenario(workload={"arrivals": None, "streams": streams}, tenants={"priorities": {"default": 7}}))
    tenant = np.array(w.tenants)[w.tenant]
    assert set(w.tenants) == {"steady", "late", "default"}
    assert (np.diff(w.arrival) >= 0).all()
    steady, late, rest = tenant == "steady", tenant == "late", tenant == "default"
    assert steady.sum() == 100 and rest.sum() == 50
    assert set(w.adapter[steady].tolist()) == {3} and set(w.prompt_tokens[steady].tolist()) == {11}
    assert set(w.adapter[late].tolist()) == {1, 2} and set(w.adapter[rest].tolist()) == {-1}
    assert w.arrival[late].min() >= 30 and w.arrival[late].max() < 40
    assert w.priority is not None and w.deadline is not None
    assert [set(w.priority[mask].tolist()) for mask in (steady, late, rest)] == [{0}, {-1}, {7}]
    assert np.isinf(w.deadline[~rest]).all() and set(w.deadline[rest].tolist()) == {9.0}


def test_closed_loop_and_base_only() -> None:
    w = built(scenario(workload={"arrivals": {"closed_loop": {"concurrency": 8}}, "duration_s": None, "requests": 20}))
    assert (w.concurrency, len(w)) == (8, 20)
    bare = built(scenario(adapters={"count": 0}))
    assert bare.adapters == () and set(bare.adapter.tolist()) == {-1} and bare.tenants == ("default",)


def test_deadlines_count_from_arrival() -> None:
    w = built(scenario(workload={"deadline_s": {"uniform": [2.0, 3.0]}}))
    request = w.request(5)
    assert request.deadline is not None and 2.0 <= request.deadline - request.arrival <= 3.0


@pytest.mark.parametrize(
    ("alpha", "cv", "rate", "count"), [(1.0, 1.0, 2.0, 200), (0.1, 2.0, 1.5, 5), (0.7, 0.5, 3.0, 50)]
)
def test_the_slora_generator_is_that_of_their_benchmark(alpha: float, cv: float, rate: float, count: int) -> None:
    """A transcription of the draw order in S-LoRA's benchmarks: power, lengths in, lengths out, gamma gaps."""
    np.random.seed(42)
    n = int(rate * 300)
    index = (np.random.power(alpha, n) * count).astype(int)
    prompts = np.random.randint(8, 512, n)
    outputs = np.random.randint(16, 256, n)
    times = np.cumsum(np.random.gamma(1 / cv**2, cv**2 / rate, n))
    s = scenario(
        adapters={"count": count, "popularity": {"power": alpha}, "ranks": [64, 32, 16]},
        workload={
            "generator": "slora",
            "arrivals": {"gamma": {"rate": rate, "cv": cv}},
            "input_tokens": {"uniform": [8, 511]},
            "output_tokens": {"uniform": [16, 255]},
            "duration_s": 300,
            "max_tokens": "exact",
        },
    )
    w = built(s, seed=42)
    np.testing.assert_array_equal(w.adapter, index)
    np.testing.assert_array_equal(w.prompt_tokens, prompts)
    np.testing.assert_array_equal(w.output_tokens, outputs)
    np.testing.assert_allclose(w.arrival, times, rtol=1e-12)
    assert [a.rank for a in adapters_of(s)[:4]] == [64, 32, 16, 64][: min(4, count)]


def test_the_slora_generator_draws_the_same_requests_for_the_base_model() -> None:
    workload = {
        "generator": "slora",
        "arrivals": {"gamma": {"rate": 2.0, "cv": 1.0}},
        "input_tokens": {"uniform": [8, 511]},
        "output_tokens": {"uniform": [8, 511]},
        "duration_s": 300,
    }
    one, none = (
        built(scenario(adapters={"count": n, "popularity": {"power": 1.0}}, workload=workload)) for n in (1, 0)
    )
    assert set(one.adapter.tolist()) == {0} and set(none.adapter.tolist()) == {-1}
    for column in ("arrival", "prompt_tokens", "output_tokens"):
        np.testing.assert_array_equal(getattr(none, column), getattr(one, column))


def test_the_slora_generator_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match="slora, which needs gamma arrivals"):
        scenario(workload={"generator": "slora"})


def test_the_vtc_generator_is_that_of_their_benchmark() -> None:
    """A transcription of fair_bench/trace.py: clients evenly spaced, one of them off in every other minute."""
    np.random.seed(7)
    expected = []
    for client, rate in enumerate((2.0, 3.0)):
        at = np.random.rand() / rate
        for _ in range(int(rate * 300)):
            at += 1 / rate
            if client or int(at // 60) % 2 == 0:
                expected.append((at, client))
    even = [{"on_off": {"on_s": 60, "off_s": 60, "rate_on": 2.0, "gaps": "equal"}}, {"constant": 3.0}]
    w = built(vtc(*even, duration_s=300), seed=7)
    times, clients = zip(*sorted(expected), strict=True)
    np.testing.assert_allclose(w.arrival, times, rtol=1e-12)
    assert [w.tenants[i] for i in w.tenant] == [f"client-{i}" for i in clients]
    assert set(w.prompt_tokens) == set(w.output_tokens) == {64} and set(w.adapter) == {-1}


def test_the_vtc_generator_draws_poisson_clients_together() -> None:
    np.random.seed(42)
    which = (np.random.rand(2850) > 8.0 / 9.5).astype(int)
    times = np.cumsum(np.random.gamma(1.0, 1 / 9.5, 2850))
    w = built(vtc({"poisson": 8.0}, {"poisson": 1.5}, duration_s=300), seed=42)
    np.testing.assert_allclose(w.arrival, times, rtol=1e-12)
    np.testing.assert_array_equal(w.tenant, which)


@pytest.mark.parametrize(
    "changes",
    [
        {"streams": [{"arrivals": {"poisson": 1}}, {"arrivals": {"constant": 1}}]},
        {"streams": [{"arrivals": {"on_off": {"on_s": 1, "off_s": 1, "rate_on": 1}}}]},
        {"streams": [{"arrivals": {"constant": 1}, "start_s": 3}]},
        {"input_tokens": {"uniform": [1, 9]}},
        {"streams": None, "arrivals": {"constant": 1}},
    ],
)
def test_the_vtc_generator_says_what_it_needs(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="vtc, which needs streams"):
        vtc({"constant": 1.0}, duration_s=10, **changes)


def vtc(*arrivals: dict[str, Any], **changes: Any) -> Scenario:
    """Clients with these arrivals."""
    streams = [{"tenant": f"client-{place}", "arrivals": given} for place, given in enumerate(arrivals)]
    lengths = {"input_tokens": 64, "output_tokens": 64, "max_tokens": "exact"}
    workload = {"generator": "vtc", "arrivals": None, "streams": streams, **lengths, **changes}
    return scenario(adapters={"count": 0}, workload=workload)


def test_a_million_requests_are_columns_not_objects() -> None:
    s = scenario(workload={"duration_s": None, "requests": 1_000_000}, adapters={"popularity": {"zipf": 1.0}})
    assert len(built(s)) == 1_000_000
