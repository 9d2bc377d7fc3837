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
from loratory.reproduce.recorded_lines import RecordedRequest, Scheduled
from loratory.reproduce.recorded_settings import ENGINE_KEYS, problem
from loratory.reproduce.scheduler_recordings import SchedulerRecording, SchedulerStep
from loratory.serving.config import EngineConfig
from loratory.serving.engine import Engine
from loratory.serving.engine_presets import ENGINE_PRESETS
from loratory.serving.events import Admitted, EventHandlers, Preempted
from loratory.serving.lora import Adapter, LoRARequest
from loratory.serving.plan import StepPlan, StepResult
from loratory.serving.policy import Policy
from loratory.serving.request import Request
from loratory.sim.cost.linear import LinearCost, LinearOptions

_POLICIES: Mapping[str, Callable[[], Policy]] = {"fcfs": Fifo, "priority": partial(Priority, ties_by_id=True)}

CLOCK_S = 2e-6
"""The files have microseconds."""

_FREE = "as its adapters are loaded in no time"
UNREAD: Mapping[str, str] = {
    "tensor_parallel_size": "as its step times are the recorded ones",
    "gpu_memory_utilization": "as num_gpu_blocks is recorded",
    "max_lora_rank": "as its adapters have the rank of their slots",
    "max_cpu_loras": _FREE,
    "adapter_loading": _FREE,
    "eviction": _FREE,
    "memory": "as its adapters take no KV blocks",
}
"""Settings of an engine that change no step of a replay, and why."""

_DEFAULTS = {key: EngineConfig.model_fields[key].default for key in UNREAD}


@dataclass(frozen=True, slots=True)
class SchedulerComparison:
    """Of one recording: its steps, how many differ, and the first that does (recorded and replayed).

    ``unfinished``: requests that did not end, ``preemptions``: each recorded and replayed.
    """

    name: str
    steps: int
    differing: int
    first: tuple[int, SchedulerStep, SchedulerStep] | None
    unfinished: tuple[int, int]
    preemptions: tuple[int, int]


def engine_of(recording: SchedulerRecording, changes: Mapping[str, Any]) -> tuple[EngineConfig, Policy]:
    """The engine's settings and the policy that a recording was made with; ``changes`` override settings.

    Another preset (``as``) sets what it fixes, whatever the recording has of it; of ``async_scheduling`` only false,
    because a recording without it does not tell when a plan ahead would have been made.
    Raises `InputError` for what cannot be replayed, and for changes that a replay does not read.
    """
    own = {key: value for key, value in recording.settings.items() if key in ENGINE_KEYS}
    for key, value in changes.items():
        if key in UNREAD and own.get(key, _DEFAULTS[key]) != value:
            raise InputError(f"--set engine.{key} changes nothing in a replay, {UNREAD[key]}: leave it out")
    if "as" in changes and (preset := ENGINE_PRESETS.get(str(changes["as"]))) is not None:
        own = {key: value for key, value in own.items() if key not in preset.settings}
        own["async_scheduling"] = bool(own.get("async_scheduling")) and preset.async_scheduling
    if changes.get("async_scheduling") is True and not own.get("async_scheduling"):
        raise InputError(
            f"--set engine.async_scheduling=true: {recording.name} was recorded without it, and its times say when "
            "each step was planned, not when one would be planned ahead: leave it out"
        )
    policy = _POLICIES[recording.settings.get("scheduling_policy", "fcfs")]()
    try:
        return EngineConfig.model_validate({"as": "vllm-0.32", **own, **changes}, strict=True), policy
    except ValidationError as error:
        key, text = problem(error)
        if not changes:
            raise InputError(f"{recording.place}: {key} {text}") from None
        if key in changes:
            raise InputError(f"--set engine.{key} {text}") from None
        given = ", ".join(f"--set engine.{each}" for each in changes)
        raise InputError(f"{given}: in recording {recording.name}, {key} {text}") from None


def idle(recording: SchedulerRecording, changes: Mapping[str, Any]) -> str:
    """A sentence where ``changes`` cannot change a step of this recording; empty where they may."""
    config = engine_of(recording, changes)[0]
    if changes and config == engine_of(recording, {})[0]:
        return f"{recording.name}: --set changes nothing, as it was recorded with these settings"
    if set(changes) == {"long_prefill_threshold_alone"} and not config.long_prefill_token_threshold:
        return f"{recording.name}: --set changes nothing, as engine.long_prefill_token_threshold is 0"
    return ""


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
    outputs = {request.id: request.out for request in arriving}
    names = sorted({request.adapter for request in arriving if request.adapter is not None})
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
        now = step.t
        begins = now
        if flying is not None:
            begins = max(now, flying.ends_at)
            if flying.ends_at <= now + CLOCK_S or not config.async_scheduling:
                commit(flying)
                flying = None
        while arriving and arriving[-1].added <= now + CLOCK_S:
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
        flying = _InFlight(plan, _finished(plan, outputs), begins + step.d, number)
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


def _adapter(name: int, number: int, rank: int) -> Adapter:
    return Adapter(LoRARequest(f"adapter{name}", number, f"adapters/{name}"), rank, 1)


def _request(given: RecordedRequest) -> Request:
    adapter = None if given.adapter is None else f"adapter{given.adapter}"
    most = given.max_tokens or given.out
    return Request(given.id, adapter, given.arrival, given.inp, most, priority=given.priority or 0)


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
    ended = (recording.unfinished, unfinished)
    return SchedulerComparison(recording.name, len(played), len(differing), first, ended, preemptions)


def _preemptions(steps: Sequence[SchedulerStep]) -> int:
    return sum(len(step.preempted) for step in steps)
