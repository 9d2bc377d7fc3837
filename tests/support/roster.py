"""Roster: every policy of the package, with the options that change its course."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from loratory.policies.affine_deficit import AffineDeficit
from loratory.policies.affinity import Affinity
from loratory.policies.chameleon import Chameleon
from loratory.policies.deadline import Deadline
from loratory.policies.deficit import Deficit
from loratory.policies.dlora import DLora
from loratory.policies.drain import Drain
from loratory.policies.fair_share import FairShare
from loratory.policies.fifo import Fifo
from loratory.policies.priority import Priority
from loratory.policies.rotation import Rotation
from loratory.policies.slora import SLora
from loratory.policies.toppings import Toppings
from loratory.policy import BatchShape, View
from loratory.serving.policy import PolicyLike
from loratory.serving.reservation import Reservation
from loratory.serving.reserved import WithReservation


def _with(policy: Any, **attributes: Any) -> Any:
    for name, value in attributes.items():
        setattr(policy, name, value)
    return policy


class Padded(Toppings):
    """Toppings where the largest rank of a batch has a price, which the tests' cost models do not give it."""

    def _step_s(self, view: View, shape: BatchShape) -> float:
        return super()._step_s(view, shape) + 0.001 * shape.max_rank * shape.decode_seqs


POLICIES: dict[str, Callable[[], PolicyLike]] = {
    "fifo": Fifo,
    "fifo-strict": lambda: Fifo(strict=True),
    "fifo-prefetch": lambda: _with(Fifo(), prefetch=3),
    "fifo-lfu": lambda: _with(Fifo(), evict="lfu"),
    "fifo-cost-aware": lambda: _with(Fifo(), evict="cost_aware", prefetch=1),
    "fifo-reserved": lambda: WithReservation(Fifo(), Reservation(decode_steps=4, min_prefill_tokens=20)),
    "affinity": Affinity,
    "affinity-soft-1": lambda: Affinity(cluster_size=1),
    "affinity-hard-1": lambda: Affinity(cluster_size=1, hard=True),
    "affinity-hard-2": lambda: Affinity(cluster_size=2, hard=True),
    "fair_share": FairShare,
    "fair_share-adapter": lambda: FairShare(by="adapter"),
    "fair_share-min": lambda: FairShare(lift="min"),
    "fair_share-none": lambda: FairShare(lift="none", by="adapter"),
    "fair_share-mean": lambda: FairShare(predict="mean"),
    "fair_share-request": lambda: FairShare(predict="request", by="adapter"),
    "fair_share-reserved": lambda: WithReservation(FairShare(), Reservation(decode_steps=3)),
    "fair_share-loose": lambda: FairShare(strict=False, by="adapter"),
    "deficit": lambda: Deficit(quantum=30.0),
    "deficit-adapter": lambda: Deficit(quantum=7.0, by="adapter"),
    "affine_deficit": lambda: AffineDeficit(quantum=30.0),
    "affine_deficit-adapter": lambda: AffineDeficit(quantum=50.0, by="adapter"),
    "drain": lambda: Drain(threshold_s=0.05),
    "drain-0": lambda: Drain(threshold_s=0.0),
    "rotation": lambda: Rotation(cycle_s=0.05),
    "rotation-slow": lambda: _with(Rotation(cycle_s=0.4), prefetch=2),
    "deadline": lambda: Deadline(margin_s=0.01),
    "deadline-keep": lambda: Deadline(abort=False, slack_s=0.2),
    "slora": lambda: SLora(decode_steps=3),
    "slora-abort": lambda: SLora(decode_steps=2, abort=True, objective_s=0.3, margin_s=0.05),
    "slora-batches": lambda: SLora(decode_steps=5, min_prefill_tokens=20, max_requests=2),
    "chameleon": lambda: Chameleon(samples=2, refresh_s=0.1, patience_s=0.05),
    "chameleon-whole": lambda: Chameleon(samples=1, refresh_s=0.05, patience_s=0.0, lend="whole", shortage="shared"),
    "dlora": lambda: DLora(credit=3.0),
    "dlora-alone": lambda: DLora(credit=0.5, keep=0.0, stay=0.1),
    "toppings": Toppings,
    "toppings-padded": lambda: Padded(patience_s=0.3),
    "priority": Priority,
    "priority-ageing": lambda: Priority(aging_s=0.1),
}
"""Every policy of the package, with the options that change its course."""

REJECTING = {"deadline", "slora-abort"}
"""Those that may give up a request."""

TIMED = {
    n
    for n in POLICIES
    if n.startswith(("drain", "rotation", "deadline", "slora-abort", "priority-ageing", "chameleon", "toppings-padded"))
}
"""Those with a parameter in seconds."""
