"""Layout: which column of a file holds which quantity, by the format, the scenario's ``columns`` or a usual name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scenarios.fields import nearest
from scenarios.workload import Columns
from serving.errors import InputError, several, shortened

USUAL: dict[str, tuple[str, ...]] = {
    "time": ("timestamp_s", "arrival_s", "arrival", "arrived_at", "timestamp_ms", "timestamp", "time", "arrival_time",
             "arrival_ms", "time_s", "time_ms", "timestamp_us", "timestamp_ns"),
    "input": ("input_tokens", "input_length", "prompt_tokens", "num_prefill_tokens", "context_tokens", "prompt_len"),
    "output": ("output_tokens", "output_length", "completion_tokens", "num_decode_tokens", "generated_tokens"),
    "adapter": ("adapter", "adapter_name", "lora_name", "lora", "adapter_id", "lora_id", "lora_adapter", "model"),
    "client": ("client", "client_id", "user", "user_id"),
    "tenant": ("tenant", "tenant_id", "org", "organization"),
    "cached": ("cached_tokens",),
    "session": ("session_id", "session", "conversation_id"),
    "delay": ("delay", "delay_s", "delay_ms"),
    "priority": ("priority",),
    "hash_ids": ("hash_ids",),
}  # fmt: skip
"""Names each column is looked for under, best first; case does not matter, nor a space for an underscore."""

BESIDE = ("adapter", "client", "tenant", "cached", "session", "delay", "priority", "hash_ids")
"""What is looked for beside a known format's own columns."""

LABELS = ("adapter", "client", "tenant", "session")


@dataclass(frozen=True, slots=True)
class Layout:
    """A format of rows. ``own``: its column for each quantity; ``needs``: those it cannot do without.

    ``unit``: of its times where they are numbers; ``guess``: another is tried where that is implausible.
    ``block_tokens``: of a block of its hash ids, None where the prompts tell. ``first_of``: what joins several adapters
    in a cell. ``order``: a column of numbers that orders the rows. ``duration``: a column to take from the times, which
    are ends. ``parent``: the columns of a row's own id and the id of the row it continues, which make sessions.
    """

    format: str
    own: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    unit: str = "s"
    guess: bool = False
    block_tokens: int | None = None
    first_of: str | None = None
    order: str | None = None
    duration: str | None = None
    parent: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """The column of each quantity that a file has, and notes on those whose meaning was guessed."""

    columns: Mapping[str, str]
    beside: frozenset[str]
    notes: tuple[str, ...] = ()


def choose(path: Path, names: Sequence[str], given: Columns, layout: Layout) -> Chosen:
    """Each quantity's column: as ``given``, else the format's own, else one of a usual name that nothing else uses.

    Raises `InputError` for a column that is not there, and for one the format cannot do without.
    """
    found = {key: name for key, name in given.model_dump().items() if name is not None}
    for key, name in found.items():
        if name not in names:
            near = shortened(nearest(name, names).replace("known keys", "it has"), 200)
            raise InputError(f"{path}: columns.{key} names {name!r}, which is no column of the file; {near}")
    if "delay" in found and "session" not in found and not _usual("session", names, ()):
        raise InputError(f"{path}: columns.delay says how long a turn waits: name the sessions with columns.session")
    found |= {key: name for key, name in layout.own.items() if key not in found and name in names}
    missing = next((key for key in layout.needs if key not in found), None)
    if missing is not None:
        raise InputError(
            f"{path}: has no column {layout.own[missing]!r}, which {layout.format} needs (it has {several(names, 8)}): "
            f"name another format, or the column in columns.{missing}"
        )
    beside, notes = set(), []
    for key in BESIDE if layout.own else USUAL:
        if key in found:
            continue
        usual = _usual(key, names, tuple(found.values()))
        if usual:
            found[key] = usual[0]
            beside.add(key)
        if len(usual) > 1 and key in LABELS:
            notes.append(f"{key}: column {usual[0]} is taken, not {several(usual[1:])}: columns.{key} chooses another")
    if "session" not in found and layout.parent is None:
        found.pop("delay", None)
    return Chosen(found, frozenset(beside), tuple(notes))


def _usual(key: str, names: Sequence[str], taken: Sequence[str]) -> list[str]:
    """The columns that may hold a quantity by their names, best first."""
    there = {re.sub(r"[\s-]+", "_", name.strip()).lower(): name for name in names if name not in taken}
    return [there[usual] for usual in USUAL[key] if usual in there]
