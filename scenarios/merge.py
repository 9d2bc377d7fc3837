"""merge: the workloads of a scenario's streams as one, before the tenants section fills in what they leave open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from loratory.scenarios.traces.table import UNSET, Labels
from loratory.serving.workload import Ints, Workload

UNDECIDED = ""
"""A placeholder in `Workload.tenants` for requests whose tenant the scenario's tenants section decides.

No tenant can have this name. Likewise a request's priority is `UNSET` until then, and its ``max_tokens`` is its true
output until the scenario's cap is applied.
"""


def own_tenants(labels: Labels | None, n: int) -> tuple[Ints, tuple[str, ...]]:
    """The columns ``tenant`` and ``tenants`` of ``n`` requests; ``labels`` are those that a stream or a trace names.

    A request without a tenant has the code -1; None: none of them has one.
    """
    if labels is None:
        return np.zeros(n, dtype=np.int64), (UNDECIDED,)
    open_at = len(labels.names)
    return np.where(labels.codes < 0, open_at, labels.codes), (*labels.names, UNDECIDED)


def merge(streams: Sequence[Workload]) -> Workload:
    """All requests in order of arrival; at the same time, those of earlier streams first.

    The streams have the same adapters, open arrivals, and neither turns nor cached or predicted tokens.
    """
    if len(streams) == 1:
        return streams[0]
    arrival = np.concatenate([stream.arrival for stream in streams])
    order = np.argsort(arrival, kind="stable")

    def column(name: str, fill: float = 0) -> Any:
        """One column of all streams, ``fill`` for a stream without it; None if no stream has it."""
        columns = [getattr(stream, name) for stream in streams]
        if all(values is None for values in columns):
            return None
        pairs = zip(streams, columns, strict=True)
        whole = [np.full(len(stream), fill) if values is None else values for stream, values in pairs]
        return np.concatenate(whole)[order]

    tenants = tuple(dict.fromkeys(name for stream in streams for name in stream.tenants))
    return Workload(
        arrival=arrival[order],
        adapter=column("adapter"),
        tenant=np.concatenate([positions(stream.tenants, tenants)[stream.tenant] for stream in streams])[order],
        prompt_tokens=column("prompt_tokens"),
        output_tokens=column("output_tokens"),
        max_tokens=column("max_tokens"),
        adapters=streams[0].adapters,
        tenants=tenants,
        priority=column("priority", UNSET),
        deadline=column("deadline", np.inf),
        notes=tuple(dict.fromkeys(note for stream in streams for note in stream.notes)),
    )


def positions(names: Sequence[str], among: Sequence[str]) -> Ints:
    """The position of each of ``names`` among others, -1 if it is not among them."""
    place = {name: index for index, name in enumerate(among)}
    found: npt.NDArray[np.int64] = np.array([place.get(name, -1) for name in names], dtype=np.int64)
    return found
