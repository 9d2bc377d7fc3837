"""Views: what a policy sees of requests, adapters and tenants: read-only and live."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from typing import Any

from loratory.serving.lora import Adapter, Tier


def live(read: Callable[[Any], Any]) -> Any:
    """A read-only attribute: ``read`` gets its value from the view. The view declares its type."""
    return property(read)


class RequestView:
    """A request as a policy sees it: read-only and live. It never shows the true output length.

    Times are absolute seconds.
    """

    __slots__ = ("_sequence",)

    def __init__(self, sequence: Any) -> None:
        self._sequence = sequence

    request_id: str = live(attrgetter("_sequence.request.request_id"))
    """The id under which it was submitted, unique among the requests in flight."""
    adapter: str | None = live(attrgetter("_sequence.request.adapter"))
    """Name of the adapter it wants; None for the base model."""
    tenant: str = live(attrgetter("_sequence.request.tenant"))
    """Name of the tenant that sent it."""
    arrival: float = live(attrgetter("_sequence.request.arrival"))
    """Second at which it arrived."""
    prompt_tokens: int = live(attrgetter("_sequence.request.prompt_tokens"))
    """Tokens of its prompt, cached ones included."""
    cached_tokens: int = live(attrgetter("_sequence.request.cached_tokens"))
    """Prompt tokens that are cached already: they need KV memory, but no compute."""
    max_tokens: int = live(attrgetter("_sequence.max_tokens"))
    """Upper limit of its output tokens: the client's, or what the engine's limit of context leaves if that is less."""
    predicted_tokens: int | None = live(attrgetter("_sequence.request.predicted_tokens"))
    """Output tokens that the workload predicts; None without a prediction."""
    generated_tokens: int = live(attrgetter("_sequence.generated"))
    """Output tokens so far. A preemption keeps them."""
    priority: int = live(attrgetter("_sequence.request.priority"))
    """The client's priority: a lower number is served first, as in vLLM."""
    deadline: float | None = live(attrgetter("_sequence.request.deadline"))
    """Second of the client's deadline; None without one. Policies such as `deadline` mean the first token's."""
    weight: float = live(attrgetter("_sequence.request.weight"))
    """Its tenant's share in fair policies, above 0."""
    kv_tokens: int = live(attrgetter("_sequence.kv_tokens"))
    """Tokens it has in the KV cache, with the chunk that this step prefills; 0 while it waits."""
    preemptions: int = live(attrgetter("_sequence.preemptions"))
    """How often it was preempted so far."""
    running: bool = live(lambda self: self._sequence.state == "running")
    """Whether it is admitted and has not ended; false while it waits, also after a preemption."""

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
    """An adapter as a policy sees it: read-only and live. The base model is one as well, under no name.

    Times are absolute seconds.
    """

    __slots__ = ("_state",)

    def __init__(self, state: Any) -> None:
        self._state = state

    name: str | None = live(attrgetter("_state.name"))
    """The adapter's name; None for the base model."""
    lora_int_id: int = live(attrgetter("_state.lora_int_id"))
    """The number by which the engine knows it; 0 for the base model."""
    rank: int = live(attrgetter("_state.rank"))
    """Its rank; 0 for the base model."""
    bytes: int = live(attrgetter("_state.bytes"))
    """Bytes of its weights; 0 for the base model."""
    tier: Tier = live(attrgetter("_state.tier"))
    """Where its weights are: "remote", "disk", "host", "loading" (on the way to a GPU slot) or "gpu"."""
    eta: float | None = live(attrgetter("_state.eta"))
    """Second at which its load or prefetch in flight is expected to end; None without one, or if not known."""
    references: int = live(attrgetter("_state.running"))
    """Running requests that use it."""
    waiting: int = live(attrgetter("_state.waiting"))
    """Requests that wait for it."""
    pinned: bool = live(attrgetter("_state.pinned"))
    """Whether it is never evicted: once on the GPU, it stays there."""
    last_used: float = live(attrgetter("_state.last_used"))
    """Second of its last use: a load, an admission or the end of a running request; 0.0 before the first."""
    loaded_at: float = live(attrgetter("_state.loaded_at"))
    """Second at which its last load to the GPU ended; 0.0 before the first."""
    uses: int = live(attrgetter("_state.uses"))
    """Admissions of requests that want it so far, those after a preemption included; 0 for the base model."""
    fresh: bool = live(attrgetter("_state.fresh"))
    """Whether no request was admitted with it since its last load to the GPU."""
    admitted_tokens: int = live(attrgetter("_state.admitted_tokens"))
    """Prompt tokens of its requests admitted so far, each request counted once."""
    output_tokens: int = live(attrgetter("_state.output_tokens"))
    """Output tokens of its requests so far."""
    prefetching: bool = live(attrgetter("_state.prefetching"))
    """Whether a prefetch of it to host memory is in flight."""
    kv_tokens: int = live(lambda self: self._state.kv_tokens)
    """Tokens of KV memory that it takes while on the GPU; 0 unless `View.memory` is "unified"."""
    spec: Adapter | None = live(attrgetter("_state.spec"))
    """Identity, rank and bytes, as `View.cost` asks for them; None for the base model."""

    def __repr__(self) -> str:
        return f"<adapter {self.name} tier={self.tier} references={self.references}>"


class TenantView:
    """A tenant as a policy sees it: read-only and live."""

    __slots__ = ("_state",)

    def __init__(self, state: Any) -> None:
        self._state = state

    name: str = live(attrgetter("_state.name"))
    """The tenant's name."""
    waiting: int = live(attrgetter("_state.waiting"))
    """Requests of it that wait."""
    running: int = live(attrgetter("_state.running"))
    """Requests of it that run."""
    admitted_tokens: int = live(attrgetter("_state.admitted_tokens"))
    """Prompt tokens of its requests admitted so far, each request counted once."""
    output_tokens: int = live(attrgetter("_state.output_tokens"))
    """Output tokens of its requests so far."""

    def __repr__(self) -> str:
        return f"<tenant {self.name} waiting={self.waiting}>"
