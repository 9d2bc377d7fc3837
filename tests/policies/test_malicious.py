"""A broken or hostile policy breaks no invariant: the ledger refuses, the run ends with a report or a clear error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import examples, run

from loratory.errors import InputError, PolicyError
from loratory.policy import Admit, Evict, Load, Preempt, Prefetch, Reject, Schedule, View, Wake, want
from loratory.serving.config import EngineConfig
from loratory.testing import ToyCost, World, adapter, assert_run, workload, worlds
from loratory.testing.misbehaving import (
    ENDS_WELL,
    FAILS,
    MAY_STARVE,
    NEVER_SERVES,
    ODD,
    REFUSED,
    RaisesInVictim,
    TriesDoors,
    YieldsOnRequest,
)


def crowd(**settings: object) -> World:
    """Forty requests, more than fit, for more adapters than there are slots, one of them pinned."""
    adapters = tuple(adapter(number, pinned=number == 1) for number in range(1, 6))
    rows = [
        {"at": 0.002 * i, "adapter": [None, 1, 2, 3, 4, 5][i % 6], "prompt": 7, "out": 12, "tenant": i % 3}
        for i in range(40)
    ]
    config = EngineConfig(
        **{"max_loras": 2, "max_num_seqs": 8, "num_gpu_blocks": 60, "block_size": 2, "max_num_batched_tokens": 32}
        | settings  # type: ignore[arg-type]
    )
    return World(workload(rows, adapters), adapters, config, ToyCost())


LOADING = pytest.mark.parametrize("loading", ["sync", "async"])
MEMORY = pytest.mark.parametrize("memory", ["slots", "unified"])


@pytest.mark.parametrize("name", ENDS_WELL)
@LOADING
@MEMORY
def test_the_ledger_keeps_it_in_order(name: str, loading: str, memory: str) -> None:
    result = run(crowd(adapter_loading=loading, memory=memory), ENDS_WELL[name])
    assert_run(result)
    statuses = {event.status for event in result.ended.values()}
    if name == "evicts-everything" and loading == "async":  # it may evict what has just come, for ever
        statuses.discard("failed")
    else:
        assert result.outcome.never_served == 0
    assert statuses <= {"completed", "rejected"}


@pytest.mark.parametrize("name", MAY_STARVE)
@LOADING
@MEMORY
def test_whoever_it_holds_up_is_reported(name: str, loading: str, memory: str) -> None:
    result = run(crowd(adapter_loading=loading, memory=memory), MAY_STARVE[name])
    assert_run(result)
    statuses = [event.status for event in result.ended.values()]
    assert set(statuses) <= {"completed", "failed"} and "completed" in statuses
    assert result.outcome.never_served == statuses.count("failed")


@pytest.mark.parametrize("name", ODD)
@LOADING
def test_odd_arguments_are_refused_or_the_policys_error(name: str, loading: str) -> None:
    try:
        result = run(crowd(adapter_loading=loading), lambda: YieldsOnRequest(ODD[name]))
    except PolicyError as error:
        assert "YieldsOnRequest" in str(error)
    else:
        assert_run(result)
        assert {event.status for event in result.ended.values()} <= {"failed", "rejected"}


@pytest.mark.parametrize("name", NEVER_SERVES)
@LOADING
def test_the_run_ends_and_says_who_was_never_served(name: str, loading: str) -> None:
    result = run(crowd(adapter_loading=loading), NEVER_SERVES[name], check_books=name != "wakes-later")
    statuses = {event.status for event in result.ended.values()}
    assert len(result.ended) == 40 and statuses <= {"failed", "completed"}
    failed = [event for event in result.ended.values() if event.status == "failed"]
    assert failed and result.outcome.never_served == len(failed)
    assert all(event.why.startswith("never served") for event in failed)


@pytest.mark.parametrize("name", FAILS)
@LOADING
def test_the_run_stops_with_an_error_that_names_the_policy(name: str, loading: str) -> None:
    with pytest.raises(PolicyError, match=type(FAILS[name]()).__name__):
        run(crowd(adapter_loading=loading), FAILS[name])


@MEMORY
def test_what_a_policy_is_handed_cannot_be_written(memory: str) -> None:
    """Neither an ended request's record nor a unit's service, through which books and reports were once forged."""
    policy = TriesDoors()
    result = run(crowd(memory=memory, num_gpu_blocks=30), lambda: policy)
    assert_run(result)
    assert policy.opened == [] and {event.status for event in result.ended.values()} == {"completed"}


@pytest.mark.parametrize("name", REFUSED)
def test_no_run_begins_with_a_policy_that_is_none(name: str) -> None:
    with pytest.raises(InputError, match=f"policy '{REFUSED[name].__name__}': its schedule\\(\\) is not a generator"):
        run(crowd(), REFUSED[name])


def test_the_reason_of_a_rejection_is_a_text() -> None:
    """Anything else may look different in each run, as an object's address does."""
    with pytest.raises(PolicyError, match="a Reject it yielded is malformed: its why is of type object: give a text"):
        run(crowd(), lambda: YieldsOnRequest(lambda request: Reject(request, object())))  # type: ignore[arg-type]


def test_a_victim_that_raises_is_the_policys_error() -> None:
    with pytest.raises(PolicyError, match="victim"):
        run(crowd(num_gpu_blocks=30), RaisesInVictim)


ACTIONS = st.sampled_from(["admit", "want", "load", "evict", "preempt", "reject", "prefetch", "wake", "steps"])


class Chaos:
    """Yields actions at random, legal or not, and looks at everything it may see."""

    def __init__(self, seed: int, rejects: bool) -> None:
        import random

        self.random = random.Random(seed)
        self.rejects = rejects

    def schedule(self, view: View) -> Schedule:
        draw = self.random
        for _ in range(draw.randrange(12)):
            waiting, running, names = list(view.waiting), list(view.running), list(view.adapters)
            kind = draw.randrange(10)
            requests = waiting + running
            if kind <= 3 and waiting:
                request = draw.choice(waiting)
                if draw.random() < 0.5:
                    yield from want(view, request)
                else:
                    yield Admit(request, draw.choice([None, None, 1, 3, 0, -1]))
            elif kind == 4 and requests:
                yield Admit(draw.choice(requests))
            elif kind == 5 and names:
                yield draw.choice([Load, Prefetch, Evict])(draw.choice(names))
            elif kind == 6 and names:
                yield Evict(draw.choice(names))
            elif kind == 7 and requests:
                yield Preempt(draw.choice(requests))
            elif kind == 8 and requests and self.rejects and draw.random() < 0.3:
                yield Reject(draw.choice(requests), "chaos")
            elif kind == 9:
                yield draw.choice([Wake(at=view.now + draw.random()), Wake(after_steps=draw.randrange(1, 9))])
        walks = [view.unblocked(w) for w in ("batch", "gpu", "any")] + [view.first_waiting(), view.first_waiting("off")]  # type: ignore[arg-type]
        for walk in walks:
            for _ in range(draw.randrange(4)):
                next(walk, None)  # type: ignore[call-overload]
        if draw.random() < 0.7:
            for request in view.unblocked():
                yield from want(view, request)


@examples(150)
@given(world=worlds(most=14), seed=st.integers(0, 10**6), rejects=st.booleans())
def test_chaos_breaks_nothing(world: World, seed: int, rejects: bool) -> None:
    assert_run(run(world, lambda: Chaos(seed, rejects), cutoff_s=20.0))


@examples(60)
@given(world=worlds(most=14), seed=st.integers(0, 10**6))
def test_chaos_is_deterministic_in_its_seed(world: World, seed: int) -> None:
    def make() -> Chaos:
        return Chaos(seed, False)

    assert run(world, make, cutoff_s=5.0, check_books=False).flat == run(world, make, cutoff_s=5.0).flat


@examples(60)
@given(world=worlds(most=14), seed=st.integers(0, 10**6))
def test_chaos_jumps_as_it_steps(world: World, seed: int) -> None:
    """The strongest form of jump = step: one call of the policy more or less would change all that follows."""
    jumped, stepped = (
        run(world, lambda: Chaos(seed, True), cutoff_s=5.0, check_books=False, jump=jump) for jump in (True, False)
    )
    assert jumped.decisions == stepped.decisions
    assert sorted(jumped.of("Ended")) == sorted(stepped.of("Ended"))


class PrefetchesWhatItLoads:
    """Asks for the same adapter twice in one call: in the background, and then at once."""

    def schedule(self, view: View) -> Schedule:
        for request in view.waiting:
            if request.adapter is not None:
                yield Prefetch(request.adapter)
            yield from want(view, request)


@pytest.mark.parametrize("loading", ["sync", "async"])
def test_a_load_may_overtake_its_own_prefetch(loading: str) -> None:
    """The prefetch is then for nothing, and the adapter on the GPU has no time of arrival any more (books checked)."""
    adapters = (adapter(1),)
    config = EngineConfig(max_num_batched_tokens=4, max_num_seqs=1, block_size=1, num_gpu_blocks=64)
    world = World(workload([{"adapter": 1, "out": 3}], adapters), adapters, config, ToyCost(load_s=0.013))
    assert_run(run(world.with_config(adapter_loading=loading), PrefetchesWhatItLoads))
