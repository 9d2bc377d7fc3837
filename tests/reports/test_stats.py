"""Statistics agree with numpy and with printed tables."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratory.reports.stats import (
    PERCENTILES,
    clean,
    cleaned,
    describe,
    describe_weighted,
    grouped_percentiles,
    student_t,
)

VALUES = st.lists(st.floats(0, 1e6), min_size=1, max_size=60)


@given(VALUES)
def test_describe_is_numpys(values: list[float]) -> None:
    found = describe(np.array(values))
    for name, percent in PERCENTILES.items():
        assert found[name] == pytest.approx(np.percentile(values, percent))
    assert found["mean"] == pytest.approx(np.mean(values)) and found["max"] == max(values)


@given(st.lists(st.tuples(st.floats(0, 1e3), st.integers(0, 9)), min_size=1, max_size=40))
def test_weighted_is_each_value_so_many_times(pairs: list[tuple[float, int]]) -> None:
    values, weights = (np.array(column, float) for column in zip(*pairs, strict=True))
    many = np.repeat(values, weights.astype(int))
    found = describe_weighted(values, weights)
    if not len(many):
        assert set(found.values()) == {None}
        return
    for name, percent in PERCENTILES.items():
        assert found[name] == pytest.approx(np.percentile(many, percent, method="inverted_cdf"))
    assert found["mean"] == pytest.approx(many.mean()) and found["max"] == many.max()


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1e3)), max_size=60))
def test_grouped_percentiles_are_those_of_each_group(pairs: list[tuple[int, float]]) -> None:
    group = np.array([g for g, _ in pairs], np.int64)
    values = np.array([v for _, v in pairs])
    found = grouped_percentiles(group, values, 6, (50, 99))
    for g in range(6):
        mine = values[group == g]
        expected = np.percentile(mine, (50, 99)) if len(mine) else [np.nan, np.nan]
        np.testing.assert_allclose(found[:, g], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("df", "quantile"),
    [(1, 12.7062), (2, 4.30265), (4, 2.77645), (9, 2.26216), (30, 2.04227), (120, 1.97993), (1000, 1.96234)],
)
def test_student_t_is_the_printed_one(df: int, quantile: float) -> None:
    """NIST/SEMATECH e-Handbook of Statistical Methods, section 1.3.6.7.2 (0.975 column), to six digits."""
    assert student_t(df) == pytest.approx(quantile, rel=2e-5)


def test_clean_keeps_nine_digits_and_no_nan() -> None:
    assert clean(1 / 3) == 0.333333333 and clean(math.nan) is None and clean(math.inf) is None
    assert cleaned({"a": [np.float64(0.1) + 0.2, 3, True, None]}) == {"a": [0.3, 3, True, None]}
