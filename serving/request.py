"""Request: one prompt to be answered, as a client submits it."""

from __future__ import annotations

from typing import Literal, NamedTuple, Self

from loratory.errors import InputError

Status = Literal["waiting", "running", "completed", "rejected", "aborted", "failed"]
"""A request's state; the last four are final and every submitted request ends in exactly one of them."""

BASE_TENANT = "default"


class _Fields(NamedTuple):
    request_id: str
    adapter: str | None
    arrival: float
    prompt_tokens: int
    max_tokens: int
    tenant: str = BASE_TENANT
    predicted_tokens: int | None = None
    cached_tokens: int = 0
    priority: int = 0
    deadline: float | None = None
    weight: float = 1.0


class Request(_Fields):
    """What a client asks for. It never holds the true output length: that belongs to the backend that finds it out.

    ``adapter`` is a registered adapter's name, or None for the base model: nothing is applied implicitly.
    ``arrival`` and ``deadline`` are absolute seconds, token fields are counts, a lower ``priority`` is served first, as
    in vLLM, and ``weight`` is the tenant's share in fair policies. ``cached_tokens`` of the prompt need KV memory, but
    no compute. Raises `InputError` for values that no engine could serve.

    A tuple, because a simulation makes a million: `loratory.serving.workload.Workload` checks its columns once, and
    its requests are then made without the checks below.
    """

    __slots__ = ()

    def __new__(
        cls,
        request_id: str,
        adapter: str | None,
        arrival: float,
        prompt_tokens: int,
        max_tokens: int,
        tenant: str = BASE_TENANT,
        predicted_tokens: int | None = None,
        cached_tokens: int = 0,
        priority: int = 0,
        deadline: float | None = None,
        weight: float = 1.0,
    ) -> Self:
        """See the class."""
        self = super().__new__(
            cls,
            request_id=request_id,
            adapter=adapter,
            arrival=arrival,
            prompt_tokens=prompt_tokens,
            max_tokens=max_tokens,
            tenant=tenant,
            predicted_tokens=predicted_tokens,
            cached_tokens=cached_tokens,
            priority=priority,
            deadline=deadline,
            weight=weight,
        )
        if self.prompt_tokens < 1 or self.max_tokens < 1:
            raise InputError(
                f"request {self.request_id!r} has {self.prompt_tokens} prompt tokens and max_tokens {self.max_tokens}: "
                "both are at least 1"
            )
        if not 0 <= self.cached_tokens < self.prompt_tokens:
            raise InputError(
                f"request {self.request_id!r} has {self.cached_tokens} cached tokens of {self.prompt_tokens}: at least "
                "one prompt token is computed"
            )
        if not self.weight > 0:
            raise InputError(f"request {self.request_id!r} has weight {self.weight}: a weight is above 0")
        return self
