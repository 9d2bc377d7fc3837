"""loratory.policy: everything a policy file imports: actions, outcomes, views, events, and tools to write one with.

See docs/policies.md for a tutorial and for every name.
"""

from loratory.errors import InputError
from loratory.serving.actions import Action, Admit, Evict, Load, Outcome, Preempt, Prefetch, Reject, Schedule, Wake
from loratory.serving.cut_offs import cut_offs
from loratory.serving.engine_view import View
from loratory.serving.events import (
    AdapterAdded,
    AdapterRemoved,
    Admitted,
    Arrived,
    Ended,
    Event,
    Evicted,
    Loaded,
    LoadStarted,
    Preempted,
    Served,
)
from loratory.serving.eviction import SCORERS, Scorer
from loratory.serving.fairness import Account, By, FairnessLimits, Rounds, Unit, Units
from loratory.serving.lanes import Lanes
from loratory.serving.plan import BatchShape, CostView
from loratory.serving.policy import Decisive, Policy
from loratory.serving.reservation import Reservation
from loratory.serving.sorted_queue import SortedQueue
from loratory.serving.views import AdapterView, RequestView, RequestViews, TenantView
from loratory.serving.wait_index import Within
from loratory.serving.wait_queue import QueueView
from loratory.serving.want import look_ahead, want

__all__ = [
    "SCORERS",
    "Account",
    "Action",
    "AdapterAdded",
    "AdapterRemoved",
    "AdapterView",
    "Admit",
    "Admitted",
    "Arrived",
    "BatchShape",
    "By",
    "CostView",
    "Decisive",
    "Ended",
    "Event",
    "Evict",
    "Evicted",
    "FairnessLimits",
    "InputError",
    "Lanes",
    "Load",
    "LoadStarted",
    "Loaded",
    "Outcome",
    "Policy",
    "Preempt",
    "Preempted",
    "Prefetch",
    "QueueView",
    "Reject",
    "RequestView",
    "RequestViews",
    "Reservation",
    "Rounds",
    "Schedule",
    "Scorer",
    "Served",
    "SortedQueue",
    "TenantView",
    "Unit",
    "Units",
    "View",
    "Wake",
    "Within",
    "cut_offs",
    "look_ahead",
    "want",
]
