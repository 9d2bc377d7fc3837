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
        self._active: dict[str, float | None] = {}
        """Active adapters, the first chosen first, and when their cycle began: not before they were on the GPU."""

    def schedule(self, view: View) -> Schedule:
        """Turn the set of active adapters, then admit their requests and the base model's in arrival order."""
        if not view.can_admit:
            return
        for name, began in self._active.items():
            if began is None and view.adapters[name].tier == "gpu":
                self._active[name] = view.now
        self._turn(view)
        for request in view.unblocked(only=self._active):
            outcome = yield from want(view, request)
            if not outcome and outcome.why not in ("slots", "adapter"):
                break
        began = min((since for since in self._active.values() if since is not None), default=None)
        if began is not None and began + self.cycle_s > view.now and view.backlogged - self._active.keys() - {None}:
            yield Wake(at=began + self.cycle_s)

    def _turn(self, view: View) -> None:
        others = view.backlogged - self._active.keys() - {None}
        # Whoever lost its turn comes back when its running requests have left the slot.
        ready = {name for name in others if name is not None and not view.adapters[name].references}
        if not ready or (len(self._active) >= view.max_loras and not self._retire(view)):
            return
        for request in view.first_waiting("any"):
            name = request.adapter
            if name not in ready or name is None:
                continue
            if len(self._active) >= view.max_loras and not self._retire(view):
                return
            self._active[name] = view.now if view.adapters[name].tier == "gpu" else None

    def _retire(self, view: View) -> bool:
        """Make room: an active adapter without work, or else the first whose cycle is over.

        One that still waits for its slot stays: its turn has not begun.
        """
        without_work = (a.name for a in view.idle() if not a.waiting)
        gone = (name for name, began in self._active.items() if began is None and name not in view.backlogged)
        over = (name for name, began in self._active.items() if began is not None and began + self.cycle_s <= view.now)
        for name in (*without_work, *gone, *over):
            if name in self._active:
                del self._active[name]
                return True
        return False
