"""AdapterState and TenantState: what the ledger keeps of each adapter and each tenant."""

from __future__ import annotations

from loratory.serving.compiling import mypyc_attr
from loratory.serving.lora import Adapter, Tier
from loratory.serving.views import AdapterView, TenantView
from loratory.serving.wait_queue import Queued, QueueView, WaitQueue


@mypyc_attr(serializable=True, allow_interpreted_subclasses=True)
class Usage:
    """The service that one tenant or adapter has had, in tokens, and its waiting requests.

    Each of its decoding requests adds an output token in every decode step. The sum is therefore kept as a constant
    plus ``decoding`` times the decode clock, so that a step changes nothing here.
    """

    __slots__ = ("admitted_tokens", "clock", "decoding", "output_offset", "queue", "queue_view", "running")

    def __init__(self, by_ticket: dict[int, Queued], clock: list[int]) -> None:
        self.queue = WaitQueue(by_ticket)
        self.queue_view = QueueView(self.queue)
        self.running = 0
        self.admitted_tokens = 0
        self.clock = clock
        self.decoding = 0
        """Its decoding requests."""
        self.output_offset = 0
        """Its output tokens, less ``decoding`` times the decode clock."""

    @property
    def output_tokens(self) -> int:
        """Output tokens of all its requests so far."""
        return self.output_offset + self.decoding * self.clock[0]

    @property
    def waiting(self) -> int:
        """Its waiting requests."""
        return self.queue.live


@mypyc_attr(serializable=True, allow_interpreted_subclasses=True)
class TenantState(Usage):
    """One tenant: its service and its waiting requests."""

    __slots__ = ("name", "view")

    view: TenantView

    def __init__(self, name: str, by_ticket: dict[int, Queued], clock: list[int]) -> None:
        super().__init__(by_ticket, clock)
        self.name = name


@mypyc_attr(serializable=True, allow_interpreted_subclasses=True)
class AdapterState(Usage):
    """One adapter: where it is, what uses it, its service and its waiting requests.

    ``spec`` is None for the base model. ``uses`` are admissions, ``fresh`` is true from a load to the first of them,
    and ``blocks`` are the KV blocks that the adapter takes while it is on the GPU (``memory: unified``). Times are
    absolute seconds.
    """

    __slots__ = (
        "blocks",
        "bytes",
        "eta",
        "fresh",
        "kv_tokens",
        "last_used",
        "load_started",
        "loaded_at",
        "lora_int_id",
        "name",
        "pinned",
        "prefetching",
        "rank",
        "spec",
        "tier",
        "uses",
        "view",
    )

    view: AdapterView

    def __init__(self, spec: Adapter | None, blocks: int, by_ticket: dict[int, Queued], clock: list[int]) -> None:
        super().__init__(by_ticket, clock)
        self.blocks = blocks
        self.kv_tokens = 0
        self.uses = 0
        self.last_used = 0.0
        self.load_started = 0.0
        self.loaded_at = 0.0
        self.begin(spec)

    def begin(self, spec: Adapter | None) -> None:
        """The engine knows the adapter from now on, for the first time or again."""
        self.spec = spec
        self.name = None if spec is None else spec.name
        self.lora_int_id = 0 if spec is None else spec.lora.lora_int_id
        self.rank = 0 if spec is None else spec.rank
        self.bytes = 0 if spec is None else spec.bytes
        self.pinned = spec is None or spec.pinned
        self.tier: Tier = "gpu" if spec is None else spec.tier
        self.prefetching = False
        self.fresh = False
        self.eta: float | None = None
