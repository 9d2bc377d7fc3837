"""Typed events an engine emits: to the policy's ``observe``, and to the sink that keeps the records."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

from loratory.serving.actions import Action, Outcome
from loratory.serving.plan import BatchShape
from loratory.serving.request import Status
from loratory.serving.sequence import Sequence
from loratory.serving.views import RequestView


class Arrived(NamedTuple):
    """A request joined the waiting queue at ``now`` seconds."""

    now: float
    request: RequestView


class Decided(NamedTuple):
    """The policy yielded ``action`` and the ledger answered ``outcome``. For the sink only."""

    now: float
    action: Action
    outcome: Outcome


class Admitted(NamedTuple):
    """A waiting request began to run. ``hit``: its adapter was on the GPU and used before; None for the base model."""

    now: float
    request: RequestView
    hit: bool | None


class Served(NamedTuple):
    """A step, or a jump of ``steps`` equal decode steps, was committed at ``now``.

    ``prefill``: (request, prompt tokens computed) pairs. ``decode``: the requests that decoded ``steps`` tokens each; a
    live collection, valid only inside ``observe``.
    """

    now: float
    prefill: tuple[tuple[RequestView, int], ...]
    decode: Collection[RequestView]
    steps: int


class Stepped(NamedTuple):
    """What one step or jump was, for the sink: from ``start`` to ``end`` seconds, ``steps`` equal steps of ``shape``.

    The counts are at the time the step was planned: requests waiting and running, adapters on the GPU and on the way,
    KV blocks in use. ``load_s`` of the duration was spent waiting for adapter loads.
    """

    start: float
    end: float
    steps: int
    shape: BatchShape
    waiting: int
    running: int
    resident: int
    loading: int
    kv_blocks: int
    load_s: float


class Preempted(NamedTuple):
    """A running request lost its KV blocks and waits again; ``why`` is "kv" (none were free) or "policy"."""

    now: float
    request: RequestView
    why: str


class Ended(NamedTuple):
    """A request reached a final status. ``sequence`` holds its times and counts (see
    `loratory.serving.sequence.Sequence`)."""

    now: float
    request: RequestView
    status: Status
    why: str
    sequence: Sequence


class LoadStarted(NamedTuple):
    """An adapter load began: to a GPU slot, or only to host memory when ``prefetch``."""

    now: float
    adapter: str
    tier: str
    prefetch: bool


class Loaded(NamedTuple):
    """An adapter load ended at ``now``."""

    now: float
    adapter: str
    prefetch: bool


class Evicted(NamedTuple):
    """An adapter left its GPU slot; its weights stay in host memory."""

    now: float
    adapter: str


Event = Arrived | Decided | Admitted | Served | Stepped | Preempted | Ended | LoadStarted | Loaded | Evicted
Sink = Callable[[Event], None]
"""Receives every event of one engine, in order. It must not touch the engine."""

EVENTS: frozenset[type] = frozenset(
    {Arrived, Decided, Admitted, Served, Stepped, Preempted, Ended, LoadStarted, Loaded, Evicted}
)
"""All event types."""
