"""scheduler_recordings: what vLLM's scheduler did, step by step, as files hold it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from loratory.errors import InputError

_SUFFIXES = ("_requests.jsonl.gz", "_steps.jsonl.gz")
_REQUEST_KEYS = ("id", "arrival", "added", "adapter", "inp", "out")
_STEP_KEYS = ("t", "d", "s", "adm", "pre", "free")


class Scheduled(NamedTuple):
    """What one step does for one request: ``tokens`` of its context from ``start`` on; a decode is one token."""

    request_id: str
    start: int
    tokens: int


class SchedulerStep(NamedTuple):
    """A step, as far as it is compared. ``free``: blocks before and after scheduling, and after its output."""

    scheduled: tuple[Scheduled, ...]
    admitted: tuple[str, ...]
    preempted: tuple[str, ...]
    free: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SchedulerRecording:
    """One recording: settings under vLLM's names, requests and steps as the files have them, in order.

    ``place``: what to call it in errors.
    """

    name: str
    place: str
    settings: Mapping[str, Any]
    requests: Sequence[Mapping[str, Any]]
    steps: Sequence[Mapping[str, Any]]

    @property
    def compositions(self) -> list[SchedulerStep]:
        """The recorded steps."""
        return [
            SchedulerStep(
                tuple(Scheduled(str(i), int(start), int(tokens)) for i, start, tokens, *_ in step["s"]),
                tuple(map(str, step["adm"])),
                tuple(map(str, step["pre"])),
                tuple(step["free"]),
            )
            for step in self.steps
        ]


def read_recordings(folder: Path) -> list[SchedulerRecording]:
    """The recordings of a folder: ``settings.json`` and, for each name in it, ``NAME_requests.jsonl.gz`` and
    ``NAME_steps.jsonl.gz``. Raises `InputError` where something is missing or unreadable."""
    path = folder / "settings.json"
    settings = _json(path)
    if not isinstance(settings, dict) or not settings or not all(isinstance(each, dict) for each in settings.values()):
        raise InputError(f"{path} names no recordings: give an object that has the settings of each")
    return [recording_of(folder, name, given) for name, given in settings.items()]


def recording_of(folder: Path, name: str, settings: Mapping[str, Any]) -> SchedulerRecording:
    """One recording of a folder."""
    requests = _rows(folder / f"{name}{_SUFFIXES[0]}", _REQUEST_KEYS)
    steps = _rows(folder / f"{name}{_SUFFIXES[1]}", _STEP_KEYS)
    place = f"{folder / 'settings.json'}: {name}"
    return SchedulerRecording(
        name, place, settings, requests, steps if settings.get("async_scheduling") else _merged(steps)
    )


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


def _rows(path: Path, keys: Sequence[str]) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = []
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                row = json.loads(line)
                missing = [key for key in keys if not isinstance(row, dict) or key not in row]
                if missing:
                    raise InputError(f"{path}, line {number} has no {missing[0]}: it is no recording of a scheduler")
                rows.append(row)
    except OSError as error:
        reason = error.strerror or "it is not compressed with gzip"
        raise InputError(f"{path} cannot be read ({reason}), but settings.json names this recording") from error
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} holds no JSON lines compressed with gzip ({error}): record it anew") from error
    if not rows:
        raise InputError(f"{path} is empty: record it anew")
    return rows
