"""RequestMaker: makes the requests of a workload from its columns."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Any

from loratory.serving.request import Request

_CHUNK = 1024
"""Requests that are made together."""


class RequestMaker:
    """Makes the requests of a workload by columns, a chunk at a time: fast if they are made in about their order.

    Each request is made once. A chunk is kept until all of its requests have been made, which takes longer for turns.
    """

    def __init__(self, workload: Any) -> None:
        """``workload``: a `loratory.serving.workload.Workload`, whose module imports this one."""
        self._workload = workload
        self._start = self._stop = self._made = 0
        self._requests: list[Request] = []
        self._outputs: list[int] = []
        self._slacks: list[float | None] = []
        self._kept: dict[int, tuple[int, list[Request], list[int], list[float | None]]] = {}

    def make(self, index: int, arrival: float | None = None) -> tuple[Request, int]:
        """The request at ``index`` and its true output length; ``arrival`` seconds replace its own."""
        if not self._start <= index < self._stop:
            self._turn_to(index)
        self._made += 1
        place = index - self._start
        request = self._requests[place]
        if arrival is not None and arrival != request.arrival:
            slack = self._slacks[place]
            request = request._replace(arrival=arrival, deadline=None if slack is None else arrival + slack)
        return request, self._outputs[place]

    def _turn_to(self, index: int) -> None:
        """Make the chunk that holds ``index`` the present one."""
        if self._made < len(self._requests):
            self._kept[self._start] = (self._made, self._requests, self._outputs, self._slacks)
        start = index - index % _CHUNK
        kept = self._kept.pop(start, None)
        if kept is None:
            self._made = 0
            self._read(start)
        else:
            self._made, self._requests, self._outputs, self._slacks = kept
            self._start, self._stop = start, start + len(self._requests)

    def _read(self, index: int) -> None:
        w = self._workload
        self._start, self._stop = index, min(index + _CHUNK, len(w))
        part = slice(self._start, self._stop)
        count = self._stop - self._start

        def column(values: Any, default: int | None) -> list[Any]:
            return [default] * count if values is None else values[part].tolist()

        names, weights = (*w.adapters, None), w.tenant_weights  # -1, the base model, finds None
        arrivals, tenants = column(w.arrival, None), column(w.tenant, None)
        self._outputs = column(w.output_tokens, None)
        self._slacks = [None if slack == inf else slack for slack in column(w.deadline, None)]
        values: dict[str, Iterable[Any]] = {
            "request_id": map(str, range(self._start, self._stop)),
            "adapter": map(names.__getitem__, column(w.adapter, None)),
            "arrival": arrivals,
            "prompt_tokens": column(w.prompt_tokens, None),
            "max_tokens": column(w.max_tokens, None),
            "tenant": map(w.tenants.__getitem__, tenants),
            "predicted_tokens": column(w.predicted_tokens, None),
            "cached_tokens": column(w.cached_tokens, 0),
            "priority": column(w.priority, 0),
            "deadline": [
                None if slack is None else at + slack for at, slack in zip(arrivals, self._slacks, strict=True)
            ],
            "weight": [weights[place] for place in tenants] if weights else [1.0] * count,
        }
        rows = zip(*(values[name] for name in Request._fields), strict=True)
        # the workload has checked what Request itself would check of each
        self._requests = [tuple.__new__(Request, row) for row in rows]
