"""Views: what a policy sees of requests, adapters and tenants: read-only and live."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Any

from loratory.serving.lora import Adapter, Tier


class RequestView:
    """A request as a policy sees it: read-only and live. It never shows the true output length.

    Times are absolute seconds, token fields are counts, ``adapter`` is a name or None for the base model.
    """

    __slots__ = ("_sequence",)

    def __init__(self, sequence: Any) -> None:
        self._sequence = sequence

    request_id: str = property(attrgetter("_sequence.request.request_id"))  # type: ignore[assignment]
    adapter: str | None = property(attrgetter("_sequence.request.adapter"))  # type: ignore[assignment]
    tenant: str = property(attrgetter("_sequence.request.tenant"))  # type: ignore[assignment]
    arrival: float = property(attrgetter("_sequence.request.arrival"))  # type: ignore[assignment]
    prompt_tokens: int = property(attrgetter("_sequence.request.prompt_tokens"))  # type: ignore[assignment]
    cached_tokens: int = property(attrgetter("_sequence.request.cached_tokens"))  # type: ignore[assignment]
    max_tokens: int = property(attrgetter("_sequence.max_tokens"))  # type: ignore[assignment]
    predicted_tokens: int | None = property(attrgetter("_sequence.request.predicted_tokens"))  # type: ignore[assignment]
    generated_tokens: int = property(attrgetter("_sequence.generated"))  # type: ignore[assignment]
    priority: int = property(attrgetter("_sequence.request.priority"))  # type: ignore[assignment]
    deadline: float | None = property(attrgetter("_sequence.request.deadline"))  # type: ignore[assignment]
    weight: float = property(attrgetter("_sequence.request.weight"))  # type: ignore[assignment]
    kv_tokens: int = property(attrgetter("_sequence.kv_tokens"))  # type: ignore[assignment]
    preemptions: int = property(attrgetter("_sequence.preemptions"))  # type: ignore[assignment]
    running: bool = property(lambda self: self._sequence.state == "running")  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<request {self.request_id} adapter={self.adapter} tenant={self.tenant}>"


class RequestViews:
    """A live collection of requests; one may preempt while iterating. Counting it costs nothing."""

    __slots__ = ("_sequences",)

    def __init__(self, sequences: Mapping[str, Any]) -> None:
        self._sequences = sequences

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[RequestView]:
        return iter([sequence.view for sequence in self._sequences.values()])

    def __contains__(self, view: object) -> bool:
        return isinstance(view, RequestView) and view.request_id in self._sequences


class AdapterView:
    """An adapter as a policy sees it: read-only and live. ``name`` is None for the base model.

    ``eta``: absolute second at which a load in flight is expected to end, if known. ``references``: running requests
    that use it. ``waiting``: requests waiting for it. ``uses``: admissions so far. ``bytes``: size of its weights.
    ``admitted_tokens`` and ``output_tokens``: its service so far. ``kv_tokens``: tokens of KV memory it takes on the
    GPU (``memory: unified``, else 0). ``fresh``: loaded and not used since.
    """

    __slots__ = ("_state",)

    def __init__(self, state: Any) -> None:
        self._state = state

    name: str | None = property(attrgetter("_state.name"))  # type: ignore[assignment]
    lora_int_id: int = property(attrgetter("_state.lora_int_id"))  # type: ignore[assignment]
    rank: int = property(attrgetter("_state.rank"))  # type: ignore[assignment]
    bytes: int = property(attrgetter("_state.bytes"))  # type: ignore[assignment]
    tier: Tier = property(attrgetter("_state.tier"))  # type: ignore[assignment]
    eta: float | None = property(attrgetter("_state.eta"))  # type: ignore[assignment]
    references: int = property(attrgetter("_state.references"))  # type: ignore[assignment]
    waiting: int = property(attrgetter("_state.waiting"))  # type: ignore[assignment]
    pinned: bool = property(attrgetter("_state.pinned"))  # type: ignore[assignment]
    last_used: float = property(attrgetter("_state.last_used"))  # type: ignore[assignment]
    loaded_at: float = property(attrgetter("_state.loaded_at"))  # type: ignore[assignment]
    uses: int = property(attrgetter("_state.uses"))  # type: ignore[assignment]
    fresh: bool = property(attrgetter("_state.fresh"))  # type: ignore[assignment]
    admitted_tokens: int = property(attrgetter("_state.admitted_tokens"))  # type: ignore[assignment]
    output_tokens: int = property(attrgetter("_state.output_tokens"))  # type: ignore[assignment]
    prefetching: bool = property(attrgetter("_state.prefetching"))  # type: ignore[assignment]
    kv_tokens: int = property(lambda self: self._state.kv_tokens)  # type: ignore[assignment]
    spec: Adapter | None = property(attrgetter("_state.spec"))  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<adapter {self.name} tier={self.tier} references={self.references}>"


class TenantView:
    """A tenant as a policy sees it: requests waiting and running, prompt tokens admitted, output tokens so far."""

    __slots__ = ("_state",)

    def __init__(self, state: Any) -> None:
        self._state = state

    name: str = property(attrgetter("_state.name"))  # type: ignore[assignment]
    waiting: int = property(attrgetter("_state.waiting"))  # type: ignore[assignment]
    running: int = property(attrgetter("_state.running"))  # type: ignore[assignment]
    admitted_tokens: int = property(attrgetter("_state.admitted_tokens"))  # type: ignore[assignment]
    output_tokens: int = property(attrgetter("_state.output_tokens"))  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<tenant {self.name} waiting={self.waiting}>"
