"""Laws that hold for every policy over random worlds: conservation, limits, causality, determinism."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import examples, run
from roster import POLICIES, REJECTING

from loratory.testing import assert_clock, assert_run, worlds

EVERY = pytest.mark.parametrize("policy", POLICIES)


@EVERY
@examples(20)
@given(world=worlds())
def test_books_balance_and_requests_and_tokens_are_conserved(policy: str, world) -> None:  # type: ignore[no-untyped-def]
    assert_run(run(world, policy))


@EVERY
@examples(15)
@given(world=worlds(), data=st.data())
def test_jumping_and_stepping_are_the_same(policy: str, world, data) -> None:  # type: ignore[no-untyped-def]
    options = data.draw(st.sampled_from([{}, {}, {"replicas": 2, "router": "least_loaded"}]), label="options")
    jumped = run(world, policy, jump=True, check_books=False, **options)
    stepped = run(world, policy, jump=False, check_books=False, **options)
    assert jumped.decisions == stepped.decisions
    assert sorted(jumped.of("Ended")) == sorted(stepped.of("Ended"))
    assert jumped.outcome == stepped.outcome


@EVERY
@examples(8)
@given(world=worlds(adapter_loading="sync"))
def test_events_are_told_in_order_of_time(policy: str, world) -> None:  # type: ignore[no-untyped-def]
    assert_clock(run(world, policy, check_books=False))


@EVERY
@examples(10)
@given(world=worlds(), cutoff_s=st.sampled_from([0.05, 0.11, 0.5, 2.0]))
def test_a_cutoff_falls_alike_on_jumps_and_steps(policy: str, world, cutoff_s: float) -> None:  # type: ignore[no-untyped-def]
    jumped = run(world, policy, jump=True, check_books=False, cutoff_s=cutoff_s)
    stepped = run(world, policy, jump=False, check_books=False, cutoff_s=cutoff_s)
    assert jumped.decisions == stepped.decisions
    assert sorted(jumped.of("Ended")) == sorted(stepped.of("Ended"))
    assert jumped.outcome == stepped.outcome


@EVERY
@examples(12)
@given(world=worlds(fits=True, deadlines=False))
def test_everything_drains_when_every_request_fits_alone(policy: str, world) -> None:  # type: ignore[no-untyped-def]
    result = run(world, policy, check_books=False)
    statuses = {event.status for event in result.ended.values()}
    if policy not in REJECTING:
        assert statuses == {"completed"}, {
            i: (e.status, e.why) for i, e in result.ended.items() if e.status != "completed"
        }
