"""Layout: which column of a file holds which quantity, by the format, the scenario's ``columns`` or a usual name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loratory.errors import InputError, did_you_mean, several, shortened
from loratory.scenarios.traces.columns import ColumnsSpec

USUAL: dict[str, tuple[str, ...]] = {
    "time": ("timestamp_s", "arrival_s", "arrival", "arrived_at", "timestamp_ms", "timestamp", "time", "arrival_time",
             "arrival_ms", "time_s", "time_ms", "timestamp_us", "timestamp_ns", "request_time", "ts"),
    "input": ("input_tokens", "input_length", "prompt_tokens", "num_prefill_tokens", "context_tokens", "prompt_len",
              "input_len", "prompt_length", "num_input_tokens", "num_prompt_tokens", "request_tokens", "isl"),
    "output": ("output_tokens", "output_length", "completion_tokens", "num_decode_tokens", "generated_tokens",
               "output_len", "response_length", "num_output_tokens", "response_tokens", "osl"),
    "adapter": ("adapter", "adapter_name", "lora_name", "lora", "adapter_id", "lora_id", "lora_adapter",
                "lora_adapter_name", "lora_int_id", "lora_path", "adapter_path", "model", "model_name", "model_id",
                "served_model_name"),
    "client": ("client", "client_id", "user", "user_id"),
    "tenant": ("tenant", "tenant_id", "org", "organization", "org_id", "customer", "customer_id", "team", "team_id",
               "account", "account_id"),
    "cached": ("cached_tokens",),
    "session": ("session_id", "session", "conversation_id", "conv_id"),
    "delay": ("delay", "delay_s", "delay_ms"),
    "priority": ("priority",),
    "max_tokens": ("max_tokens", "max_completion_tokens", "max_new_tokens", "max_output_tokens"),
    "deadline": ("deadline_s", "deadline_ms"),
    "hash_ids": ("hash_ids",),
}  # fmt: skip
"""Names under which each column is searched, best first; case and word separators do not matter."""

MODELS = ("model", "modelname", "modelid", "servedmodelname")
"""Columns, `folded`, that name an adapter or the base model."""

_TELLING: dict[str, str] = {
    "adapter": "lora|adapter|peft|finetune",
    "tenant": "tenant|customer|team|account|organi[sz]ation|apikey",
    "session": "session|conversation|chat|dialog|thread",
    "priority": "priority|prio|qos",
    "client": "client|user",
}
"""Parts of the `folded` names of columns that may hold a quantity."""

BESIDE = ("adapter", "client", "tenant", "cached", "session", "delay", "priority", "max_tokens", "deadline", "hash_ids")
"""Quantities that are searched beside a known format's own columns."""

LABELS = ("adapter", "client", "tenant", "session")


@dataclass(frozen=True, slots=True)
class Layout:
    """A format of rows. ``own``: its column for each quantity; ``needs``: those that it requires.

    ``unit``: of its times if they are numbers; ``guess``: another unit is tried if that is implausible.
    ``block_tokens``: of a block of its hash ids, None if the prompts show it. ``first_of``: separates several adapters
    in a cell. ``order``: a column of numbers that orders the rows. ``duration``: a column to subtract from the times,
    which are ends. ``parent``: the columns of a row's own id and the id of the row it continues, which make sessions.
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
    """The column of each quantity that a file has, notes on those whose meaning was guessed, and the other columns."""

    columns: Mapping[str, str]
    beside: frozenset[str]
    notes: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


def choose(path: Path, names: Sequence[str], given: ColumnsSpec, layout: Layout) -> Chosen:
    """Each quantity's column: as ``given``, else the format's own, else one of a usual name that nothing else uses.

    Raises `InputError` for a missing column that is named or required.
    """
    found = {key: name for key, name in given.model_dump().items() if name is not None}
    for key, name in found.items():
        if name not in names:
            hint = shortened(did_you_mean(name, names, f"it has {several(names, 10)}"), 200)
            raise InputError(f"{path}: columns.{key} names {name!r}, which is not a column of the file; {hint}")
    if "delay" in found and "session" not in found and not _usual("session", names, ()):
        raise InputError(f"{path}: columns.delay needs sessions, but no column holds them: name it in columns.session")
    found |= {key: name for key, name in layout.own.items() if key not in found and name in names}
    missing = next((key for key in layout.needs if key not in found), None)
    if missing is not None:
        raise InputError(
            f"{path} has no column {layout.own[missing]!r}, which {layout.format} needs (it has {several(names, 8)}): "
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
        if len(usual) > 1:
            notes.append(f"{key}: column {usual[0]} is used, not {several(usual[1:])}: columns.{key} overrides that")
    if "session" not in found and layout.parent is None:
        found.pop("delay", None)
    own = {*found.values(), *(layout.parent or ()), layout.order, layout.duration}
    unread = tuple(name for name in names if name not in own)
    notes.extend(_passed_over(found, unread))
    return Chosen(found, frozenset(beside), tuple(notes), unread)


def _passed_over(found: Mapping[str, str], unread: Sequence[str]) -> list[str]:
    """Notes on columns that, by their names, may hold a quantity for which no column was found."""
    notes = []
    for key, parts in _TELLING.items():
        named = [shortened(name, 40) for name in unread if re.search(parts, folded(name))]
        if named and key not in found:
            what = f"column {named[0]} is" if len(named) == 1 else f"columns {several(named, 3)} are"
            notes.append(f"{what} not read: if one holds the {key}, name it in columns.{key}")
            unread = [name for name in unread if not re.search(parts, folded(name))]
    return notes


def folded(name: str) -> str:
    """A name as it is compared with others: ``Lora Name``, ``lora-name`` and ``loraName`` are ``loraname``."""
    return re.sub(r"[\W_]+", "", name).lower()


def _usual(key: str, names: Sequence[str], taken: Sequence[str]) -> list[str]:
    """The columns that may hold a quantity by their names, best first."""
    there = {folded(name): name for name in reversed(names) if name not in taken}
    return [there[folded(usual)] for usual in USUAL[key] if folded(usual) in there]
