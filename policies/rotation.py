"""rotation: adapters take turns; each may admit requests for one cycle."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from loratory.policy import Decisive, InputError, Policy, Schedule, View, Wake, want


class Rotation(Policy):
    """At most max_loras adapters are active, and only their requests are admitted, in arrival order. An adapter that
    has been active for a whole cycle, or has nothing left to do, makes room as soon as a request waits for another.

    Not modelled:
        LoRAX's own batching (waiting_served_ratio, max_waiting_tokens): the engine's is used.

    Parameters:
        cycle_s: seconds an adapter stays active while others wait.
    """

    only_waiting = True
    source = "LoRAX, router/src/scheduler.rs and queue.rs (adapter_cycle_time_s, 2 s by default)"
    decides_by: tuple[Decisive, ...] = ("adapter",)

    def __init__(self, cycle_s: float = 2.0) -> None:
        if cycle_s <= 0:
            raise InputError(f"rotation: cycle_s is {cycle_s:g}: give a number above 0")
        self.cycle_s = cycle_s
        self._active: set[str] = set()
        self._woken = 0.0
        """The second of the last `Wake`."""
        self._coming: dict[str, None] = {}
        """Active adapters that still wait for a slot: their cycle has not begun."""
        self._began: dict[str, float] = {}
        """The other active adapters, and when their cycle began, the oldest first."""

    def schedule(self, view: View) -> Schedule:
        """Turn the set of active adapters, then admit their requests and the base model's in arrival order."""
        if not view.can_admit:
            return
        if self._coming:
            on_gpu, coming = view.on_gpu, self._coming
            if not on_gpu.keys().isdisjoint(coming):
                for name in [name for name in coming if name in on_gpu]:
                    del coming[name]
                    self._began[name] = view.now
        active, backlogged = self._active, view.backlogged
        others: set[Any] = set(backlogged)
        others -= active
        others.discard(None)
        turned = bool(others) and self._turn(view, others)
        if (turned or len(backlogged) > len(others)) and self._reachable(view, backlogged):
            for request in view.unblocked(only=active):
                outcome = yield from want(view, request)
                if not outcome and outcome.why not in ("slots", "adapter"):
                    break
        if others and self._began and not (turned and active.issuperset(others)):
            due = next(iter(self._began.values())) + self.cycle_s
            if due > view.now and due != self._woken:
                self._woken = due
                yield Wake(at=due)

    def _reachable(self, view: View, backlogged: Set[str | None]) -> bool:
        """Whether an active adapter with a queue, or the base model (None), is on the GPU or could get there."""
        if None in backlogged:
            return True
        waiting = self._active & backlogged
        return bool(waiting) and (not view.on_gpu.keys().isdisjoint(waiting) or view.slot_obtainable)

    def _turn(self, view: View, others: set[str]) -> bool:
        """Activate the adapters that have waited longest; returns whether there were any.

        Two slots, a cycle of 2 s, and at 1 s the first request for c:

            seconds    0         1         2         3
            a          |===================|......           = active: its requests are admitted
            b            |================================   . no longer: what runs goes on, and holds the slot
            c                    w w w w w |-----|========   w not active yet   - active, waits for the slot

        At 2 s the cycle of a, which began first, is over, and c takes its place among the active. The cycle of c
        begins when c is on the GPU; before that it cannot lose its turn. An adapter whose requests still run after its
        turn, such as a, is not activated again before they have left the slot. b stays, as no other adapter waits.
        """
        on_gpu = view.on_gpu
        if others.issubset(on_gpu) and all(on_gpu[other].references for other in others):
            return False
        leaving = None
        if len(self._active) >= view.max_loras and (leaving := self._next_to_leave(view)) is None:
            return False
        if leaving is not None:
            self._retire(leaving)
        turned = False
        for request in view.first_waiting():
            name = request.adapter
            if name is None or name not in others:
                continue
            adapter = on_gpu.get(name)
            if adapter is not None and adapter.references:
                continue
            if len(self._active) >= view.max_loras:
                if (leaving := self._next_to_leave(view)) is None:
                    break
                self._retire(leaving)
            self._active.add(name)
            turned = True
            if adapter is not None:
                self._began[name] = view.now
            else:
                self._coming[name] = None
        return turned

    def _retire(self, name: str) -> None:
        """Make room in the set of active adapters."""
        self._active.discard(name)
        self._began.pop(name, None)
        self._coming.pop(name, None)

    def _next_to_leave(self, view: View) -> str | None:
        """An active adapter without work, or else the one whose cycle began first, when it is over.

        One that still waits for its slot stays: its turn has not begun.
        """
        began = self._began
        for adapter in view.idle():
            name = adapter.name
            if name in began and not adapter.waiting:
                return name
        if gone := self._coming.keys() - view.backlogged:
            return next(name for name in self._coming if name in gone)
        oldest = next(iter(began), None)
        return oldest if oldest is not None and began[oldest] + self.cycle_s <= view.now else None
