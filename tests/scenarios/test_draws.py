"""Arrivals, lengths and popularity: their laws."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratory.errors import InputError
from loratory.scenarios.arrivals import ArrivalsSpec
from loratory.scenarios.lengths import Lengths, Lognormal, Seconds, draw_pairs
from loratory.scenarios.popularity import PopularitySpec, zipf_weights
from loratory.scenarios.rng import Draws
from loratory.serving.workload import Floats

MANY = 200_000


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("spec", "rate", "cv"),
    [
        ({"poisson": 20.0}, 20.0, 1.0),
        ({"gamma": {"rate": 20.0, "cv": 3.0}}, 20.0, 3.0),
        ({"gamma": {"rate": 20.0, "cv": 0.3}}, 20.0, 0.3),
        ({"constant": 20.0}, 20.0, 0.0),
    ],
)
def test_rate_and_cv_are_what_was_asked_for(spec: dict[str, object], rate: float, cv: float) -> None:
    times = ArrivalsSpec.model_validate(spec).draw(rng(), MANY, None)
    gaps = np.diff(times)
    assert (len(times) - 1) / times[-1] == pytest.approx(rate, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, abs=0.03 * max(cv, 0.01))


every_arrival = st.sampled_from(
    [
        {"poisson": 7.0},
        {"gamma": {"rate": 5.0, "cv": 4.0}},
        {"constant": 3.0},
        {"on_off": {"on_s": 3, "off_s": 5, "rate_on": 9.0}},
        {"on_off": {"on_s": 3, "off_s": 5, "rate_on": 9.0, "rate_off": 1.0}},
        {"on_off": {"on_s": 3, "off_s": 5, "rate_on": 9.0, "rate_off": 1.0, "gaps": "equal"}},
        {"diurnal": {"rate": 6.0, "peak": 2.0, "period_s": 20}},
    ]
)


@given(every_arrival, st.integers(0, 1000), st.floats(0.5, 200), st.floats(0.5, 200))
def test_a_longer_run_only_adds_arrivals(spec: dict[str, object], seed: int, a: float, b: float) -> None:
    arrivals = ArrivalsSpec.model_validate(spec)
    short, long = sorted((a, b))
    first, second = arrivals.draw(rng(seed), None, short), arrivals.draw(rng(seed), None, long)
    assert (np.diff(second) >= 0).all()
    assert not len(second) or (second[0] >= 0 and second[-1] < long)
    np.testing.assert_array_equal(first, second[second < short])


@given(every_arrival, st.integers(0, 1000), st.integers(1, 500))
def test_a_number_of_requests_is_exact(spec: dict[str, object], seed: int, n: int) -> None:
    times = ArrivalsSpec.model_validate(spec).draw(rng(seed), n, None)
    assert len(times) == n
    assert (np.diff(times) >= 0).all()


def test_on_off_with_equal_gaps_is_even_while_it_lasts() -> None:
    spec = {"on_s": 2, "off_s": 3, "rate_on": 2, "rate_off": 1, "gaps": "equal"}
    times = ArrivalsSpec.model_validate({"on_off": spec}).draw(rng(), None, 9)
    np.testing.assert_allclose(times, [0, 0.5, 1, 1.5, 2, 3, 4, 5, 5.5, 6, 6.5, 7, 8])


def test_on_off_is_silent_when_off_and_has_its_rates() -> None:
    quiet = ArrivalsSpec.model_validate({"on_off": {"on_s": 10, "off_s": 30, "rate_on": 8}}).draw(rng(), None, 40_000)
    assert (np.mod(quiet, 40) <= 10).all()
    assert len(quiet) == pytest.approx(8 * 10_000, rel=0.02)
    both = ArrivalsSpec.model_validate({"on_off": {"on_s": 10, "off_s": 30, "rate_on": 8, "rate_off": 2}})
    times = both.draw(rng(), None, 40_000)
    busy = np.mod(times, 40) < 10
    assert busy.sum() == pytest.approx(8 * 10_000, rel=0.02)
    assert (~busy).sum() == pytest.approx(2 * 30_000, rel=0.02)


def test_diurnal_keeps_its_mean_and_peaks_where_it_says() -> None:
    spec = ArrivalsSpec.model_validate({"diurnal": {"rate": 50, "peak": 1.8, "period_s": 100, "peak_at_s": 25}})
    times = spec.draw(rng(), None, 4000)
    assert len(times) == pytest.approx(50 * 4000, rel=0.02)
    counts, _ = np.histogram(np.mod(times, 100), bins=20, range=(0, 100))
    assert abs(int(counts.argmax()) - 5) <= 1
    assert counts.max() / counts.mean() == pytest.approx(1.8, rel=0.05)
    assert counts.min() / counts.mean() == pytest.approx(0.2, rel=0.2)


def test_closed_loop_starts_at_zero() -> None:
    assert not ArrivalsSpec.model_validate({"closed_loop": {"concurrency": 3}}).draw(rng(), 5, None).any()


def test_lognormal_has_the_mean_and_cv_of_the_lengths_themselves() -> None:
    values = Lengths.model_validate({"lognormal": {"mean": 500, "cv": 0.8}}).draw(rng(), MANY)
    assert values.mean() == pytest.approx(500, rel=0.01)
    assert values.std() / values.mean() == pytest.approx(0.8, rel=0.02)
    clipped = Lengths.model_validate({"lognormal": {"mean": 500, "cv": 0.8, "min": 100, "max": 900}}).draw(rng(), MANY)
    assert (clipped.min(), clipped.max()) == (100, 900)


@pytest.mark.parametrize("limits", [{}, {"max": 300}, {"min": 400}, {"min": 450, "max": 600}, {"max": 0.5}])
@pytest.mark.parametrize("cv", [0.1, 1.0, 3.0])
def test_the_clipped_mean_is_that_of_draws_within_the_limits(limits: dict[str, float], cv: float) -> None:
    drawn = {"mean": 500, "cv": cv, **limits}
    values = Seconds.model_validate({"lognormal": drawn}).draw(rng(), MANY)
    assert Lognormal.model_validate(drawn).clipped_mean() == pytest.approx(values.mean(), abs=5 * error_of_mean(values))


def error_of_mean(values: Floats) -> float:
    return float(values.std() / len(values) ** 0.5) + 1e-4


def test_the_clipped_mean_without_any_spread() -> None:
    assert Lognormal(mean=10, cv=1e-200, max=3).clipped_mean() == 3
    assert Lognormal(mean=10, cv=1e-200, min=3, max=20).clipped_mean() == 10


@given(st.integers(1, 50), st.integers(0, 50), st.integers(0, 100))
def test_uniform_lengths_include_both_ends(lo: int, extra: int, seed: int) -> None:
    values = Lengths.model_validate({"uniform": [lo, lo + extra]}).draw(rng(seed), 5000)
    assert (values.min(), values.max()) == (lo, lo + extra)


@given(st.floats(0.001, 3), st.floats(0.1, 9))
def test_a_length_is_never_below_one(mean: float, cv: float) -> None:
    assert Lengths.model_validate({"lognormal": {"mean": mean, "cv": cv}}).draw(rng(), 100).min() >= 1


def test_durations() -> None:
    assert Seconds.model_validate(2.5).draw(rng(), 3).tolist() == [2.5, 2.5, 2.5]
    values = Seconds.model_validate({"uniform": [1.0, 2.0]}).draw(rng(), 1000)
    assert 1.0 <= values.min() < 1.05 and 1.95 < values.max() <= 2.0
    assert Seconds.model_validate({"lognormal": {"mean": 3, "cv": 0.5}}).draw(rng(), MANY).mean() == pytest.approx(
        3, rel=0.01
    )


def test_empirical_lengths_come_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("3\n5\n5\n")
    (tmp_path / "b.csv").write_text("input,output\n3,9\n5,9\n5,9\n")
    (tmp_path / "c.json").write_text(json.dumps([3, 5, 5]))
    (tmp_path / "d.json").write_text(json.dumps({"3": 1, "5": 2}))
    pd.DataFrame({"n": [3, 5, 5]}).to_parquet(tmp_path / "e.parquet")
    for name, column in (("a.txt", None), ("b.csv", "input"), ("c.json", None), ("d.json", None), ("e.parquet", None)):
        spec = Lengths.model_validate({"empirical": {"file": str(tmp_path / name), "column": column}})
        values = spec.draw(rng(), 30_000)
        assert set(values.tolist()) == {3, 5}
        assert (values == 5).mean() == pytest.approx(2 / 3, abs=0.02)


def test_empirical_prompts_and_outputs_of_one_file_are_drawn_by_the_row(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("input,output\n3,90\n5,70\n9,10\n")
    (tmp_path / "same.csv").write_text("output\n90\n70\n10\n")
    (tmp_path / "unequal.json").write_text(json.dumps({"input": [1, 2], "output": [1, 2, 3]}))

    def lengths(name: str, column: str) -> Lengths:
        return Lengths.model_validate({"empirical": {"file": str(tmp_path / name), "column": column}})

    prompts, outputs = draw_pairs(lengths("pairs.csv", "input"), lengths("pairs.csv", "output"), Draws(0), 1000)
    assert set(zip(prompts.tolist(), outputs.tolist(), strict=True)) == {(3, 90), (5, 70), (9, 10)}
    prompts, outputs = draw_pairs(lengths("pairs.csv", "input"), lengths("same.csv", "output"), Draws(0), 1000)
    assert len(set(zip(prompts.tolist(), outputs.tolist(), strict=True))) == 9, "two files are independent"
    with pytest.raises(InputError, match="2 prompt and 3 output lengths"):
        draw_pairs(lengths("unequal.json", "input"), lengths("unequal.json", "output"), Draws(0), 1)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", "", "holds no lengths"),
        ("a.txt", "3\nfour\n", "not a whole number"),
        ("a.txt", "3.5\n", "not a whole number"),
        ("a.txt", "0\n", "holds a length of 0"),
        ("a.csv", "x,y\n1,2\n", "name one with 'column'"),
        ("a.json", "{", "not a whole number"),
    ],
)
def test_a_broken_file_of_lengths_is_named(tmp_path: Path, name: str, content: str, says: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=says) as caught:
        Lengths.model_validate({"empirical": str(tmp_path / name)}).draw(rng(), 3)
    assert name in str(caught.value)


def shares(spec: object, names: int = 6, arrival: np.ndarray | None = None) -> np.ndarray:
    times = np.zeros(MANY) if arrival is None else arrival
    drawn = PopularitySpec.model_validate(spec).draw(rng(), tuple(f"a{i}" for i in range(names)), times)
    return np.bincount(drawn, minlength=names) / len(times)


def test_popularities() -> None:
    assert shares("uniform") == pytest.approx([1 / 6] * 6, abs=0.01)
    assert shares({"zipf": 1.2}) == pytest.approx(zipf_weights(1.2, 6) / zipf_weights(1.2, 6).sum(), abs=0.01)
    # numpy's power(a) has the distribution function x^a.
    assert shares({"power": 0.3}) == pytest.approx(np.diff((np.arange(7) / 6) ** 0.3), abs=0.01)
    assert shares([0, 1, 0, 3, 0, 0]) == pytest.approx([0, 0.25, 0, 0.75, 0, 0], abs=0.01)
    assert shares({"weights": {"a5": 2, "a0": 2}}) == pytest.approx([0.5, 0, 0, 0, 0, 0.5], abs=0.01)


def test_drift_moves_the_ranking_with_time() -> None:
    spec = {"drift": {"zipf": 1.5, "period_s": 10, "step": 2}}
    still = zipf_weights(1.5, 6) / zipf_weights(1.5, 6).sum()
    for period in range(4):
        found = shares(spec, arrival=np.full(MANY, period * 10 + 3.0))
        assert found == pytest.approx(np.roll(still, 2 * period), abs=0.01)


def test_weights_must_fit_the_adapters() -> None:
    with pytest.raises(InputError, match="2 weights for 6 adapters"):
        shares([1, 2])
    with pytest.raises(InputError, match="names 'b'"):
        shares({"weights": {"b": 1}})


def test_columns_and_streams_have_generators_of_their_own() -> None:
    draws = Draws(3)
    assert draws.rng("input").random() == draws.rng("input").random()
    values = {Draws(s, k).rng(c).random() for s in (3, 4) for k in (0, 1) for c in ("input", "output", "arrivals")}
    assert len(values) == 12
