"""Fairness: Jain's index, service over time, and the service gap against its definition by brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loratory.reports.tenant_service import Demand, _grid, jain, service_curve, service_gap, service_of

TIME = st.integers(0, 40).map(lambda n: n / 4)


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    """A few requests of up to three tenants with any times that keep their order; some never run."""
    rows = []
    for _ in range(draw(st.integers(1, 9))):
        arrival, admitted, first, finish = sorted(draw(st.tuples(TIME, TIME, TIME, TIME)))
        ran = draw(st.booleans())
        output = draw(st.integers(1, 30)) if ran else 0
        tenant, prompt = draw(st.integers(0, 2)), draw(st.integers(1, 100))
        rows.append((tenant, arrival, admitted if ran else np.nan, first if ran else np.nan, finish, prompt, output))
    tenant, *columns = (np.array(column) for column in zip(*rows, strict=True))
    return Demand(tenant.astype(np.int64), *(column.astype(float) for column in columns))


@given(st.lists(st.floats(0, 1e9), max_size=30))
def test_jain_is_in_0_to_1(service: list[float]) -> None:
    found = jain(np.array(service))
    assert found is None if not any(service) else found is not None and 0 < found <= 1


@given(st.integers(1, 50), st.floats(0.1, 1e6))
def test_jain_of_equals_is_1_and_of_one_in_n_is_1_over_n(n: int, value: float) -> None:
    assert jain(np.full(n, value)) == pytest.approx(1)
    assert jain(np.eye(n)[0] * value) == pytest.approx(1 / n)


@given(demands())
def test_service_grows_to_the_service_of_all_requests(demand: Demand) -> None:
    curve = service_curve(demand, np.linspace(-1, 11, 97))
    assert curve[0] == 0
    assert (np.diff(curve) >= -1e-6).all()
    assert curve[-1] == pytest.approx(service_of(demand).sum())


@settings(max_examples=60, deadline=None)
@given(demands(), st.tuples(*[st.sampled_from([0.5, 1.0, 3.0])] * 3))
def test_gap_is_the_largest_over_windows_in_which_both_wait(demand: Demand, weights: tuple[float, ...]) -> None:
    """Every window between two moments of the grid, both tenants waiting at each moment in it."""
    times = _grid(demand)
    waits = np.zeros((3, len(times)), bool)
    curves = np.zeros((3, len(times)))
    for tenant in range(3):
        mine = demand.of(tenant)
        until = np.where(np.isnan(mine.admitted), mine.finish, mine.admitted)
        for start, end in zip(mine.arrival, until, strict=True):
            waits[tenant] |= (times >= start) & (times < end)
        curves[tenant] = service_curve(mine, times) / weights[tenant]
    largest = 0.0
    for f, g in itertools.combinations(range(3), 2):
        for begin in range(len(times)):
            for end in range(begin, len(times)):
                if not (waits[f, end] and waits[g, end]):
                    break
                moved = (curves[f, end] - curves[f, begin]) - (curves[g, end] - curves[g, begin])
                largest = max(largest, abs(moved))
    _, gap = service_gap(demand, np.array(weights))
    assert gap.max(initial=0.0) == pytest.approx(largest, abs=1e-6)


def test_gap_of_a_served_and_an_unserved_tenant_is_what_the_first_got() -> None:
    """Tenant 0 is served 10 + 2 * 5 tokens while both keep waiting; tenant 1 gets nothing until the end."""
    demand = Demand(
        np.array([0, 0, 1]),
        arrival=np.array([0.0, 0.0, 0.0]),
        admitted=np.array([1.0, 9.0, np.nan]),
        first=np.array([2.0, np.nan, np.nan]),
        finish=np.array([6.0, 9.0, 9.0]),
        prompt=np.array([10.0, 10.0, 10.0]),
        output=np.array([5.0, 0.0, 0.0]),
    )
    times, gap = service_gap(demand, np.ones(2))
    assert gap.max() == pytest.approx(20)
    assert gap[times < 2].max() == pytest.approx(0)
