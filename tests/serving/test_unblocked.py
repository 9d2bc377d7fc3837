"""View.unblocked and View.first_waiting against a plain scan of everybody who waits."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from lab import examples, run

from loratory.policy import Evict, Load, Preempt, RequestView, Schedule, View, want
from loratory.testing import World, worlds


def scan(view: View, within: str, only: Any, without: Any) -> list[str]:
    """What `View.unblocked` says it yields, with nothing changing meanwhile."""

    def may(request: RequestView) -> bool:
        name, adapter = request.adapter, view.adapter(request)
        if name in without or (only is not None and name is not None and name not in only):
            return False
        if name is None:
            return True
        if adapter.tier == "gpu":
            return within != "batch" or adapter.references > 0
        return within == "any" and adapter.tier != "loading" and view.slot_obtainable

    return [r.request_id for r in view.waiting if may(r)]


def heads(view: View, where: str) -> list[str]:
    """What `View.first_waiting` says it yields."""
    seen: set[str | None] = set()
    found = []
    for request in view.waiting:
        if request.adapter not in seen:
            seen.add(request.adapter)
            if where == "any" or view.adapter(request).tier not in ("gpu", "loading"):
                found.append(request.request_id)
    return found


class Scans:
    """Compares at every call, and then does something at random."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.compared = 0

    def _compare(self, view: View) -> None:
        draw = self.random
        names = [None, *view.adapters]
        within = draw.choice(["batch", "gpu", "any", "any"])
        only = draw.choice([None, None, set(draw.sample(names, draw.randrange(len(names) + 1))) - {None}])
        without = draw.choice([(), (), set(draw.sample(names, draw.randrange(len(names) + 1)))])
        found = [r.request_id for r in view.unblocked(within, only, without)]  # type: ignore[arg-type]
        assert found == (scan(view, within, only, without) if view.can_admit else []), (within, only, without)
        where = draw.choice(["any", "off"])
        assert [r.request_id for r in view.first_waiting(where)] == heads(view, where), where  # type: ignore[arg-type]
        self.compared += 1

    def schedule(self, view: View) -> Schedule:
        draw = self.random
        self._compare(view)
        for name in list(view.adapters):
            if draw.random() < 0.2:
                yield draw.choice([Load, Evict])(name)
        for request in list(view.running):
            if draw.random() < 0.03:
                yield Preempt(request)
        self._compare(view)
        for request in view.unblocked():
            yield from want(view, request)
        self._compare(view)


@examples(120)
@given(world=worlds(most=40, batching="chunked"), seed=st.integers(0, 10**6))
def test_what_is_unblocked_is_what_a_scan_finds(world: World, seed: int) -> None:
    policy = Scans(seed)
    run(world, lambda: policy, cutoff_s=20.0)
    assert policy.compared


class Walks:
    """Admits along one walk: whom the walk yields was unblocked at that moment, and nobody unblocked is left behind."""

    def __init__(self, within: str) -> None:
        self.within = within

    def schedule(self, view: View) -> Schedule:
        last = ""
        stopped = False
        for request in view.unblocked(self.within):  # type: ignore[arg-type]
            assert request.request_id in scan(view, self.within, None, ()), (request, last)
            last = request.request_id
            outcome = yield from want(view, request)
            if not outcome and outcome.why not in ("slots", "adapter"):
                stopped = True
                break
        if not stopped and self.within == "any" and view.slot_obtainable:
            left = [view.adapter(r).tier for r in view.waiting if r.request_id in scan(view, "any", None, ())]
            assert not left or not view.can_admit, left
        if self.within != "any":
            for request in view.unblocked():
                yield from want(view, request)


@examples(100)
@given(world=worlds(most=40, adapter_loading="sync", memory="slots"), within=st.sampled_from(["any", "gpu", "batch"]))
def test_a_walk_follows_what_happens_on_the_way(world: World, within: str) -> None:
    run(world, lambda: Walks(within), cutoff_s=20.0)
