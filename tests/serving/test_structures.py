"""WaitQueue, Lanes, KVPool, HostCache and Segment against the plainest models of themselves."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import examples

from loratory.serving.compiling import is_compiled
from loratory.serving.host_cache import HostCache
from loratory.serving.kv_pool import KVPool
from loratory.serving.lanes import Lanes
from loratory.serving.plan import BatchShape
from loratory.serving.request import Request
from loratory.serving.sequence import Sequence
from loratory.serving.usage import AdapterState, TenantState
from loratory.serving.wait_queue import Queued, QueueView, WaitQueue
from loratory.sim.segment import Segment
from loratory.testing import ToyCost, adapter


def queued(ticket: int) -> Queued:
    """What waits under a ticket; its view is the ticket as well."""
    made: Any = Queued()
    made.ticket = made.view = ticket
    found: Queued = made
    return found


# -- WaitQueue -------------------------------------------------------------------------------------------------------

MOVES = st.lists(
    st.tuples(st.sampled_from(["append", "append", "front", "leave", "first", "walk"]), st.integers(0, 99))
)


@examples(150)
@given(moves=MOVES, parts=st.integers(1, 3))
def test_a_wait_queue_is_a_list(moves: list[tuple[str, int]], parts: int) -> None:
    """Several queues over one table, as adapters and tenants have them; one ticket sits in one of them."""
    table: dict[int, Any] = {}
    queues = [WaitQueue(table) for _ in range(parts)]
    models: list[list[int]] = [[] for _ in range(parts)]
    last = front = 0
    for move, number in moves:
        place = number % parts
        queue, model = queues[place], models[place]
        if move == "append":
            last += 1
            table[last] = queued(last)
            queue.append(last)
            model.append(last)
        elif move == "front":
            front -= 1
            table[front] = queued(front)
            queue.push_front(front)
            model.insert(0, front)
        elif move == "leave" and model:
            ticket = model.pop(number % len(model))
            del table[ticket]
            queue.left()
        elif move == "first":
            found = queue.first()
            assert (None if found is None else found.ticket) == (model[0] if model else None)
        for kept, expected in zip(queues, models, strict=True):
            assert len(kept) == len(expected) and bool(kept) == bool(expected)
            shown = QueueView(kept)
            assert len(shown) == len(expected) and bool(shown) == bool(expected)
            if move == "walk":
                assert list(shown) == expected
                assert shown.head == (expected[0] if expected else None)


@examples(100)
@given(size=st.integers(1, 200), leavers=st.lists(st.tuples(st.integers(0, 199), st.integers(0, 199)), max_size=40))
def test_who_leaves_during_a_walk_is_not_met(size: int, leavers: list[tuple[int, int]]) -> None:
    table = {ticket: queued(ticket) for ticket in range(1, size + 1)}
    queue = WaitQueue(table)
    for ticket in table:
        queue.append(ticket)
    when: dict[int, list[int]] = {}
    for at, who in leavers:
        when.setdefault(at, []).append(who % size + 1)
    met = []
    for step, ticket in enumerate(QueueView(queue)):
        met.append(ticket)
        for who in when.get(step, []):
            if who in table:
                del table[who]
                queue.left()
    gone = set(range(1, size + 1)) - set(table)
    assert met == sorted(met) and set(met) >= set(table)
    for at, who in leavers:
        if who % size + 1 in met and at < met.index(who % size + 1):
            assert who % size + 1 not in gone or any(a >= met.index(w % size + 1) for a, w in leavers if w == who)
    assert list(QueueView(queue)) == sorted(table)


def test_a_queue_that_empties_and_fills_keeps_its_order() -> None:
    table: dict[int, Any] = {}
    queue = WaitQueue(table)
    view = QueueView(queue)
    for ticket in range(1, 10001):
        table[ticket] = queued(ticket)
        queue.append(ticket)
    for ticket in range(1, 9999):
        assert view.head == ticket
        del table[ticket]
        queue.left()
    assert list(view) == [9999, 10000]
    table[-1] = queued(-1)
    queue.push_front(-1)
    assert list(view) == [-1, 9999, 10000] and view.head == -1


# -- Lanes -----------------------------------------------------------------------------------------------------------


class FakeView:
    """As much of a view as `Lanes` reads."""

    def __init__(self, tiers: dict[str, str], references: dict[str, int], obtainable: bool) -> None:
        adapters = {
            name: SimpleNamespace(name=name, tier=tier, references=references.get(name, 0))
            for name, tier in tiers.items()
        }
        on_gpu = {name: a for name, a in adapters.items() if a.tier == "gpu"}
        self._ledger = SimpleNamespace(adapters=adapters, slots=SimpleNamespace(views=on_gpu))
        self.slot_obtainable = obtainable


NAMES = ["a", "b", "c", "d"]


@pytest.mark.skipif(is_compiled(), reason="a compiled Lanes reads a View and no fake; runs compare picks")
@examples(250)
@given(
    pushes=st.lists(
        st.tuples(
            st.sampled_from(["push", "push", "push", "discard", "pick", "first"]),
            st.integers(0, 9),
            st.tuples(st.integers(0, 3), st.integers(0, 3)),
            st.sampled_from([None, *NAMES]),
        ),
        max_size=60,
    ),
    data=st.data(),
)
def test_lanes_pick_what_a_scan_would(pushes: list[tuple[Any, ...]], data: st.DataObject) -> None:
    lanes: Lanes[int] = Lanes()
    model: dict[int, tuple[tuple[int, int], int, str | None]] = {}
    for count, (move, item, order, name) in enumerate(pushes):
        if move == "push":
            lanes.push(item, order, name)
            model[item] = (order, count, name)
        elif move == "discard":
            lanes.discard(item)
            model.pop(item, None)
        elif move == "first":
            best = min(((o, c, i) for i, (o, c, _) in model.items()), default=None)
            assert lanes.first() == (None if best is None else (best[0], best[2]))
        else:
            tiers = {n: data.draw(st.sampled_from(["gpu", "gpu", "host", "loading"])) for n in NAMES}
            used = {n: data.draw(st.integers(0, 1)) for n in NAMES}
            obtainable = data.draw(st.booleans())
            closed = data.draw(st.sets(st.sampled_from([None, *NAMES]), max_size=2))
            nearest = data.draw(st.booleans())

            def rank(order: Any, count: int, lane: str | None, at=(tiers, used, obtainable, closed, nearest)) -> Any:
                """Where an item comes among all, None if it is blocked."""
                tiers, used, obtainable, closed, nearest = at
                if lane in closed:
                    return None
                if lane is None or tiers[lane] == "gpu":
                    return (0 if not nearest or lane is None or used[lane] else 1, order, count)
                return (2 if nearest else 0, order, count) if obtainable and tiers[lane] != "loading" else None

            ranked = [(rank(o, c, lane), i) for i, (o, c, lane) in model.items()]
            best = min((r for r in ranked if r[0] is not None), default=None)
            assert lanes.pick(FakeView(tiers, used, obtainable), closed, nearest) == (
                None if best is None else (best[1],)
            )
        assert len(lanes) == len(model) and all(i in lanes for i in model)


# -- KVPool ----------------------------------------------------------------------------------------------------------


@examples(250)
@given(
    size=st.sampled_from([1, 2, 3, 4, 7, 16]),
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=8),
    spare=st.integers(0, 30),
    moves=st.lists(st.tuples(st.sampled_from(["steps", "steps", "leave", "join"]), st.integers(1, 60)), max_size=12),
)
def test_the_kv_pool_counts_as_a_walk_over_sequences(
    size: int, lengths: list[int], spare: int, moves: list[tuple[str, int]]
) -> None:
    clock = [0]
    pool = KVPool(sum(ceil(n / size) for n in lengths) + spare, size, clock)
    live: list[Any] = []

    def join(length: int) -> None:
        request = Request(f"r{len(live)}", None, 0.0, length, 1)
        sequence = Sequence(request, AdapterState(None, 0, {}, clock), TenantState("t", {}, clock), clock, 1)
        sequence.decoding = True
        pool.take(pool.blocks(length))
        pool.join(sequence)
        live.append(sequence)

    def tokens(sequence: Any) -> int:
        return sequence.offset + clock[0]

    def blocks_after(steps: int) -> int:
        return sum(ceil((tokens(s) + steps) / size) for s in live)

    for length in lengths:
        join(length)
    for move, number in moves:
        assert pool.used == blocks_after(0) and pool.tokens_read == sum(map(tokens, live))
        if move == "join" and pool.blocks(number) <= pool.free:
            join(number)
        elif move == "leave" and live:
            gone = live.pop(number % len(live))
            pool.leave(gone)
        elif move == "steps" and live:
            need = blocks_after(1) - blocks_after(0)
            assert pool.need() == need
            if need > pool.free:
                gone = live.pop()
                pool.leave(gone)
                continue
            pool.reserve()
            assert all(pool.held(s) == ceil((tokens(s) + 1) / size) for s in live)
            most = 1
            while most < number and blocks_after(most + 1) <= pool.total:
                most += 1
            assert pool.steps(number) == most
            pool.advance(most)
    assert pool.used == blocks_after(0) <= pool.total


# -- HostCache -------------------------------------------------------------------------------------------------------


def _state(number: int, tier: str = "host") -> Any:
    return AdapterState(adapter(number, tier=tier), 0, {}, [0])


def test_the_host_cache_sends_the_least_recently_used_to_disk() -> None:
    cache = HostCache(2)
    one, two, three, four = (_state(n) for n in range(1, 5))
    for state in (one, two, three):
        cache.start(state)
    assert [s.tier for s in (one, two, three)] == ["host", "host", "disk"]
    one.tier, one.last_used = "gpu", 5.0
    cache.rest(one)
    assert cache.hold(three)
    assert [s.tier for s in (one, two)] == ["host", "disk"] and set(cache.held) == {"a1", "a3"}
    three.tier = "gpu"
    assert cache.hold(four) and one.tier == "disk" and set(cache.held) == {"a3", "a4"}
    four.tier = "gpu"
    assert not cache.hold(one) and set(cache.held) == {"a3", "a4"}
    cache.drop(four)
    assert cache.hold(one)


# -- Segment ---------------------------------------------------------------------------------------------------------

COSTS: list[Callable[[], ToyCost]] = [
    lambda: ToyCost(),
    lambda: ToyCost(line=False),
    lambda: ToyCost(floor_s=0.02),
    lambda: ToyCost(line=False, floor_s=0.02),
    lambda: ToyCost(grid=True),
    lambda: ToyCost(floor_s=10.0),
    lambda: ToyCost(scale=2.0**-20),
]


@pytest.mark.parametrize("number", range(len(COSTS)))
@examples(60)
@given(
    start=st.sampled_from([0.0, 0.1, 1234.5678, 86400.0 * 30]),
    seqs=st.sampled_from([1, 3, 64]),
    kv=st.sampled_from([0, 17, 4000]),
    data=st.data(),
)
def test_a_segment_adds_up_steps(number: int, start: float, seqs: int, kv: int, data: st.DataObject) -> None:
    cost = COSTS[number]()
    shape = BatchShape(decode_seqs=seqs, kv_tokens=kv, distinct_adapters=1, sum_ranks=8, max_rank=8)
    segment = Segment(start, shape, cost.decode_line(shape), cost.step_seconds)
    times, elapsed = [start], 0.0
    for step in range(60):
        elapsed += cost.step_seconds(shape._replace(kv_tokens=kv + step * seqs))
        times.append(start + elapsed)
    for k, time in enumerate(times):
        assert abs(segment.time(k) - time) <= 1e-9 * max(time, 1e-6)
    exact = [segment.time(k) for k in range(61)]
    assert exact == sorted(exact) and exact[0] == start
    low = data.draw(st.integers(1, 60))
    high = data.draw(st.integers(low, 60))
    near = exact[data.draw(st.integers(0, 60))]
    time = data.draw(
        st.sampled_from([near, near * (1 + 1e-15), near * (1 - 1e-15), near + 1e-4, near - 1e-4, 0.0, 1e12])
    )
    expected = next((k for k in range(low, high) if exact[k] >= time), high)
    assert segment.first_at_or_after(time, low, high) == expected
