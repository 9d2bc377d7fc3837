"""Where adapters are, under a policy that loads, evicts and prefetches without rhyme or reason."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import examples
from metered import Metered, metered, sample, samples

from loratory.server.residency import Residency
from loratory.serving.actions import Evict, Load, Prefetch, Schedule
from loratory.serving.engine_view import View
from loratory.serving.events import AdapterAdded, AdapterPinned, AdapterRemoved, Loaded, LoadStarted
from loratory.serving.want import want
from loratory.testing import World, adapter, worlds

SLOTS: dict[str, Any] = {"memory": "slots", "async_scheduling": None, "turns": False, "cached": False}


class Restless:
    """Yields adapter actions at random, then admits what it can."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def schedule(self, view: View) -> Schedule:
        """See `loratory.serving.policy.Policy`."""
        for _ in range(self._random.randint(0, 6)):
            action = self._random.choice((Load, Load, Evict, Evict, Prefetch))
            if view.adapters:
                yield action(self._random.choice(sorted(view.adapters)))
        for request in view.waiting:
            yield from want(view, request)


@examples(60)
@given(
    world=worlds(most=12, adapters=6, **SLOTS),
    seed=st.integers(0, 1000),
    failing=st.sets(st.integers(1, 30), max_size=6),
)
def test_adapters_are_where_the_ledger_has_them(world: World, seed: int, failing: set[int]) -> None:
    def check(run: Metered) -> None:
        ledger, residency = run.engine.ledger, run.metrics.counts.residency
        assert residency.gpu.keys() == ledger.slots.on_gpu.keys()
        host = {name for name, state in ledger.adapters.items() if state.tier == "host"}
        assert host == {name for name in residency.host if ledger.adapters[name].tier != "loading"}
        assert residency.host.keys() <= ledger.host_cache.held.keys()

    run = metered(world, lambda: Restless(seed), failing=failing, after_commit=check, most_steps=150)
    found = samples(run.metrics)
    events = run.table("events")
    evicted = sum(v for (n, labels), v in found.items() if "evictions" in n and ("from", "gpu") in labels)
    assert evicted == sum(row["kind"] == "evicted" for row in events)


def test_an_adapter_that_comes_and_goes() -> None:
    residency = Residency([adapter(1, tier="host"), adapter(2, tier="host"), adapter(3, tier="host")], 2, False)
    assert list(residency.host) == ["a1", "a2"] and residency.level("a3") == ""
    residency.added(AdapterAdded(1.0, "b@1", adapter(4, rank=64, name="b@1")))
    assert residency.known["b@1"].rank == 64 and residency.level("b@1") == ""
    residency.load_started(LoadStarted(1.0, "b@1", "disk", False))
    assert residency.level("b@1") == ""
    assert residency.loaded(Loaded(1.5, "b@1", False)) == ("disk", 0.5)
    assert residency.level("b@1") == "gpu"
    residency.pin_changed(AdapterPinned(2.0, "b@1", True))
    assert list(residency.pinned) == ["b@1"]
    residency.pin_changed(AdapterPinned(2.0, "b@1", False))
    assert not residency.pinned
    residency.removed(AdapterRemoved(3.0, "b@1"))
    assert residency.level("b@1") == "" and "b@1" not in residency.known


def test_loads_that_a_step_waits_for_together_share_its_time() -> None:
    residency = Residency([adapter(1), adapter(2, tier="host")], 4, True)
    residency.load_started(LoadStarted(1.0, "a1", "disk", False))
    residency.load_started(LoadStarted(1.0, "a2", "host", False))
    assert residency.loaded(Loaded(1.5, "a1", False)) == ("disk", 0.25)
    assert residency.loaded(Loaded(1.5, "a2", False)) == ("host", 0.25)
    residency.load_started(LoadStarted(2.0, "a1", "host", False))
    assert residency.loaded(Loaded(2.5, "a1", False)) == ("host", 0.5)


@pytest.mark.parametrize("level", ["gpu", "cpu"])
def test_a_prefetch_that_is_overtaken_means_nothing(level: str) -> None:
    residency = Residency([adapter(1)], 4, False)
    residency.load_started(LoadStarted(1.0, "a1", "disk", True))
    residency.load_started(LoadStarted(1.1, "a1", "disk", False))
    residency.loaded(Loaded(1.2, "a1", False))
    assert residency.loaded(Loaded(1.3, "a1", True)) is None
    assert residency.level("a1") == "gpu"
    assert sample({("x", frozenset({("a", level)})): 1.0}, "x", a=level) == 1
