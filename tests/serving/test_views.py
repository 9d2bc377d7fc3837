"""What a policy sees is read-only, and the true output length is not in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import pytest
from lab import run

from loratory.policy import Schedule, View, want
from loratory.serving.config import EngineConfig
from loratory.serving.sequence import sequence_of
from loratory.testing import ToyCost, World, adapter, workload

SECRET = 7919
"""The true output length of every request here; nothing else is this number."""


READERS = ("first", "sequences", "idle", "unblocked", "first_waiting")


def _world() -> World:
    adapters = (adapter(1), adapter(2))
    rows = [
        {
            "at": 0.01 * i,
            "adapter": [None, 1, 2][i % 3],
            "prompt": 5,
            "out": SECRET,
            "cap": 9000,
            "predicted": 40,
            "tenant": i % 2,
        }
        for i in range(9)
    ]
    config = EngineConfig(max_loras=1, max_num_seqs=3, num_gpu_blocks=6000, block_size=4)
    return World(workload(rows, adapters), adapters, config, ToyCost())


def _reach(start: Any, most: int = 20000) -> list[tuple[str, Any]]:
    """Everything one can get at from an object by public attributes, keys, iteration and calls without arguments."""
    seen: set[int] = set()
    todo, found, keep = [("view", start)], [], []
    while todo and len(found) < most:
        path, thing = todo.pop()
        if id(thing) in seen and not isinstance(thing, (int, float)):
            continue
        seen.add(id(thing))
        keep.append(thing)
        found.append((path, thing))
        if isinstance(thing, (int, float, str, bytes, bool, type(None), type, FunctionType, ModuleType)):
            continue
        if isinstance(thing, Mapping):
            todo += [(f"{path}[{key!r}]", value) for key, value in list(thing.items())]
        elif isinstance(thing, Iterable):
            todo += [(f"{path}[{i}]", value) for i, value in enumerate(list(thing)[:50])]
        for name in dir(thing):
            if name.startswith("_"):
                continue
            try:
                value = getattr(thing, name)
            except Exception:
                continue
            if isinstance(value, MethodType) and name in (
                "first",
                "sequences",
                "idle",
                "resident",
                "unblocked",
                "first_waiting",
            ):
                try:
                    value = value()
                except TypeError:
                    continue
            if not callable(value):
                todo.append((f"{path}.{name}", value))
    return found


class Spy:
    """Looks at everything, at every call and event, until the first request ends."""

    def __init__(self) -> None:
        self.leaks: list[str] = []
        self.looked = 0
        self.over = False

    def _look(self, thing: Any) -> None:
        self.looked += 1
        if self.looked % 5 == 1 and self.looked < 400:
            self.leaks += [path for path, value in _reach(thing) if isinstance(value, int) and value == SECRET]

    def observe(self, event: Any) -> None:
        self.over = self.over or type(event).__name__ == "Ended"
        if not self.over:
            self._look(event)

    def schedule(self, view: View) -> Schedule:
        if not self.over:
            self._look(view)
        for request in view.unblocked():
            yield from want(view, request)


def test_a_policy_that_looks_everywhere_does_not_find_the_true_output_length() -> None:
    spy = Spy()
    result = run(_world(), lambda: spy, check_books=False)
    assert spy.looked > 10 and not spy.leaks, spy.leaks
    assert {sequence_of(e.request).generated for e in result.ended.values()} == {SECRET}


class Vandal:
    """Tries to write to everything it sees."""

    def __init__(self) -> None:
        self.wrote: list[str] = []

    def _vandalise(self, thing: Any, what: str) -> None:
        for name in [*(n for n in dir(thing) if not n.startswith("_")), "brand_new"]:
            try:
                setattr(thing, name, 0)
            except AttributeError:
                continue
            self.wrote.append(f"{what}.{name}")

    def schedule(self, view: View) -> Schedule:
        if not self.wrote:
            self._vandalise(view, "view")
            for request in [*view.waiting, *view.running]:
                self._vandalise(request, "request")
            for name in view.adapters:
                self._vandalise(view.adapters[name], "adapter")
            for name in view.tenants:
                self._vandalise(view.tenants[name], "tenant")
            self._vandalise(view.base, "base")
            self._vandalise(view.waiting, "view.waiting")
            self._vandalise(view.running, "view.running")
            for kept in ("adapters", "tenants", "on_gpu"):
                mapping = getattr(view, kept)
                for name in ("clear", "pop", "popitem", "update", "setdefault", "__setitem__", "__delitem__"):
                    if hasattr(mapping, name):
                        self.wrote.append(f"view.{kept}.{name}")
        for request in view.unblocked():
            yield from want(view, request)


def test_nothing_a_policy_sees_can_be_written() -> None:
    vandal = Vandal()
    result = run(_world(), lambda: vandal)
    assert not sorted(set(vandal.wrote))
    assert len(result.ended) == 9


@pytest.mark.parametrize("queue", ["waiting", "waiting_for", "waiting_of"])
def test_a_queue_offers_a_policy_nothing_but_reading(queue: str) -> None:
    """Who is first, how many, one after another: no public name that changes it or hands out a Sequence."""
    names: set[str] = set()

    class Looks:
        def schedule(self, view: View) -> Schedule:
            kept = (
                view.waiting if queue == "waiting" else getattr(view, queue)("a1" if queue == "waiting_for" else "t0")
            )
            names.update(name for name in dir(kept) if not name.startswith("_"))
            for request in view.unblocked():
                yield from want(view, request)

    run(_world(), Looks, check_books=False)
    assert names == {"head"}


def test_views_are_live() -> None:
    """One view of a request shows its whole life."""
    states: list[tuple[bool, int]] = []
    kept: list[Any] = []

    class Keeps:
        def observe(self, event: Any) -> None:
            if type(event).__name__ == "Arrived":
                kept.append(event.request)
            states.append((kept[0].running, kept[0].generated_tokens))

        def schedule(self, view: View) -> Schedule:
            for request in view.unblocked():
                yield from want(view, request)

    work = workload([{"prompt": 2, "out": 3, "cap": 9}])
    run(World(work, (), EngineConfig(num_gpu_blocks=9), ToyCost()), Keeps)
    assert states[0] == (False, 0) and states[-1] == (False, 3) and any(running for running, _ in states)
    assert np.all(np.diff([tokens for _, tokens in states]) >= 0)
