"""scheduler_recordings: what vLLM's scheduler did, step by step, as files hold it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from loratory.errors import InputError, several, shortened
from loratory.reproduce.recorded_lines import RecordedRequest, Scheduled, SchedulerLine, read_lines
from loratory.reproduce.recorded_settings import SettingsFile


class SchedulerStep(NamedTuple):
    """A step, as far as it is compared. ``free``: blocks before and after scheduling, and after its output."""

    scheduled: tuple[Scheduled, ...]
    admitted: tuple[str, ...]
    preempted: tuple[str, ...]
    free: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SchedulerRecording:
    """One recording: settings under vLLM's names; requests as the engine took them in, and steps in order.

    ``place``: what to call it in errors. ``notes``: one sentence each on where its files contradict its settings, and
    on requests that do not end.
    """

    name: str
    place: str
    settings: Mapping[str, Any]
    requests: Sequence[RecordedRequest]
    steps: Sequence[SchedulerLine]
    notes: tuple[str, ...] = ()

    @property
    def compositions(self) -> list[SchedulerStep]:
        """The recorded steps."""
        return [SchedulerStep(tuple(s.s), tuple(s.adm), tuple(s.pre), tuple(s.free)) for s in self.steps]

    @property
    def unfinished(self) -> int:
        """Requests that have no last token when the recording ends."""
        return _unfinished(self.requests, self.steps)


def read_recordings(folder: Path) -> list[SchedulerRecording]:
    """The recordings of a folder: ``settings.json`` and, for each name in it, ``NAME_requests.jsonl.gz`` and
    ``NAME_steps.jsonl.gz``. Raises `InputError` where something is missing, unreadable or contradicts itself."""
    file = SettingsFile(folder)
    return [_recording(folder, file, name) for name in file.recordings]


def _recording(folder: Path, file: SettingsFile, name: str) -> SchedulerRecording:
    about = file.about(name)
    requests_file, steps_file = (folder / f"{name}_{what}.jsonl.gz" for what in ("requests", "steps"))
    requests, steps = read_lines(requests_file, RecordedRequest), read_lines(steps_file, SchedulerLine)
    _check_requests(requests_file, requests)
    _check_steps(steps_file, steps, {request.id for request in requests}, requests_file.name)
    settings = file.recordings[name]
    counted = {
        "requests": (about.requests, len(requests)),
        "steps": (about.steps, len(steps)),
        "preemptions": (about.preemptions, sum(len(step.pre) for step in steps)),
    }
    notes = tuple(
        f"{name}: {file.path.name} says {said:,} {what}, and the files have {has:,}"
        for what, (said, has) in counted.items()
        if said is not None and said != has
    )
    if unread := file.unread(name):
        notes += (f"{name}: {file.path.name} has {several(unread)}, which is not read",)
    if left := _unfinished(requests, steps):
        notes += (f"{name}: the recording ends while {left:,} request{'s are' if left > 1 else ' is'} unfinished",)
    return SchedulerRecording(
        name,
        file.place(name),
        settings,
        sorted(requests, key=lambda request: request.added),
        steps if settings.get("async_scheduling") else _merged(steps),
        notes,
    )


def _check_requests(path: Path, requests: Iterable[RecordedRequest]) -> None:
    lines: dict[str, int] = {}
    for number, request in enumerate(requests, 1):
        shown = shortened(request.id, 60)
        if request.id in lines:
            raise InputError(f"{path}:{number}: id {shown!r} is that of line {lines[request.id]}: ids should differ")
        if request.max_tokens is not None and request.max_tokens < request.out:
            raise InputError(f"{path}:{number}: max_tokens is {request.max_tokens}, below out ({request.out})")
        lines[request.id] = number


def _check_steps(path: Path, steps: Iterable[SchedulerLine], ids: set[str], requests: str) -> None:
    before = 0.0
    for number, step in enumerate(steps, 1):
        named = [*(part.request_id for part in step.s), *step.adm, *step.pre]
        unknown = next((each for each in named if each not in ids), None)
        if unknown is not None:
            raise InputError(f"{path}:{number}: it names request {shortened(unknown, 60)!r}, which {requests} lacks")
        if step.t < before:
            raise InputError(f"{path}:{number}: t is {step.t:g}, before that of line {number - 1} ({before:g})")
        before = step.t


def _unfinished(requests: Iterable[RecordedRequest], steps: Iterable[SchedulerLine]) -> int:
    computed: dict[str, int] = {}
    for step in steps:
        for part in step.s:
            computed[part.request_id] = max(part.start + part.tokens, computed.get(part.request_id, 0))
    return sum(computed.get(request.id, 0) < request.computed for request in requests)


def _merged(steps: list[SchedulerLine]) -> list[SchedulerLine]:
    """Steps that only preempted, and took no time, joined with the next ones, as the engine makes them."""
    merged: list[SchedulerLine] = []
    before: SchedulerLine | None = None
    for step in steps:
        if before is not None:
            update = {"pre": [*before.pre, *step.pre], "free": [before.free[0], *step.free[1:]]}
            step = step.model_copy(update=update)
        before = None if step.s else step
        if before is None:
            merged.append(step)
    return merged
