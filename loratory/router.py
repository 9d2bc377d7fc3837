"""loratory.router: everything a router file imports: the base class, what a router sees, and the codes of tiers.

See docs/fleets.md for a tutorial and for every name.
"""

from loratory.errors import InputError
from loratory.serving.lora import Adapter
from loratory.serving.plan import BatchShape, CostView
from loratory.serving.request import Request
from loratory.sim.fleet import AWAY, GPU, HOST, LOADING, Column, Fleet, ReplicaView, Report
from loratory.sim.router import Router

__all__ = [
    "AWAY",
    "GPU",
    "HOST",
    "LOADING",
    "Adapter",
    "BatchShape",
    "Column",
    "CostView",
    "Fleet",
    "InputError",
    "ReplicaView",
    "Report",
    "Request",
    "Router",
]
