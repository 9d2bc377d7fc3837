"""A broken or hostile policy breaks no invariant: the ledger refuses, the run ends with a report or a clear error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import examples, run

from loratory.errors import InputError, PolicyError
from loratory.policy import (
    AdapterView,
    Admit,
    Evict,
    Load,
    Outcome,
    Preempt,
    Prefetch,
    Reject,
    RequestView,
    Schedule,
    SortedQueue,
    View,
    Wake,
    want,
)
from loratory.serving.config import EngineConfig
from loratory.serving.policy_watch import PolicyWatch
from loratory.serving.reserved import WithReservation
from loratory.testing import ToyCost, World, adapter, assert_run, workload, worlds
from loratory.testing.misbehaving import (
    ENDS_WELL,
    FAILS,
    MAY_STARVE,
    NEVER_SERVES,
    REFUSED,
    RaisesInVictim,
    TriesDoors,
)
from loratory.testing.odd_values import ODD, LyingFloat, LyingInt, OtherText, YieldsOnRequest


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


class Loops:
    """A value whose code never comes back, whatever it is asked for."""

    def _loop(self, *_: Any) -> Any:
        while True:
            pass

    __lt__ = __le__ = __gt__ = __ge__ = __float__ = __index__ = _loop
    request_id = property(_loop)
    prompt_tokens = property(_loop)


LOOPS: dict[str, Any] = {
    "admit-tokens": lambda request: Admit(request, Loops()),  # type: ignore[arg-type]
    "wake-at": lambda request: Wake(at=Loops()),  # type: ignore[arg-type]
    "wake-steps": lambda request: Wake(after_steps=Loops()),  # type: ignore[arg-type]
}
"""Actions that hold a number whose code never comes back: only a watch ends such a run."""


class Sends:
    """Yields one action at its first call, made from all it sees, and then serves in order."""

    def __init__(self, make: Any) -> None:
        self.make = make
        self.outcomes: list[Outcome] = []

    def schedule(self, view: View) -> Schedule:
        if not self.outcomes:
            self.outcomes.append((yield self.make(view)))
        for request in view.unblocked():
            yield from want(view, request)


def _first(view: View) -> Any:
    return next(iter(view.waiting))


def _flat(make: Any, **settings: object) -> tuple[list[Outcome], Any]:
    policy = Sends(make)
    result = run(crowd(**settings), lambda: policy)
    assert_run(result)
    return policy.outcomes, result.flat


@pytest.mark.parametrize(
    ("odd", "plain"),
    [
        (lambda view: Admit(_first(view), LyingInt(10**6)), lambda view: Admit(_first(view), 10**6)),
        (lambda view: Admit(_first(view), np.int64(3)), lambda view: Admit(_first(view), 3)),
        (lambda view: Wake(at=LyingFloat(view.now + 0.5)), lambda view: Wake(at=view.now + 0.5)),
        (lambda view: Wake(at=LyingFloat(view.now)), lambda view: Wake(at=view.now)),
        (lambda view: Wake(at=np.float32(2.0)), lambda view: Wake(at=2.0)),
        (lambda view: Wake(after_steps=LyingInt(-5)), lambda view: Wake(after_steps=-5)),
        (lambda view: Load(OtherText("a2")), lambda view: Load("a2")),
        (lambda view: Prefetch(OtherText("a2")), lambda view: Prefetch("a2")),
        (lambda view: Evict(OtherText("a2")), lambda view: Evict("a2")),
        (lambda view: Reject(_first(view), OtherText("no")), lambda view: Reject(_first(view), "no")),
    ],
)
def test_a_value_of_a_class_of_its_own_counts_as_what_it_holds(odd: Any, plain: Any) -> None:
    """However it compares or hashes: through these, budgets and the ledger's tables were once forged."""
    assert _flat(odd) == _flat(plain)


@pytest.mark.parametrize("kind", [Preempt, lambda request: Reject(request, "no"), Admit])
def test_what_looks_like_a_request_is_none(kind: Any) -> None:
    class Claims(RequestView):
        __slots__ = ()
        request_id = "0"

    for make in (lambda view: Claims(None), lambda view: Loops()):
        outcomes, _ = _flat(lambda view, make=make: kind(make(view)))
        assert [outcome.why for outcome in outcomes] == ["unknown"]


def test_a_victim_that_only_looks_like_a_request_is_the_policys_error() -> None:
    """None of its own code is run."""

    class Names(Sends):
        def victim(self, view: View) -> Any:
            return Loops()

    with pytest.raises(PolicyError, match=r"its victim\(\) returned a value of type Loops: return a running request"):
        run(crowd(num_gpu_blocks=30), lambda: Names(lambda view: Wake()))


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("reserve", [False, True])
def test_a_value_whose_code_never_comes_back_is_stopped(name: str, reserve: bool) -> None:
    policy = YieldsOnRequest(LOOPS[name])
    text = r"did not come back within 0\.1 s \(.*odd_values\.py:\d+\)|did not come back within 0\.1 s"
    with pytest.raises(PolicyError, match=text), PolicyWatch("mine", 0.1):
        run(crowd(), lambda: WithReservation(policy) if reserve else policy, check_books=False)


@pytest.mark.parametrize("reserve", [False, True])
def test_a_loop_in_what_only_looks_like_a_request_is_not_run(reserve: bool) -> None:
    policy = YieldsOnRequest(lambda request: Admit(Loops()))  # type: ignore[arg-type]
    with PolicyWatch("mine", 0.5):
        run(crowd(), lambda: WithReservation(policy) if reserve else policy, check_books=False)


def test_an_order_whose_comparison_never_ends_is_stopped() -> None:
    class Sorted:
        def __init__(self) -> None:
            self.queue = SortedQueue(lambda request: (Loops(),))  # type: ignore[arg-type, return-value]
            self.observe = self.queue.observe

        def schedule(self, view: View) -> Schedule:
            return self.queue.admit(view)

    with pytest.raises(PolicyError, match="did not come back within"), PolicyWatch("mine", 0.1):
        run(crowd(), Sorted, check_books=False)


def test_a_score_that_is_a_number_of_its_own_class_counts_as_what_it_holds() -> None:
    def scored(make: Any) -> Any:
        class Scores(Sends):
            def evict(self, adapter: AdapterView, view: View) -> Any:
                return make(adapter.lora_int_id)

        return run(crowd(), lambda: Scores(lambda view: Wake())).flat

    assert scored(LyingInt) == scored(int) and scored(LyingFloat) == scored(float)


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
    result = run(world, lambda: Chaos(seed, rejects), cutoff_s=20.0)
    assert_run(result, everything_sent=not result.outcome.cut_off)  # turns may follow requests that it never admits


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
