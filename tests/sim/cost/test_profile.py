"""Profiles: a fit recovers what generated the data, predicts a real run it did not see, and survives a file."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratory.errors import InputError
from loratory.serving.lora import Adapter, LoRARequest
from loratory.serving.plan import BatchShape
from loratory.sim.cost import LinearCost, LinearOptions, Profile, ProfileCost, evaluate, fit, load_profile
from loratory.sim.cost.base import fitted_ranges
from loratory.sim.cost.fit import caps_within, residuals_of
from loratory.sim.cost.nnls import nnls
from loratory.sim.cost.profile import LoadTime

PUBLISHED = Path(__file__).resolve().parents[4] / "shared" / "published"


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_nnls_satisfies_its_optimality_conditions(seed: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(20, columns))
    target = rng.normal(size=20)
    x = nnls(matrix, target)
    gradient = matrix.T @ (matrix @ x - target)
    assert (x >= 0).all()
    assert (gradient >= -1e-8).all()  # growing a zero coefficient does not help
    assert np.abs(gradient[x > 0]).max(initial=0.0) < 1e-8  # nor does moving a positive one


def test_nnls_with_equal_and_empty_columns() -> None:
    column = np.arange(1.0, 6.0)
    x = nnls(np.stack([column, column, np.zeros(5)], axis=1), 2 * column)
    assert x[0] + x[1] == pytest.approx(2.0)
    assert x[2] == 0


def samples(count: int = 60, noise: float = 0.0) -> list[tuple[BatchShape, float]]:
    truth = ProfileCost(TRUTH)
    rng = np.random.default_rng(7)
    rows = []
    for _ in range(count):
        prefill = int(rng.integers(0, 2048)) * int(rng.integers(0, 2))
        decodes = int(rng.integers(1, 256))
        adapters = int(rng.integers(0, 32))
        rank = int(rng.choice([8, 16, 64]))
        shape = BatchShape(
            prefill_tokens=prefill,
            prefill_attention=float(prefill * rng.integers(1, 4096)),
            prefill_seqs=1 if prefill else 0,
            decode_seqs=decodes,
            kv_tokens=int(decodes * rng.integers(1, 2048)),
            distinct_adapters=adapters,
            sum_ranks=rank * adapters,
            lora_tokens=decodes if adapters else 0,
            lora_token_ranks=rank * decodes if adapters else 0,
        )
        rows.append((shape, truth.step_seconds(shape) * float(np.exp(noise * rng.normal()))))
    return rows


TRUTH = Profile(
    name="truth",
    samples=1,
    coefficients={
        "step": 5e-3,
        "tokens": 1e-6,
        "tokens_above_256": 2e-5,
        "prefill_attention": 1e-9,
        "kv_tokens": 3e-8,
        "sum_ranks": 4e-6,
    },
)


def test_a_fit_recovers_the_truth() -> None:
    profile = fit(samples(), name="again")
    assert profile.held_out.p90 < 1e-6
    for feature, seconds in TRUTH.coefficients.items():
        assert profile.coefficients[feature] == pytest.approx(seconds, rel=1e-4)


def test_a_fit_recovers_what_the_first_rows_cost_more() -> None:
    truth = ProfileCost(
        Profile(
            name="truth", coefficients={"step": 1e-3, "tokens": 1e-4, "tokens_to_8": 2e-3, "decode_seqs_to_16": 1e-3}
        )
    )
    shapes = [BatchShape(decode_seqs=n) for n in range(1, 40)]
    shapes += [BatchShape(prefill_tokens=n, prefill_seqs=1) for n in range(1, 40)]
    rows = [(shape, truth.step_seconds(shape)) for shape in shapes]
    assert rows[3][1] == pytest.approx(1e-3 + 4 * (1e-4 + 2e-3 + 1e-3))
    assert rows[38][1] == pytest.approx(1e-3 + 39 * 1e-4 + 8 * 2e-3 + 16 * 1e-3)
    profile = fit(rows, knots=(), caps={"tokens": (4, 8), "decode_seqs": (16,)}, hold_out_every=0)
    assert evaluate(profile, rows).p90 < 1e-6
    assert fit(rows, knots=(), hold_out_every=0).coefficients != profile.coefficients


def test_the_last_slope_rests_on_half_of_what_was_measured() -> None:
    shapes = [BatchShape(decode_seqs=n) for n in range(1, 16)]
    given = {"decode_seqs": (1, 2, 4, 7, 8, 16), "tokens": (2, 64), "distinct_adapters": (1,)}
    assert caps_within(shapes, given) == {"decode_seqs": (1, 2, 4, 7), "tokens": (2,), "distinct_adapters": ()}


def test_residuals_are_kept_in_order_and_survive_a_file(tmp_path: Path) -> None:
    rows = samples(80, noise=0.1)
    profile = fit(rows)
    residuals = residuals_of(profile, rows)
    cost = ProfileCost(profile)
    for kind, prefills in (("decode", False), ("prefill", True)):
        wanted = [s / cost.step_seconds(shape) for shape, s in rows if bool(shape.prefill_tokens) == prefills]
        assert len(wanted) > 5 and getattr(residuals, kind) == pytest.approx(wanted, rel=1e-3)
    kept = profile.model_copy(update={"residuals": residuals})
    kept.save(tmp_path / "kept.json")
    assert load_profile(tmp_path / "kept.json") == kept
    assert len((tmp_path / "kept.json").read_text().splitlines()) < 60
    profile.save(tmp_path / "without.json")
    assert "residuals" not in (tmp_path / "without.json").read_text()


@pytest.mark.parametrize("given", [{"decode": [1.0, 0.0]}, {"decode": [-1.0]}, {"prefill": [1e999]}, {}])
def test_residuals_that_are_not_ratios_are_refused(tmp_path: Path, given: dict[str, list[float]]) -> None:
    file = tmp_path / "bad.json"
    file.write_text(json.dumps({"name": "bad", "coefficients": {"step": 1.0}, "residuals": given}))
    with pytest.raises(InputError, match="residuals"):
        load_profile(file)


def test_held_out_errors_are_of_the_size_of_the_noise() -> None:
    held_out = fit(samples(100, noise=0.05)).held_out
    assert 0.01 < held_out.median < 0.08
    assert held_out.samples == 20


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"median": 0.16}, "the median error of held-out steps is 16.0%, above 15%"),
        ({"p90": 0.5}, "the P90 of errors of held-out steps is 50.0%, above 40%"),
        ({"total": -0.2}, "the error of the sum of held-out steps is -20.0%, above 10%"),
        ({"samples": 3}, "only 3 steps were held out of the fit, fewer than 8"),
    ],
)
def test_a_profile_that_its_held_out_steps_condemn_says_so_where_it_is_used(given: dict[str, float], says: str) -> None:
    good = fit(samples(100))
    assert good.doubts() == () and ProfileCost(good).warnings == []
    bad = good.model_copy(update={"held_out": good.held_out.model_copy(update=given)})
    assert bad.doubts() == (says,)
    (warning,) = ProfileCost(bad).warnings
    assert says in warning and "loratory profile" in warning


def test_a_profile_of_few_steps_or_marked_unusable_says_so() -> None:
    assert fit(samples(30)).doubts()[0] == "only 30 steps were measured, fewer than 40"
    (warning,) = ProfileCost(fit(samples(100)).model_copy(update={"usable": False})).warnings
    assert "its file says usable: false" in warning


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (samples(5), "5 steps are too few"),
        ([*samples(10), (BatchShape(decode_seqs=1), 0.0)], "a measured step took 0.0 s"),
    ],
)
def test_fits_that_are_refused(rows: list[tuple[BatchShape, float]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit(rows)


def test_a_field_that_may_have_no_caps_is_refused() -> None:
    with pytest.raises(InputError, match="caps of 'kv_tokens': fields that may have them are tokens, decode_seqs"):
        fit(samples(), caps={"kv_tokens": (8,)})


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    profile = fit(samples(), machine={"cpu": "2 cores", "gpus": 0}, versions={"torch": "2.13"}, noise=0.02)
    path = tmp_path / "mine.json"
    profile.save(path)
    assert load_profile(path) == profile
    cost = ProfileCost.from_options({"profile": str(path), "scale": 2.0})
    shape, seconds = samples(1)[0]
    assert cost.step_seconds(shape) == pytest.approx(2 * seconds, rel=1e-6)
    assert "60 steps" in cost.source


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": "x", "coefficients": {"step": -1}}', "coefficients are seconds of at least 0"),
        ('{"name": "x", "coefficients": {"stepp": 1}}', "unknown feature 'stepp'"),
        ('{"name": "x", "coefficients": {"tokens_to_x": 1}}', "content: unknown feature .* decode_seqs_to_N"),
        ("name: x", "coefficients: Field required"),
        ('{"name": ', "neither JSON nor YAML"),
    ],
)
def test_broken_profiles_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_profile(path)


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(InputError, match="unknown profile 'nothing-like-it'"):
        load_profile("nothing-like-it")


def test_a_profile_tells_the_ranges_that_it_was_fitted_in() -> None:
    cost = ProfileCost(Profile(name="p", coefficients={"step": 1.0}, ranges={"decode_seqs": 8, "kv_tokens": 100}))
    assert fitted_ranges(cost) == ("profile p", {"decode_seqs": 8, "kv_tokens": 100})
    cost.step_seconds(BatchShape(decode_seqs=9, kv_tokens=500))
    assert cost.warnings == []
    assert fitted_ranges(LinearCost(LinearOptions(decode_base_s=1.0))) is None


def test_loads_come_from_the_profile() -> None:
    profile = Profile(name="p", coefficients={"step": 1.0}, load=LoadTime(fixed_s=1.0, per_byte_s=0.5, per_rank_s=0.25))
    assert ProfileCost(profile).load_seconds(Adapter(LoRARequest("a", 1, "a"), 4, 6), "host") == 5.0


def recorded(name: str) -> list[tuple[BatchShape, float]]:
    """Steps of a real vLLM run; ranks per step are not in the file, so LoRA is priced by tokens and adapters."""
    rows = []
    with (PUBLISHED / f"vllm032_cpu_{name}_steps.csv").open() as file:
        for row in csv.DictReader(file):
            prefill, decodes = int(row["prefill_tokens"]), int(row["decode_seqs"])
            prefill_seqs = int(row["seqs"]) - decodes
            if not prefill + decodes:
                continue
            shape = BatchShape(
                prefill_tokens=prefill,
                prefill_attention=prefill * prefill / (2 * prefill_seqs) if prefill_seqs else 0.0,
                prefill_seqs=prefill_seqs,
                decode_seqs=decodes,
                kv_tokens=int(row["decode_kv_tokens"]),
                distinct_adapters=int(row["distinct_adapters"]),
                lora_tokens=int(row["lora_prefill_tokens"]) + decodes,
            )
            rows.append((shape, float(row["duration_s"])))
    return rows


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the measured runs are not beside this checkout")
def test_steps_of_one_real_run_predict_another() -> None:
    """vLLM 0.32 on two cores: fitted at 4 requests/s, predicting the steps at 9 requests/s."""
    error = evaluate(fit(recorded("below")), recorded("near"))
    assert error.median < 0.04
    assert error.p90 < 0.10
    assert abs(error.total) < 0.02
