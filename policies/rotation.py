"""rotation: adapters take turns; each may admit requests for one cycle."""

from __future__ import annotations

from serving.policy import InputError, Schedule, View, Wake, want


class Rotation:
    """At most max_loras adapters are active and only their requests are admitted, in arrival order. An adapter that was
    active for a whole cycle, or has nothing left to do, makes room as soon as another one waits.

    Parameters:
        cycle_s: seconds an adapter stays active while others wait.
    """

    only_waiting = True
    source = "LoRAX, router/src/scheduler.rs and queue.rs (adapter_cycle_time_s, 2 s by default)"

    def __init__(self, cycle_s: float = 2.0) -> None:
        if cycle_s <= 0:
            raise InputError(f"rotation: cycle_s is {cycle_s}: it is above 0")
        self.cycle_s = cycle_s
        self._active: dict[str, float] = {}
        """Active adapters and when their cycle began, the oldest first."""

    def schedule(self, view: View) -> Schedule:
        """Turn the set of active adapters, then admit their requests and the base model's in arrival order."""
        if not view.can_admit:
            return
        self._turn(view)
        for request in view.unblocked(only=self._active):
            outcome = yield from want(view, request)
            if not outcome and outcome.why not in ("slots", "adapter"):
                break
        if self._active and self._others_wait(view):
            due = next(iter(self._active.values())) + self.cycle_s
            if due > view.now:
                yield Wake(at=due)

    def _others_wait(self, view: View) -> bool:
        return any(request.adapter not in self._active for request in view.first_waiting("any"))

    def _turn(self, view: View) -> None:
        coming = (
            r.adapter for r in view.first_waiting("any") if r.adapter is not None and r.adapter not in self._active
        )
        for name in coming:
            if len(self._active) >= view.max_loras and not self._retire(view):
                return
            self._active[name] = view.now

    def _retire(self, view: View) -> bool:
        """Make room: an active adapter without work, or else the first one whose cycle is over."""
        for name in self._active:
            if not view.adapters[name].references and not view.adapters[name].waiting:
                del self._active[name]
                return True
        oldest = next(iter(self._active))
        if self._active[oldest] + self.cycle_s > view.now:
            return False
        del self._active[oldest]
        return True
