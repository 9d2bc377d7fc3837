"""Actions and outcomes: what a policy yields, and what it gets back for each."""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple

from loratory.serving.views import RequestView


class Outcome(NamedTuple):
    """What the ledger did with an action. True when ``ok``; else ``why`` is one of the words below.

    slots: no GPU slot is free. kv: too few KV blocks are free. seqs: ``max_num_seqs`` run. budget: the step's tokens
    are spent. adapter: the adapter is not where the action needs it. pinned, in_use: it must stay, or be finished with
    first. reserve: it waits for LightLLM's router (`loratory.serving.reservation`). unknown: no such waiting or running
    request, adapter, or point in time.
    """

    ok: bool
    why: str | None = None

    def __bool__(self) -> bool:
        return self.ok


OK = Outcome(True)
REFUSED = {
    why: Outcome(False, why) for why in ("slots", "kv", "seqs", "budget", "adapter", "pinned", "in_use", "unknown")
}


class Admit(NamedTuple):
    """Run a waiting request: compute ``tokens`` of its prompt in this step, by default as many as fit the budget."""

    request: RequestView
    tokens: int | None = None


class Load(NamedTuple):
    """Bring an adapter to a free GPU slot. Never evicts by itself."""

    adapter: str


class Evict(NamedTuple):
    """Free the GPU slot of an adapter that no running request uses."""

    adapter: str


class Preempt(NamedTuple):
    """Take a running request's KV blocks; it waits again, in front, and recomputes its context when admitted."""

    request: RequestView


class Reject(NamedTuple):
    """End a waiting request unserved; ``why`` is shown to its client and in reports."""

    request: RequestView
    why: str


class Prefetch(NamedTuple):
    """Bring an adapter from disk or farther to host memory, in the background."""

    adapter: str


class Wake(NamedTuple):
    """Ask to be called again: at the first step boundary at or after second ``at``, or after so many decode steps."""

    at: float | None = None
    after_steps: int | None = None


Action = Admit | Load | Evict | Preempt | Reject | Prefetch | Wake
Schedule = Generator[Action, Outcome, None]
