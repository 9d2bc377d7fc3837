"""A scenario written out and read again is equal, whatever it says."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from loratory.scenarios.build import build_adapters, build_workload
from loratory.scenarios.load import dump, load_text
from loratory.scenarios.schema import Scenario

positive = st.floats(min_value=1e-3, max_value=1e6)
count = st.integers(1, 5000)
lengths = st.one_of(
    count,
    count.map(lambda n: {"fixed": n}),
    st.tuples(count, count).map(lambda pair: {"uniform": sorted(pair)}),
    st.builds(lambda mean, cv: {"lognormal": {"mean": mean, "cv": cv}}, positive, st.floats(0.01, 5)),
)
rate = st.floats(0.01, 50)
arrivals = st.one_of(
    rate,
    rate.map(lambda r: {"poisson": r}),
    rate.map(lambda r: {"constant": r}),
    st.builds(lambda r, cv: {"gamma": {"rate": r, "cv": cv}}, rate, st.floats(0.2, 5)),
    st.builds(
        lambda r, a, b: {"on_off": {"on_s": a, "off_s": b, "rate_on": r}}, rate, st.floats(1, 20), st.floats(1, 20)
    ),
    st.builds(lambda r, p: {"diurnal": {"rate": r, "peak": p, "period_s": 30}}, rate, st.floats(1, 2)),
)
popularity = st.one_of(
    st.just("uniform"),
    st.floats(0, 3).map(lambda s: {"zipf": s}),
    st.floats(0.05, 3).map(lambda a: {"power": a}),
    st.lists(st.floats(0.01, 9), min_size=5, max_size=5),
    st.just({"drift": {"period_s": 3.0, "step": 2}}),
)


@st.composite
def scenarios(draw: st.DrawFn) -> dict[str, Any]:
    stream = st.fixed_dictionaries(
        {"arrivals": arrivals},
        optional={"tenant": st.sampled_from("abc"), "start_s": st.floats(0, 5), "priority": st.integers(-3, 3)},
    )
    workload = {"input_tokens": draw(lengths), "output_tokens": draw(lengths), "duration_s": draw(st.floats(6, 20))}
    workload |= draw(
        st.one_of(
            arrivals.map(lambda a: {"arrivals": a}),
            st.lists(stream, min_size=1, max_size=3).map(lambda s: {"streams": s}),
        )
    )
    workload |= draw(
        st.fixed_dictionaries(
            {},
            optional={
                "max_tokens": st.one_of(st.sampled_from(["cap", "exact"]), count),
                "predicted_tokens": st.sampled_from(["none", "exact", "adapter_mean", {"noise": 0.4}]),
                "deadline_s": st.one_of(positive, st.just({"uniform": [1, 2]})),
            },
        )
    )
    return {
        "name": draw(st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=20)),
        "model": "m",
        "gpu": "g",
        "engine": {"max_loras": 3},
        "adapters": {
            "count": 5,
            "popularity": draw(popularity),
            "ranks": draw(st.one_of(st.sampled_from([8, [8, 16], {8: 0.5, 16: 1.0}]))),
            "base_share": draw(st.sampled_from([0.0, 0.3, 1.0])),
            "pinned": draw(st.sampled_from([0, 1, ["adapter-002"]])),
        },
        "tenants": {
            "map": draw(st.sampled_from(["by_adapter", "single", {"groups": 2}, {"shares": {"a": 1, "b": 2}}]))
        },
        "workload": workload,
        "seeds": draw(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3, unique=True)),
    }


@given(scenarios())
@settings(max_examples=80, deadline=None)
def test_load_of_dump_is_the_identity(raw: dict[str, Any]) -> None:
    scenario = Scenario.model_validate(raw)
    assert load_text(dump(scenario)) == scenario


@given(scenarios(), st.integers(0, 10))
@settings(max_examples=40, deadline=None)
def test_the_dump_gives_the_same_requests_bit_for_bit(raw: dict[str, Any], seed: int) -> None:
    first, second = Scenario.model_validate(raw), load_text(dump(Scenario.model_validate(raw)))
    one = build_workload(first, seed, build_adapters(first, lambda rank: rank))
    two = build_workload(second, seed, build_adapters(second, lambda rank: rank))
    for name in ("arrival", "adapter", "tenant", "prompt_tokens", "output_tokens", "max_tokens"):
        assert getattr(one, name).tobytes() == getattr(two, name).tobytes()
    assert (one.adapters, one.tenants, one.notes) == (two.adapters, two.tenants, two.notes)
    assert (one.output_tokens <= one.max_tokens).all()
    assert ((one.tenant >= 0) & (one.tenant < len(one.tenants))).all()
    assert ((one.adapter >= -1) & (one.adapter < 5)).all()
