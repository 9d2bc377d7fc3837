"""RequestLimits: what is let in and turned away, whatever comes and goes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratory.server import limits as module
from loratory.server.limits import RequestLimits
from loratory.server.openai_errors import ApiError

MOVES = st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 3), st.booleans()), max_size=40)


@given(MOVES, st.integers(0, 3), st.integers(1, 4), st.integers(1, 4))
def test_no_more_are_let_in_than_may_wait_and_none_is_turned_away_for_nothing(
    moves: list[tuple[str, int, bool]], max_queue: int, places: int, tenant_most: int
) -> None:
    """With an engine that runs as many as it has places for, at once."""
    within: list[str] = []
    limits = RequestLimits(max_queue, tenant_most, lambda: (min(len(within), places), places))
    for tenant, outputs, leaves in moves:
        if leaves and within:
            limits.leave(within.pop(0))
        running = min(len(within), places)
        room = len(within) + outputs <= places or len(within) + outputs - running <= max_queue
        fits = room and within.count(tenant) + outputs <= tenant_most
        try:
            limits.enter(tenant, outputs)
        except ApiError as error:
            assert not fits and error.status == 429 and error.headers["retry-after"] == "1"
            assert error.code == ("tenant_limit" if room else "queue_full")
        else:
            assert fits
            within += [tenant] * outputs
        assert limits.in_progress == len(within) <= max(places, places + max_queue)


def test_a_server_that_drains_takes_nothing_and_tenants_are_counted(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "MOST_TENANTS", 2)
    limits = RequestLimits(10, None, lambda: (0, 10))
    for tenant in ("a", "b", "a"):
        limits.enter(tenant, 1)
    with pytest.raises(ApiError, match="no more are told apart") as many:
        limits.enter("c", 1)
    limits.draining_s = 7
    with pytest.raises(ApiError) as away:
        limits.enter("a", 1)
    assert (away.value.status, away.value.headers["retry-after"], many.value.status) == (503, "7", 429)
