"""EngineCopy: an engine that is copied between two steps goes on as the original does."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import examples
from live_run import live_run
from roster import POLICIES

from loratory.errors import StalledError
from loratory.policies.fifo import Fifo
from loratory.policy import Policy, Schedule, View
from loratory.serving.engine import Engine
from loratory.serving.engine_copy import EngineCopy
from loratory.serving.request import Request
from loratory.testing import ToyCost, World, adapter, workload, worlds
from loratory.testing.dry_run import dry_run
from loratory.testing.integrity import check

FIRST = {"fifo": Fifo}


@given(st.data())
@examples(30)
def test_a_copy_has_whole_books_and_serves_what_the_original_has(data: st.DataObject) -> None:
    world = data.draw(worlds(most=14, memory="slots"))
    if world.config.async_scheduling or world.workload.concurrency or world.workload.after is not None:
        return
    when, policy = data.draw(st.floats(0.0, 0.2)), data.draw(st.sampled_from(sorted(POLICIES)))
    copies: list[tuple[bytes, set[str], int]] = []

    def between(executor: object, now: float) -> None:
        engine: Engine = executor.engine  # type: ignore[attr-defined]
        if now >= when and not copies:
            arriving = {each.request_id for each in engine._inbox if isinstance(each, Request)}
            held = {*engine.ledger.sequences, *arriving}
            copies.append((pickle.dumps(EngineCopy.of(engine)), held, engine.ledger.kv.used))

    live_run(world, policy, between=between)
    for content, held, used in copies:
        copy: EngineCopy = pickle.loads(content)
        engine = copy.engine(POLICIES["fifo"](), world.cost)
        check(engine.ledger)
        assert {*engine.ledger.sequences, *(each.request_id for each in copy.arriving)} == held
        assert engine.ledger.kv.used == used and engine.unfinished == len(held)
        engine.swap(POLICIES[policy](), engine.ledger.now)
        try:
            dry_run(engine, world.cost, 5000)
        except StalledError:
            assert policy not in ("fifo", "fair_share")
        check(engine.ledger)


class Waits(Policy):
    """Admits nothing."""

    def schedule(self, view: View) -> Schedule:
        return
        yield


def test_a_dry_run_tells_a_policy_that_serves_nothing() -> None:
    adapters = (adapter(1),)
    world = World(workload([], adapters), adapters, _config(), ToyCost())
    engine = Engine(world.config, adapters, Waits(), world.cost)
    engine.submit(Request("r", "a1", 0.0, 4, 3))
    with pytest.raises(StalledError, match="it serves nothing, and nothing can happen any more: 1 requests wait"):
        dry_run(engine, world.cost, 100)


def test_a_dry_run_ends_when_all_is_served_or_it_is_told_to() -> None:
    adapters = (adapter(1), adapter(2))
    for loading in ("sync", "async"):
        engine = Engine(_config(adapter_loading=loading), adapters, Fifo(), ToyCost())
        for number in range(20):
            engine.submit(Request(str(number), f"a{number % 2 + 1}", 0.0, 4, 30))
        assert dry_run(engine, ToyCost(), 2) == 2 and engine.unfinished
        assert dry_run(engine, ToyCost(), 100, lambda: False) < 2 and engine.unfinished
        dry_run(engine, ToyCost(), 100_000)
        assert engine.unfinished == 0


def _config(**more: object):  # type: ignore[no-untyped-def]
    from loratory.serving.config import EngineConfig

    given = {"max_loras": 1, "max_num_seqs": 4, "num_gpu_blocks": 100, "block_size": 4, "max_num_batched_tokens": 64}
    return EngineConfig(**{**given, **more})  # type: ignore[arg-type]
