"""fifo: first come, first served, as vLLM V1 schedules."""

from __future__ import annotations

from loratory.policy import Decisive, Policy, Schedule, View, want


class Fifo(Policy):
    """First come, first served. A request whose adapter finds no GPU slot is skipped (SKIP), as in vLLM V1; with
    ``strict`` no request behind it is admitted (BREAK). Any other refusal stops the scan.

    Not modelled:
        speculative decoding, encoder inputs and KV connectors, which are scheduled in the same place in vLLM.

    Parameters:
        strict: stop at the first request that does not fit.
    """

    only_waiting = True
    source = "vLLM V1, vllm/v1/core/sched/scheduler.py; strict: first-come first-served in the literal sense"
    decides_by: tuple[Decisive, ...] = ()

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict

    def schedule(self, view: View) -> Schedule:
        """Admit in arrival order until something other than an adapter slot is missing."""
        for request in view.waiting if self.strict else view.unblocked():
            outcome = yield from want(view, request)
            if not outcome and (self.strict or outcome.why not in ("slots", "adapter")):
                return
