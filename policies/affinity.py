"""affinity: adapters that are in the batch or on the GPU first, at the price of starving the others."""

from __future__ import annotations

from loratory.policy import Decisive, InputError, Policy, Schedule, View, Within, want


class Affinity(Policy):
    """Requests whose adapter is in the running batch first, then those whose adapter is on the GPU, then the rest; in
    arrival order among themselves. It loads fewer adapters and has fewer in a batch, but an adapter that is not there
    may starve.

    Not modelled:
        S-LoRA's admission and early abort (see slora), and its memory pool (see engine.memory).

    Parameters:
        cluster_size: adapters in a batch up to which new ones join freely; 0 is max_loras.
        hard: with a cluster size, never let more adapters into the batch (else only when room is left: soft).
    """

    only_waiting = True
    source = "S-LoRA, MLSys 2024, section 4.2 (adapter clustering)"
    decides_by: tuple[Decisive, ...] = ("adapter",)

    def __init__(self, cluster_size: int = 0, hard: bool = False) -> None:
        if cluster_size < 0:
            raise InputError(f"affinity: cluster_size is {cluster_size}: give 0 or more")
        self.cluster_size = cluster_size
        self.hard = hard

    def schedule(self, view: View) -> Schedule:
        """Three passes, from the batch outwards."""
        passes: tuple[Within, ...] = ("batch", "gpu", "any")
        for within in passes:
            for request in view.unblocked(within):
                if self.hard and self._is_full(view) and not self._in_batch(view, request.adapter):
                    continue
                outcome = yield from want(view, request)
                if not outcome and outcome.why not in ("slots", "adapter"):
                    return
            if self.hard and self._is_full(view):
                return

    def _is_full(self, view: View) -> bool:
        return view.active_adapters >= (self.cluster_size or view.max_loras)

    def _in_batch(self, view: View, adapter: str | None) -> bool:
        return adapter is None or view.adapters[adapter].references > 0
