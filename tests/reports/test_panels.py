"""The parts of figures: logarithmic axes can be read, whatever their limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import examples

from loratory.reports.panels import log_ticks


@examples(200)
@given(low=st.floats(1e-7, 1e7), ratio=st.floats(1.001, 1e9))
def test_a_logarithmic_axis_has_two_labels_or_more(low: float, ratio: float) -> None:
    ticks = log_ticks(low, low * ratio)
    assert 2 <= len(ticks) <= 8 and ticks == sorted(set(ticks))
    assert all(low <= tick <= low * ratio for tick in ticks)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0079, 0.0134, [0.008, 0.01, 0.012]),
        (0.5, 1.3, [0.6, 0.8, 1.0, 1.2]),
        (0.05, 9.0, [0.1, 0.3, 1.0, 3.0]),
        (0.4, 6.0, [0.5, 1.0, 2.0, 5.0]),
        (0.02, 300.0, [0.1, 1.0, 10.0, 100.0]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, ticks: list[float]) -> None:
    assert log_ticks(low, high) == ticks
