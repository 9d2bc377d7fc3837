"""scheduler_replay: a recording of vLLM's scheduler through Loratory's engine, and the steps that differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import ValidationError

from loratory.errors import InputError
from loratory.policies.fifo import Fifo
from loratory.policies.priority import Priority
from loratory.reproduce.scheduler_recordings import Scheduled, SchedulerRecording, SchedulerStep
from loratory.serving.config import EngineConfig
from loratory.serving.engine import Engine
from loratory.serving.events import Admitted, EventHandlers, Preempted
from loratory.serving.lora import Adapter, LoRARequest
from loratory.serving.plan import StepPlan, StepResult
from loratory.serving.policy import Policy
from loratory.serving.request import Request
from loratory.sim.cost.linear import LinearCost, LinearOptions

_POLICIES: Mapping[str, Callable[[], Policy]] = {"fcfs": Fifo, "priority": partial(Priority, ties_by_id=True)}

CLOCK_S = 2e-6
"""The files have microseconds."""


@dataclass(frozen=True, slots=True)
class SchedulerComparison:
    """Of one recording: its steps, how many differ, and the first that does (recorded and replayed).

    ``unfinished``: requests that did not end. ``preemptions``: recorded and replayed.
    """

    name: str
    steps: int
    differing: int
    first: tuple[int, SchedulerStep, SchedulerStep] | None
    unfinished: int
    preemptions: tuple[int, int]


def engine_of(recording: SchedulerRecording, changes: Mapping[str, Any]) -> tuple[EngineConfig, Policy]:
    """The engine's settings and the policy that a recording was made with; ``changes`` override settings.

    Keys of the recording that are no engine settings describe it. Raises `InputError` for what cannot be replayed.
    """
    given = dict(recording.settings)
    policy = _POLICIES.get(str(given.get("scheduling_policy", "fcfs")))
    if policy is None:
        raise InputError(
            f"{recording.place}: scheduling_policy is {given['scheduling_policy']!r}: only "
            f"{' and '.join(_POLICIES)} can be replayed"
        )
    if given.get("enable_prefix_caching"):
        raise InputError(f"{recording.place}: enable_prefix_caching is true, and prefix caching is not modelled")
    known = {**{key: value for key, value in given.items() if key in EngineConfig.model_fields}, **changes}
    try:
        return EngineConfig.model_validate({"as": "vllm-0.32", **known}), policy()
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{recording.place}: {f'{key}: ' if key else ''}{reason}") from error


def replay_scheduler(
    recording: SchedulerRecording, changes: Mapping[str, Any] | None = None
) -> tuple[list[SchedulerStep], int]:
    """The steps of Loratory's engine at the recorded times, and the number of requests that did not end.

    A step is planned at its recorded time ``t``, and sees the requests that vLLM had taken in by then (``added``).
    Without async scheduling it is committed ``d`` seconds later. With it, step k is committed after step k + 1 was
    planned, when it has been executed: steps are executed one after the other.
    """
    config, policy = engine_of(recording, changes or {})
    arriving = list(reversed(recording.requests))
    outputs = {str(row["id"]): int(row["out"]) for row in arriving}
    names = sorted({row["adapter"] for row in arriving if row["adapter"] is not None})
    watch = _Watch()
    engine = Engine(
        config,
        [_adapter(name, number, config.max_lora_rank) for number, name in enumerate(names, 1)],
        policy,
        LinearCost(LinearOptions()),
        sink=EventHandlers({Admitted: watch.on_admitted, Preempted: watch.on_preempted}),
    )
    played: list[SchedulerStep] = []
    flying: _InFlight | None = None

    def commit(ended: _InFlight) -> None:
        engine.commit(ended.plan, StepResult(1, ended.finished), ended.ends_at)
        row = played[ended.row]
        played[ended.row] = row._replace(free=(*row.free, engine.ledger.kv.free))

    for number, step in enumerate(recording.steps):
        now = float(step["t"])
        begins = now
        if flying is not None:
            begins = max(now, flying.ends_at)
            if flying.ends_at <= now + CLOCK_S or not config.async_scheduling:
                commit(flying)
                flying = None
        while arriving and float(arriving[-1]["added"]) <= now + CLOCK_S:
            engine.submit(_request(arriving.pop()))
        free = engine.ledger.kv.free
        watch.clear()
        plan = engine.plan(now)
        admitted, preempted = tuple(watch.admitted), tuple(watch.preempted)
        if plan is None:
            played.append(SchedulerStep((), admitted, preempted, (free, engine.ledger.kv.free)))
            continue
        played.append(SchedulerStep(_scheduled(engine, plan), admitted, preempted, (free, engine.ledger.kv.free)))
        if flying is not None:
            commit(flying)
        flying = _InFlight(plan, _finished(plan, outputs), begins + float(step["d"]), number)
    if flying is not None:
        commit(flying)
    return played, engine.unfinished


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A planned step: the requests that end with it, the second at which it ends, and its place in the recording."""

    plan: StepPlan
    finished: tuple[str, ...]
    ends_at: float
    row: int


class _Watch:
    """The requests admitted and preempted by one plan, in order."""

    def __init__(self) -> None:
        self.admitted: list[str] = []
        self.preempted: list[str] = []

    def clear(self) -> None:
        self.admitted.clear()
        self.preempted.clear()

    def on_admitted(self, event: Admitted) -> None:
        self.admitted.append(event.request.request_id)

    def on_preempted(self, event: Preempted) -> None:
        self.preempted.append(event.request.request_id)


def _adapter(name: object, number: int, rank: int) -> Adapter:
    return Adapter(LoRARequest(f"adapter{name}", number, f"adapters/{name}"), rank, 1)


def _request(row: Mapping[str, Any]) -> Request:
    adapter = None if row["adapter"] is None else f"adapter{row['adapter']}"
    most = int(row.get("max_tokens") or row["out"])
    return Request(
        str(row["id"]), adapter, float(row["arrival"]), int(row["inp"]), most, priority=int(row.get("priority") or 0)
    )


def _scheduled(engine: Engine, plan: StepPlan) -> tuple[Scheduled, ...]:
    """The plan's requests in order of admission."""
    chunks = {prefill.sequence.request_id: prefill for prefill in plan.prefills}
    decodes = {sequence.request_id for sequence in plan.decodes}
    scheduled = []
    for request_id, sequence in engine.ledger.running.items():
        if request_id in chunks:
            scheduled.append(Scheduled(request_id, chunks[request_id].start, chunks[request_id].tokens))
        elif request_id in decodes:
            scheduled.append(Scheduled(request_id, sequence.kv_tokens, 1))
    return tuple(scheduled)


def _finished(plan: StepPlan, outputs: Mapping[str, int]) -> tuple[str, ...]:
    """The requests whose output ends with this plan's token."""
    sampled = [*plan.decodes, *(prefill.sequence for prefill in plan.prefills if prefill.completes)]
    return tuple(s.request_id for s in sampled if s.generated + 1 >= outputs[s.request_id])


def compare(recording: SchedulerRecording, changes: Mapping[str, Any] | None = None) -> SchedulerComparison:
    """Replay a recording, and compare every step; ``changes``: engine settings other than the recording's."""
    played, unfinished = replay_scheduler(recording, changes)
    wanted = [
        # a step that only preempted has no output after which blocks could be counted
        step if step.scheduled else step._replace(free=step.free[:2])
        for step in recording.compositions
    ]
    differing = [number for number, pair in enumerate(zip(wanted, played, strict=True)) if pair[0] != pair[1]]
    first = (differing[0], wanted[differing[0]], played[differing[0]]) if differing else None
    preemptions = (_preemptions(wanted), _preemptions(played))
    return SchedulerComparison(recording.name, len(played), len(differing), first, unfinished, preemptions)


def _preemptions(steps: Sequence[SchedulerStep]) -> int:
    return sum(len(step.preempted) for step in steps)
