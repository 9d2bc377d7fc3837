"""drain: arrival order with skips, but drains an adapter in use when a request has waited too long for a slot."""

from __future__ import annotations

from heapq import nsmallest

from loratory.policy import AdapterView, Decisive, InputError, Policy, RequestView, Schedule, View, Wake, want


class Drain(Policy):
    """First come, first served with skip, plus drains: when the first request of an adapter that finds no slot has
    waited longer than a threshold, no more requests are admitted for one of the adapters in use, until its slot is
    free. The adapter whose running requests have the fewest tokens left to max_tokens is drained, one for each starving
    adapter.

    Parameters:
        threshold_s: seconds a request waits for a slot before an adapter is drained for it.
    """

    only_waiting = True
    source = "SGLang pull request 17913 (LoRADrainer)"
    decides_by: tuple[Decisive, ...] = ("adapter",)

    def __init__(self, threshold_s: float = 3.0) -> None:
        if threshold_s < 0:
            raise InputError(f"drain: threshold_s is {threshold_s:g}: give 0 or more")
        self.threshold_s = threshold_s
        self._draining: dict[str, AdapterView] = {}
        self._woken = 0.0
        """The second of the last `Wake`."""

    def schedule(self, view: View) -> Schedule:
        """Find starving requests, then admit in arrival order, these first, without the adapters being drained."""
        if not view.can_admit:
            return
        if self._draining:
            self._draining = {name: adapter for name, adapter in self._draining.items() if adapter.references}
        starving, next_at = self._starving(view)
        if starving:
            self._drain_for(view, len(starving))
        for request in starving:
            if not view.slot_obtainable:
                break
            outcome = yield from want(view, request)
            if not outcome and outcome.why not in ("slots", "adapter"):
                return
        for request in view.unblocked(without=self._draining):
            outcome = yield from want(view, request)
            if not outcome and outcome.why not in ("slots", "adapter"):
                break
        if next_at is not None and next_at != self._woken:
            self._woken = next_at
            yield Wake(at=next_at)

    def _starving(self, view: View) -> tuple[list[RequestView], float | None]:
        """Requests that wait too long for an adapter off the GPU, the first of each, longest first; and the second at
        which the next one will."""
        if view.slot_obtainable and not self._draining:
            return [], None
        starving: list[RequestView] = []
        next_at: float | None = None
        now, threshold_s, most = view.now, self.threshold_s, view.max_loras
        for request in view.first_waiting("off"):
            due = request.arrival + threshold_s
            if due > now:
                next_at = due
                break
            starving.append(request)
            if len(starving) >= most:
                break
        return starving, next_at

    def _drain_for(self, view: View, wanted: int) -> None:
        """Mark adapters in use until as many drain as starve."""
        missing = wanted - len(self._draining) - view.free_slots - len(view.idle())
        if missing <= 0:
            return
        candidates = [a for a in view.on_gpu.values() if a.references and not a.pinned and a.name not in self._draining]
        left = {a.name: 0 for a in candidates}
        for request in view.running:
            name = request.adapter
            if name in left:
                left[name] = max(left[name], request.max_tokens - request.generated_tokens)
        soonest = nsmallest(missing, candidates, key=lambda a: (left[a.name], a.lora_int_id))
        self._draining.update((a.name, a) for a in soonest if a.name is not None)
