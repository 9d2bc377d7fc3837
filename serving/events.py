"""Typed events an engine emits, to the policy's ``observe`` and to a sink, and what a sink is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, Protocol, get_args

from loratory.serving.actions import Action, Outcome
from loratory.serving.lora import Adapter
from loratory.serving.plan import BatchShape
from loratory.serving.request import Status
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
    """A request reached a final status. Its view shows its final counts, for as long as it is kept; a sink finds its
    times as well (`loratory.serving.sequence.sequence_of`)."""

    now: float
    request: RequestView
    status: Status
    why: str


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


class LoadFailed(NamedTuple):
    """An adapter load failed, ``why`` says how: the adapter is in no slot and has no place in host memory. A failed
    prefetch that a load has overtaken changes nothing. For the sink only."""

    now: float
    adapter: str
    why: str
    prefetch: bool


class HostEvicted(NamedTuple):
    """An adapter lost its place in host memory to another. For the sink only."""

    now: float
    adapter: str


class AdapterPinned(NamedTuple):
    """By order, an adapter is never evicted from now on, or may be again. For the sink only."""

    now: float
    adapter: str
    pinned: bool


class AdapterAdded(NamedTuple):
    """The engine knows one more adapter."""

    now: float
    adapter: str
    spec: Adapter


class AdapterRemoved(NamedTuple):
    """The engine knows an adapter no more: it was to go, and its last request has ended."""

    now: float
    adapter: str


class PolicySwapped(NamedTuple):
    """Another policy decides from now on; ``policy`` is its spec. For the sink only.

    ``why`` is empty where the swap was ordered. Otherwise the policy that had been put in failed, ``why`` says how, and
    ``policy`` is the one before it, which is back.
    """

    now: float
    policy: str
    why: str


Event = (
    Arrived
    | Decided
    | Admitted
    | Served
    | Stepped
    | Preempted
    | Ended
    | LoadStarted
    | Loaded
    | Evicted
    | LoadFailed
    | HostEvicted
    | AdapterPinned
    | AdapterAdded
    | AdapterRemoved
    | PolicySwapped
)
EVENTS: frozenset[type] = frozenset(get_args(Event))
"""All event types."""

TOLD = (Arrived, Admitted, Served, Preempted, Ended, LoadStarted, Loaded, Evicted, AdapterAdded, AdapterRemoved)
"""Types of the events that a policy may be told; the others are for records."""

Handler = Callable[[Any], None]
"""Receives events. It must not touch the engine."""


class Sink(Protocol):
    """Receives the events of one engine, in order: those whose types are in ``wants``.

    ``wants`` maps each type to the function that takes its events: the engine calls that, and makes no other events.
    """

    wants: Mapping[type, Handler]

    def __call__(self, event: Event, /) -> None:
        """Pass an event to the function that takes its type, if there is one."""


class EventHandlers:
    """A sink made of one function for each event type that it wants."""

    __slots__ = ("wants",)

    def __init__(self, wants: Mapping[type, Handler]) -> None:
        self.wants = wants

    def __call__(self, event: Event, /) -> None:
        """See `Sink`."""
        handler = self.wants.get(type(event))
        if handler is not None:
            handler(event)


def handlers_of(sink: Sink | Handler | None) -> dict[type, Handler]:
    """Which function takes the events of which type; a sink without ``wants`` takes all."""
    if sink is None:
        return {}
    wants: Mapping[type, Handler] | None = getattr(sink, "wants", None)
    return dict.fromkeys(EVENTS, sink) if wants is None else dict(wants)


def combined(*sinks: Sink | Handler | None) -> Sink:
    """One sink that hands each event to several, in their order."""
    functions: dict[type, list[Handler]] = {}
    for sink in sinks:
        for kind, handler in handlers_of(sink).items():
            functions.setdefault(kind, []).append(handler)
    return EventHandlers({kind: _each(tuple(several)) for kind, several in functions.items()})


def _each(handlers: tuple[Handler, ...]) -> Handler:
    if len(handlers) == 1:
        return handlers[0]

    def tell_all(event: Event) -> None:
        for handler in handlers:
            handler(event)

    return tell_all
