"""ShadowStep: a step of the server's engine as plain values, for the process that plays it again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from loratory.server.live_tape import LiveStep
from loratory.serving.actions import Admit, Evict, Load, Preempt, Prefetch, Reject, Wake
from loratory.serving.engine_copy import EngineCopy
from loratory.serving.events import Decided
from loratory.serving.plan import CostView
from loratory.serving.request import Request
from loratory.serving.run_recording import RecordedChange, RecordedLoad, RecordedStep

OK_WORD = "ok"


class Choice(NamedTuple):
    """What a policy yielded: the action's word, its request or adapter, its other values, and the ledger's word."""

    action: str
    name: str
    values: tuple[Any, ...]
    outcome: str


class ShadowStep(NamedTuple):
    """See `LiveStep`; ``sent_at`` is a reading of `time.monotonic`."""

    requests: tuple[Request, ...]
    loads: tuple[RecordedLoad, ...]
    changes: tuple[RecordedChange, ...]
    consulted: bool
    choices: tuple[Choice, ...]
    failed_over: tuple[int, ...]
    put_in: tuple[str, ...]
    victims: tuple[str, ...]
    step: RecordedStep
    outputs: tuple[tuple[str, int], ...]
    sent_at: float


class ShadowCandidate(NamedTuple):
    """What a shadow's process is sent first: which policy to make, and where modules are found.

    ``answer_s``: seconds for one answer. ``share``: the share of its time in which it may ask the candidate.
    ``behind_s``: moments older than this are left out, so that it catches up. ``file``: where it writes.
    """

    spec: str
    path: tuple[str, ...]
    answer_s: float
    share: float
    behind_s: float
    file: str


class ShadowBegin(NamedTuple):
    """What it is sent next: the engine as it is, and the spec of the policy in force."""

    copy: EngineCopy
    cost: CostView
    live: str


def plain_step(live: LiveStep, sent_at: float) -> ShadowStep | None:
    """A step as plain values; None for what came after the last one."""
    if live.step is None:
        return None
    return ShadowStep(
        live.requests,
        live.loads,
        live.changes,
        live.consulted,
        choices_of(live.decided),
        live.failed_over,
        live.put_in,
        live.victims,
        live.step,
        live.outputs,
        sent_at,
    )


def choices_of(decided: Sequence[Decided]) -> tuple[Choice, ...]:
    """What a policy yielded, as plain values; of a broken one, what is no action is left out."""
    return tuple(choice for choice in map(_choice, decided) if choice is not None)


def _choice(event: Decided) -> Choice | None:
    action: Any = event.action
    kind = type(action)
    outcome = OK_WORD if event.outcome.ok else str(event.outcome.why)
    word = _OF_REQUESTS.get(kind)
    try:
        if word is not None:
            return Choice(word, action[0].request_id, tuple(action[1:]), outcome)
        if kind is Wake:
            return Choice("wake", "", tuple(action), outcome)
        word = _OF_ADAPTERS.get(kind)
        return None if word is None else Choice(word, str(action[0]), (), outcome)
    except AttributeError:  # what a broken policy put in place of a request
        return None


_OF_REQUESTS: dict[type, str] = {Admit: "admit", Preempt: "preempt", Reject: "reject"}
_OF_ADAPTERS: dict[type, str] = {Load: "load", Evict: "evict", Prefetch: "prefetch"}
