"""Policy: the interface of a scheduling policy.

A policy file imports `loratory.policy`, which gathers all it needs. See docs/policies.md for a tutorial.
"""

from __future__ import annotations

from typing import Literal, Protocol

from loratory.serving.actions import Schedule
from loratory.serving.engine_view import View
from loratory.serving.events import TOLD, Event
from loratory.serving.eviction import Scorer
from loratory.serving.fairness import FairnessLimits
from loratory.serving.views import RequestView

Decisive = Literal["adapter", "tenant", "weight", "priority", "deadline", "predicted_tokens"]
"""What a request may have or lack, and a policy may decide by."""


class Policy:
    """Decides what runs: the base class of policies, in which every member but `schedule` has a default.

    A class of its own with a `schedule` method is a policy as well; of the other members it has those it needs. A
    policy's members are read and checked once, when it is loaded: see `loratory.serving.policy_members`.
    """

    only_waiting: bool = False
    """Whether `schedule` is not called while no request waits, which saves time."""

    observes: tuple[type, ...] = TOLD
    """Types of the events that `observe` is told; by default all, those of later versions included."""

    evict: str | Scorer | None = None
    """Which idle adapter leaves the GPU first: the name of one of `SCORERS`, or a function of an `AdapterView` and the
    `View`; the lowest score goes first. It overrides ``engine.eviction``, which None leaves in force."""

    prefetch: int = 0
    """Waiting requests, from the front, whose adapters are fetched from disk to host memory ahead of their turn."""

    decides_by: tuple[Decisive, ...] | None = None
    """What its order of requests rests on: a run whose workload lacks one of these gets a note. None: not known."""

    source: str = ""
    """The paper, or the project and file, that its algorithm comes from."""

    spec: str = ""
    """How it was asked for, such as ``mine.py:Mine:depth=3``; set when it is loaded, and shown in errors."""

    def schedule(self, view: View) -> Schedule:
        """Yield actions; each yield returns the `Outcome`. Called when something visible has changed."""
        raise NotImplementedError

    def observe(self, event: Event) -> None:
        """Be told what happened: an event of one of the types in ``observes``. Where it is not overridden, no event is
        made for the policy."""

    def victim(self, view: View) -> RequestView | None:
        """The running request to preempt when KV blocks run out; None: the one that was admitted last."""

    def bound(self, limits: FairnessLimits) -> float | None:
        """The largest gap in service, in weighted tokens, that it lets come between two backlogged units; None: it
        promises none."""


def policy_name(policy: object) -> str:
    """How a policy was asked for, or the name of its class where it was made by hand."""
    return str(getattr(policy, "spec", "")) or type(policy).__name__


class PolicyLike(Protocol):
    """What an engine takes: a `Policy`, or any object that has its `schedule`."""

    def schedule(self, view: View) -> Schedule:
        """See `Policy.schedule`."""
