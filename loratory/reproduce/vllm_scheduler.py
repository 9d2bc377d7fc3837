"""vllm_scheduler: recordings of vLLM 0.32's scheduler, replayed and compared at every step."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from loratory.errors import InputError
from loratory.policies.fifo import Fifo
from loratory.policies.priority import Priority
from loratory.serving.config import EngineConfig
from loratory.serving.engine import Engine
from loratory.serving.events import Admitted, EventHandlers, Preempted
from loratory.serving.lora import Adapter, LoRARequest
from loratory.serving.plan import StepPlan, StepResult
from loratory.serving.policy import Policy
from loratory.serving.request import Request
from loratory.sim.cost.linear import LinearCost, LinearOptions

_SUFFIXES = ("_requests.jsonl.gz", "_steps.jsonl.gz")
_POLICIES: Mapping[str, Callable[[], Policy]] = {"fcfs": Fifo, "priority": partial(Priority, ties_by_id=True)}
_ENGINE_KEYS = (
    "max_loras",
    "max_cpu_loras",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_model_len",
    "num_gpu_blocks",
    "block_size",
    "scheduler_reserve_full_isl",
    "watermark",
    "long_prefill_token_threshold",
    "async_scheduling",
)
CLOCK_S = 2e-6
"""The files have microseconds."""

_NOT_COMPARED = ("requests", "steps", "preemptions")
"""Keys of settings.json that describe a recording, and set nothing."""


class Scheduled(NamedTuple):
    """What one step does for one request: ``tokens`` of its context from ``start`` on; a decode is one token."""

    request_id: str
    start: int
    tokens: int


class Composition(NamedTuple):
    """A step, as far as it is compared. ``free``: blocks before and after scheduling, and after its output."""

    scheduled: tuple[Scheduled, ...]
    admitted: tuple[str, ...]
    preempted: tuple[str, ...]
    free: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SchedulerRecording:
    """One recording: settings under vLLM's names, requests and steps as the files have them, in order."""

    name: str
    settings: Mapping[str, Any]
    requests: Sequence[Mapping[str, Any]]
    steps: Sequence[Mapping[str, Any]]

    @property
    def compositions(self) -> list[Composition]:
        """The recorded steps."""
        return [
            Composition(
                tuple(Scheduled(str(i), int(start), int(tokens)) for i, start, tokens, *_ in step["s"]),
                tuple(map(str, step["adm"])),
                tuple(map(str, step["pre"])),
                tuple(step["free"]),
            )
            for step in self.steps
        ]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Of one recording: its steps, how many differ, and the first that does (recorded and replayed)."""

    name: str
    steps: int
    differing: int
    first: tuple[int, Composition, Composition | None] | None
    unfinished: int


def read_recordings(folder: Path) -> list[SchedulerRecording]:
    """The recordings of a folder: ``settings.json`` and, for each name in it, ``NAME_requests.jsonl.gz`` and
    ``NAME_steps.jsonl.gz``. Raises `InputError` where something is missing or unreadable."""
    settings = _json(folder / "settings.json")
    if not isinstance(settings, dict) or not settings:
        raise InputError(f"{folder / 'settings.json'} names no recording: give an object with the settings of each")
    return [recording_of(folder, name, given) for name, given in settings.items()]


def recording_of(folder: Path, name: str, settings: Mapping[str, Any]) -> SchedulerRecording:
    """One recording of a folder."""
    requests, steps = (_rows(folder / f"{name}{suffix}") for suffix in _SUFFIXES)
    return SchedulerRecording(name, settings, requests, steps if settings.get("async_scheduling") else _merged(steps))


def _merged(steps: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Steps that only preempted, and took no time, joined with the next ones, as the engine makes them."""
    merged: list[Mapping[str, Any]] = []
    before: Mapping[str, Any] | None = None
    for step in steps:
        if before is not None:
            step = {**step, "pre": [*before["pre"], *step["pre"]], "free": [before["free"][0], *step["free"][1:]]}
        before = None if step["s"] else step
        if before is None:
            merged.append(step)
    return merged


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give a folder of recordings") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): give a folder of recordings") from error


def _rows(path: Path) -> list[Mapping[str, Any]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]
    except OSError as error:
        reason = error.strerror or "it is not compressed with gzip"
        raise InputError(f"{path} cannot be read ({reason}): settings.json names this recording") from error
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} is not JSON lines, compressed with gzip ({error})") from error


def engine_of(recording: SchedulerRecording) -> tuple[EngineConfig, Policy]:
    """The engine's settings and the policy that a recording was made with."""
    given = dict(recording.settings)
    policy = _POLICIES.get(given.pop("scheduling_policy", "fcfs"))
    if policy is None:
        known = " and ".join(_POLICIES)
        raise InputError(f"settings.json: {recording.name}: scheduling_policy may be {known}")
    if given.pop("enable_prefix_caching", False):
        raise InputError(f"settings.json: {recording.name}: enable_prefix_caching is true, which is not modelled")
    for key in _NOT_COMPARED:
        given.pop(key, None)
    if unknown := given.keys() - {*_ENGINE_KEYS}:
        raise InputError(f"settings.json: {recording.name}: {sorted(unknown)[0]} is no setting that can be replayed")
    return EngineConfig(**{"preset": "vllm-0.32", **given}), policy()


def replay_scheduler(recording: SchedulerRecording) -> tuple[list[Composition | None], int]:
    """The steps of Loratory's engine at the recorded times, and the number of requests that did not end.

    A step is planned at its recorded time ``t``, and sees the requests that vLLM had taken in by then (``added``).
    Without async scheduling it is committed ``d`` seconds later. With it, step k is committed after step k + 1 was
    planned, when it has been executed: steps are executed one after the other.
    """
    config, policy = engine_of(recording)
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
    played: list[Composition | None] = []
    flying: _InFlight | None = None

    def commit(ended: _InFlight) -> None:
        engine.commit(ended.plan, StepResult(1, ended.finished), ended.ends_at)
        row = played[ended.row]
        assert row is not None
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
        if plan is None:
            played.append(Composition((), tuple(watch.admitted), tuple(watch.preempted), (free, engine.ledger.kv.free)))
            continue
        admitted, preempted = tuple(watch.admitted), tuple(watch.preempted)
        played.append(Composition(_scheduled(engine, plan), admitted, preempted, (free, engine.ledger.kv.free)))
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


def compare(recording: SchedulerRecording) -> Comparison:
    """Replay a recording, and compare every step."""
    played, unfinished = replay_scheduler(recording)
    first = None
    differing = 0
    for number, (wanted, found) in enumerate(zip(recording.compositions, played, strict=True)):
        if not wanted.scheduled:  # a step that only preempted has no output that anything could be free after
            wanted = wanted._replace(free=wanted.free[:2])
        if wanted != found:
            differing += 1
            first = first or (number, wanted, found)
    return Comparison(recording.name, len(played), differing, first, unfinished)
