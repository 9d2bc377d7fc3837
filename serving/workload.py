"""Workload: a stream of requests as columns, with the true output lengths that only a backend may read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from loratory.errors import InputError
from loratory.serving.request import BASE_TENANT, Request
from loratory.serving.request_maker import RequestMaker

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in arrival order, one array entry each (n requests).

    ``arrival``: seconds, not decreasing (ignored in a closed loop). ``adapter``: index into ``adapters``, -1 for the
    base model. ``tenant``: index into ``tenants``. Token columns are counts >= 1. ``output_tokens`` is the truth a
    policy never sees; ``max_tokens`` is what it sees. ``deadline``: seconds after arrival (inf: none).
    ``concurrency``: None for open arrivals; n for a closed loop of n clients, each sending its next request when its
    last one ended. ``after``: the request that this one follows as the next turn of its session, -1 for none; it is
    sent ``delay_s`` seconds after that one ended, and its ``arrival`` is the earliest second that can be, if no turn
    took any time. In a closed loop with turns, a client plays one session after the other. ``max_outstanding``: most
    requests that clients have open at once; one more waits at its client until another ends, and arrives then. It needs
    ``after``. ``notes`` tell what a reader changed or left out. Raises `InputError` when columns disagree.
    """

    arrival: Floats
    adapter: Ints
    tenant: Ints
    prompt_tokens: Ints
    output_tokens: Ints
    max_tokens: Ints
    adapters: tuple[str, ...]
    tenants: tuple[str, ...] = (BASE_TENANT,)
    tenant_weights: tuple[float, ...] = ()
    predicted_tokens: Ints | None = None
    cached_tokens: Ints | None = None
    priority: Ints | None = None
    deadline: Floats | None = None
    concurrency: int | None = None
    after: Ints | None = None
    delay_s: Floats | None = None
    max_outstanding: int | None = None
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        n = len(self.arrival)
        columns = (self.adapter, self.tenant, self.prompt_tokens, self.output_tokens, self.max_tokens)
        optional = (self.predicted_tokens, self.cached_tokens, self.priority, self.deadline, self.after, self.delay_s)
        if any(len(c) != n for c in columns) or any(c is not None and len(c) != n for c in optional):
            raise InputError("workload columns differ in length")
        if n and self.concurrency is None and bool((np.diff(self.arrival) < 0).any()):
            raise InputError("workload arrivals are not in order: sort them by time")
        if n and (min(int(self.prompt_tokens.min()), int(self.output_tokens.min()), int(self.max_tokens.min())) < 1):
            raise InputError("workload has a request without prompt, output or max_tokens: each is at least 1")
        cached = self.cached_tokens
        if cached is not None and bool(((cached < 0) | (cached >= self.prompt_tokens)).any()):
            raise InputError("workload has a request whose prompt is all cached: at least one prompt token is computed")
        if any(not weight > 0 for weight in self.tenant_weights):
            raise InputError(f"workload has tenant weights {self.tenant_weights}: a weight is above 0")
        if self.concurrency is not None and self.concurrency < 1:
            raise InputError(f"closed-loop concurrency is {self.concurrency}: at least 1 client is needed")
        if self.max_outstanding is not None and (self.max_outstanding < 1 or self.after is None):
            raise InputError(f"workload max_outstanding is {self.max_outstanding}: it is at least 1, and needs after")
        if (self.after is None) != (self.delay_s is None):
            raise InputError("workload has only one of after and delay_s: a turn needs both")
        if self.after is not None and self.delay_s is not None:
            turns = np.flatnonzero(self.after >= 0)
            before, delays = self.after[turns], self.delay_s[turns]
            if bool((before >= turns).any()) or len(np.unique(before)) < len(before):
                raise InputError("workload has a turn that follows a later request, or two that follow the same one")
            if not bool((np.isfinite(delays) & (delays >= 0)).all()):
                raise InputError("workload has a turn whose delay_s is negative or no number")

    def __len__(self) -> int:
        return len(self.arrival)

    def request(self, index: int, arrival: float | None = None) -> Request:
        """The request at ``index``, submitted at ``arrival`` seconds (by default its own arrival)."""
        return RequestMaker(self).make(index, arrival)[0]
