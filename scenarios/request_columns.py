"""Part: the requests of one stream or trace, before tenants, caps and predictions are decided for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from loratory.scenarios.traces.table import UNSET, Labels
from loratory.serving.workload import Floats, Ints


@dataclass(frozen=True, slots=True)
class Part:
    """Columns of n requests: arrival (s), adapter (index, -1 the base model), tokens, and what only some parts have.

    ``deadline`` is seconds after arrival, inf for none. ``tenant`` and ``priority`` are None, and a request's priority
    `UNSET`, where the scenario's tenants section decides. ``after`` and ``delay_s`` are those of `Workload`; a part
    that is merged with others has none.
    """

    arrival: Floats
    adapter: Ints
    prompt: Ints
    output: Ints
    deadline: Floats | None = None
    cached: Ints | None = None
    tenant: Labels | None = None
    priority: Ints | None = None
    concurrency: int | None = None
    after: Ints | None = None
    delay_s: Floats | None = None
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.arrival)


def merge(parts: Sequence[Part]) -> Part:
    """All parts in order of arrival; at the same time, earlier parts first."""
    if len(parts) == 1:
        return parts[0]
    arrival = np.concatenate([part.arrival for part in parts])
    order = np.argsort(arrival, kind="stable")
    deadline = priority = None
    if any(part.deadline is not None for part in parts):
        none = [np.full(len(part), np.inf) if part.deadline is None else part.deadline for part in parts]
        deadline = np.concatenate(none)[order]
    if any(part.priority is not None for part in parts):
        marked = [np.full(len(part), UNSET) if part.priority is None else part.priority for part in parts]
        priority = np.concatenate(marked)[order]
    return Part(
        arrival=arrival[order],
        adapter=np.concatenate([part.adapter for part in parts])[order],
        prompt=np.concatenate([part.prompt for part in parts])[order],
        output=np.concatenate([part.output for part in parts])[order],
        deadline=deadline,
        tenant=_merge_tenants(parts, order),
        priority=priority,
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def _merge_tenants(parts: Sequence[Part], order: Ints) -> Labels | None:
    if all(part.tenant is None for part in parts):
        return None
    names = tuple(dict.fromkeys(name for part in parts if part.tenant is not None for name in part.tenant.names))
    position = {name: i for i, name in enumerate(names)}
    codes = []
    for part in parts:
        if part.tenant is None:
            codes.append(np.full(len(part), -1, dtype=np.int64))
        else:
            table = np.array([*(position[name] for name in part.tenant.names), -1], dtype=np.int64)
            codes.append(table[part.tenant.codes])
    return Labels(np.concatenate(codes)[order], names)
