"""Policies swapped and adapters changed on a live executor: nothing is lost, and a replay decides the same."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import examples
from live_run import Order, live_run, replayed, spare_adapter
from roster import POLICIES, TIMED

from loratory.policy import want
from loratory.serving.config import EngineConfig
from loratory.serving.policy import Policy
from loratory.testing import ToyCost, worlds
from loratory.testing.world import World, adapter, workload

NAMES = sorted(POLICIES)
COMPARED = ("Arrived", "Decided", "Admitted", "Preempted", "Ended", "Evicted", "AdapterAdded", "AdapterRemoved")


@st.composite
def order_lists(draw: st.DrawFn, world: World, *, swaps_only: bool = False) -> list[Order]:
    """Up to eight orders at random times of a world's run."""
    last = float(max(world.workload.arrival, default=0.0)) + 0.3
    names = [adapter.name for adapter in world.adapters] + ["spare1", "spare2", "nobody"]
    kinds: dict[str, st.SearchStrategy[Any]] = {"swap": st.sampled_from(NAMES)}
    if not swaps_only:
        kinds |= {
            "abort": st.integers(0, max(0, len(world.workload) - 1)),
            "add": st.integers(1, 2).map(spare_adapter),
            "remove": st.sampled_from(names),
            "pin": st.sampled_from(names),
            "unpin": st.sampled_from(names),
            "preload": st.sampled_from(names),
            "max_num_seqs": st.integers(0, 9),
        }
    kind = st.sampled_from(sorted(kinds)) if swaps_only else st.sampled_from(["swap", *sorted(kinds)])
    times = st.floats(0, last, allow_nan=False)
    entries = draw(st.lists(st.tuples(times, kind), min_size=1, max_size=8))
    return sorted(((at, what, draw(kinds[what])) for at, what in entries), key=lambda order: order[0])


def slot_worlds(**options: Any) -> st.SearchStrategy[World]:
    """Worlds that an executor can run."""
    return worlds(memory="slots", async_scheduling=False, turns=False, **options)


@given(st.data())
@examples(120)
def test_no_request_is_lost_and_a_replay_decides_the_same(data: st.DataObject) -> None:
    """The law of live orders: every request ends once, the books agree at each step, and the recording replays."""
    world = data.draw(slot_worlds(most=16))
    first = data.draw(st.sampled_from(NAMES))
    orders = data.draw(order_lists(world))
    run = live_run(world, first, orders)
    assert set(run.ends) == {str(place) for place in range(len(world.workload))}
    assert not run.executor.engine.ledger.sequences
    removed = {name for _, kind, name in orders if kind == "remove"}
    for status, why, _ in run.ends.values():
        assert status in ("completed", "rejected", "aborted", "failed")
        if "not registered" in why:
            assert removed
    again = replayed(world, first, run.recording)
    kept = [event for event in run.of(*COMPARED) if event[0] != "Ended" or event[4] != "nothing can happen any more"]
    assert [event for event in again if event[0] in COMPARED] == kept


@pytest.mark.parametrize("first", [name for name in NAMES if name not in TIMED])
@given(data=st.data())
@examples(4)
def test_every_pair_of_policies_replays(first: str, data: st.DataObject) -> None:
    """From each policy to each other one and back, at random times, under random traffic."""
    world = data.draw(slot_worlds(most=12, fits=True))
    last = float(max(world.workload.arrival, default=0.0))
    others = data.draw(st.permutations(NAMES))
    orders: list[Order] = []
    for number, other in enumerate(others[:6]):
        at = last * number / 6
        orders += [(at, "swap", other), (at + last / 12, "swap", first)]
    run = live_run(world, first, orders)
    assert len(run.of("PolicySwapped")) == len(orders)
    again = replayed(world, first, run.recording)
    assert [event for event in again if event[0] in COMPARED] == run.of(*COMPARED)


@given(st.data())
@examples(60)
def test_a_swap_reorders_nothing_within_a_tenant_and_adapter(data: st.DataObject) -> None:
    """Policies that serve a tenant's requests for one adapter in order go on doing so across swaps."""
    world = data.draw(slot_worlds(most=16, fits=True, enable_chunked_prefill=True, scheduler_reserve_full_isl=False))
    keep_order = ["fifo", "affinity", "fair_share", "affinity-hard-1"]
    swaps = data.draw(st.lists(st.tuples(st.floats(0, 1), st.sampled_from(keep_order)), min_size=1, max_size=5))
    last = float(max(world.workload.arrival, default=0.0)) + 0.1
    orders = sorted((at * last, "swap", name) for at, name in swaps)
    run = live_run(world, data.draw(st.sampled_from(keep_order)), orders)
    first_admitted: dict[tuple[Any, Any], list[int]] = defaultdict(list)
    work = world.workload
    for event in run.of("Admitted"):
        place = int(event[2])
        lane = first_admitted[int(work.tenant[place]), int(work.adapter[place])]
        if place not in lane:
            lane.append(place)
    for lane in first_admitted.values():
        assert lane == sorted(lane)


class Breaks(Policy):
    """Serves like fifo until it fails in one of its members, at the third call of it."""

    spec = "breaks"

    def __init__(self, where: str) -> None:
        self.where = where
        self.calls = 0
        if where == "victim":
            self.victim = self._victim
        if where == "evict":
            self.evict = self._evict

    def _fail(self, where: str) -> None:
        self.calls += where == self.where
        if where == self.where and self.calls >= 3:
            raise ValueError(f"{where} broke")

    def schedule(self, view: Any) -> Any:
        self._fail("schedule")
        for request in view.unblocked():
            yield from want(view, request)
            self._fail("middle")

    def observe(self, event: Any) -> None:
        self._fail("observe")

    def _victim(self, view: Any) -> None:
        self._fail("victim")

    def _evict(self, adapter: Any, view: Any) -> float:
        self._fail("evict")
        return adapter.last_used


@pytest.mark.parametrize("where", ["schedule", "middle", "observe", "victim", "evict"])
@given(data=st.data())
@examples(15)
def test_a_policy_that_fails_gives_way_to_the_one_before(where: str, data: st.DataObject) -> None:
    """It fails anywhere: the one before returns in the same step, every request is served, and a replay agrees."""
    world = data.draw(slot_worlds(most=16, fits=True))
    makers = {**POLICIES, "breaks": lambda: Breaks(where)}
    before = data.draw(st.sampled_from(["fifo", "fair_share", "affinity"]))
    at = data.draw(st.floats(0, 0.3))
    run = live_run(world, before, [(at, "swap", "breaks")], makers)
    assert all(status == "completed" for status, _, _ in run.ends.values()), run.ends
    swapped = run.of("PolicySwapped")
    assert [name for _, _, name, _ in swapped[:1]] == ["breaks"]
    if len(swapped) > 1:
        assert len(swapped) == 2
        assert f"{where} broke" in swapped[1][3]
        assert run.executor.policy_spec == swapped[1][2]
    again = replayed(world, before, run.recording, makers)
    assert [event for event in again if event[0] in COMPARED] == run.of(*COMPARED)


class Spins(Policy):
    """Never answers, from the second call on."""

    spec = "spins"

    def __init__(self) -> None:
        self.calls = 0

    def schedule(self, view: Any) -> Any:
        self.calls += 1
        while self.calls > 1:
            pass
        for request in view.unblocked():
            yield from want(view, request)


def test_a_policy_that_is_late_gives_way_as_well() -> None:
    """The watch stops it, and watches the one before again."""
    adapters = (adapter(1), adapter(2))
    rows = [{"at": 0.01 * n, "adapter": 1 + n % 2, "prompt": 4, "out": 5} for n in range(8)]
    config = EngineConfig(max_loras=1, max_num_seqs=2, max_num_batched_tokens=16, num_gpu_blocks=20, block_size=4)
    world = World(workload(rows, adapters), adapters, config, ToyCost())
    makers = {**POLICIES, "spins": Spins}
    run = live_run(world, "fifo", [(0.005, "swap", "spins")], makers, timeout_s=0.2)
    assert all(status == "completed" for status, _, _ in run.ends.values())
    ordered, returned = run.of("PolicySwapped")
    assert ordered[2:] == ("spins", "") and "did not come back within 0.2 s" in returned[3]
