"""climb against thresholds: the SLO is met up to one, and missed above it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from small_plan import small

from loratory.errors import InputError
from loratory.plan.candidate import Candidate
from loratory.plan.climb import Climb, climb
from loratory.plan.verdict import Judgement

SCENARIO = small().scenario


def climbed(
    threshold: float, now: float, up: list[float], tolerance: float, ratio: bool, down: bool = True, end: float = 1e300
) -> Climb:
    """The climb of a candidate that meets its SLO up to ``threshold``; values above ``end`` cannot be."""

    def at(x: float) -> Candidate:
        if x > end:
            raise InputError(f"{x:g} does not fit")
        return Candidate((), SCENARIO, "fifo", x)

    search = climb(at, now, up, tolerance, ratio, down)
    try:
        asked = next(search)
        for _ in range(200):
            met = asked.load <= threshold
            asked = search.send(Judgement("met" if met else "missed", {}, 1, first_missed=None if met else "ttft"))
    except StopIteration as stop:
        found: Climb = stop.value
        return found
    raise AssertionError("200 values did not end the search")


UP = [2.0**k for k in range(1, 11)]


@given(st.floats(1 / 500, 1000.0), st.floats(1.01, 1.5))
def test_the_bracket_holds_the_threshold_and_is_within_the_ratio(threshold: float, tolerance: float) -> None:
    found = climbed(threshold, 1.0, UP, tolerance, True)
    assert found.holds_to is not None and found.breaks_at is not None
    assert found.holds_to <= threshold < found.breaks_at <= found.holds_to * tolerance
    assert found.first_missed == "ttft"
    values = [x for x, _ in found.points]
    assert values == sorted(set(values)) and {found.holds_to, found.breaks_at} <= set(values)


@given(st.floats(0.5, 2.9), st.floats(0.02, 0.4))
def test_the_bracket_is_within_the_difference(threshold: float, tolerance: float) -> None:
    found = climbed(threshold, 0.5, [0.7, 0.9, 1.3, 1.7, 2.5, 3.0], tolerance, False)
    assert found.holds_to is not None and found.breaks_at is not None
    assert found.holds_to <= threshold < found.breaks_at <= found.holds_to + tolerance


def test_one_that_always_meets_it_has_no_end() -> None:
    found = climbed(1e9, 1.0, UP, 1.05, True)
    assert (found.holds_to, found.breaks_at, found.end, len(found.points)) == (1024.0, None, "", 11)


def test_one_that_never_meets_it_is_tried_down_to_a_thousandth() -> None:
    found = climbed(0.0, 1.0, UP, 1.05, True)
    assert found.holds_to is None and found.breaks_at == 2.0**-9 and found.first_missed == "ttft"


def test_it_goes_down_only_where_it_is_told_to() -> None:
    found = climbed(0.5, 1.0, UP, 1.05, True, down=False)
    assert [x for x, _ in found.points] == [1.0] and (found.holds_to, found.breaks_at) == (None, 1.0)


@given(st.floats(1.5, 900.0), st.floats(1.0, 900.0))
def test_values_that_cannot_be_are_said_and_do_not_count_as_missed(threshold: float, end: float) -> None:
    found = climbed(threshold, 1.0, UP, 1.05, True, end=end)
    assert found.holds_to is not None and found.holds_to <= min(threshold, end)
    assert (found.breaks_at is None) == (found.end != "")
    if found.breaks_at is not None:
        assert found.holds_to <= threshold < found.breaks_at <= end


def test_a_scenario_that_cannot_be_as_it_is_has_no_points() -> None:
    found = climbed(2.0, 1.0, UP, 1.05, True, end=0.5)
    assert (found.points, found.holds_to, found.breaks_at, found.end) == ([], None, None, "1 does not fit")
