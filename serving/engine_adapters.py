"""Roster: the adapters that an engine serves; refuses those that its configuration can never serve."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from loratory.errors import InputError
from loratory.serving.adapter_limits import pinned_problem, rank_problem
from loratory.serving.config import EngineConfig
from loratory.serving.kv_pool import KVPool
from loratory.serving.lora import Adapter
from loratory.serving.usage import AdapterState
from loratory.serving.views import AdapterView
from loratory.serving.wait_queue import Queued


class Roster:
    """The adapters that engines with one configuration serve, checked once: the engines of a fleet share it.

    ``specs``: by name, in order. ``by_id``: by ``lora_int_id``. ``first``: those that have a state from the start, as
    they begin in host memory, are pinned, or (``memory: unified``) count for what the KV cache holds. Raises
    `InputError` for a name or id that repeats, a rank above ``max_lora_rank``, and too many pinned adapters.
    """

    __slots__ = ("by_id", "first", "specs")

    def __init__(self, config: EngineConfig, adapters: Iterable[Adapter]) -> None:
        self.specs: dict[str, Adapter] = {}
        self.by_id: dict[int, Adapter] = {}
        for adapter in adapters:
            name = adapter.name
            other = self.by_id.setdefault(adapter.lora.lora_int_id, adapter).name
            if name in self.specs or other != name:
                raise InputError(
                    f"adapter {name!r} repeats the name or the lora_int_id {adapter.lora.lora_int_id} of adapter "
                    f"{other!r}: both must be unique in an engine"
                )
            refuse_rank(config, adapter)
            self.specs[name] = adapter
        pinned = sum(adapter.pinned for adapter in self.specs.values())
        if problem := pinned_problem("the engine is given pinned", pinned, len(self.specs), config.max_loras):
            raise InputError(problem)
        unified = config.memory == "unified"
        self.first = [each for each in self.specs.values() if unified or each.pinned or each.tier == "host"]


def refuse_rank(config: EngineConfig, adapter: Adapter) -> None:
    """Raises `InputError` for a rank above ``max_lora_rank``."""
    if problem := rank_problem(f"adapter {adapter.name!r} has rank", adapter.rank, config.max_lora_rank):
        raise InputError(problem)


def adapter_state(
    config: EngineConfig,
    adapter: Adapter,
    kv: KVPool,
    kv_bytes_per_token: int | None,
    by_ticket: dict[int, Queued],
) -> AdapterState:
    """The state of one adapter; ``by_ticket`` has the engine's waiting requests.

    Raises `InputError` for ``memory: unified`` without ``kv_bytes_per_token`` (bytes of KV cache a token takes).
    """
    blocks = 0
    if config.memory == "unified":
        if not kv_bytes_per_token:
            raise InputError("memory: unified needs the KV bytes of a token: give a model, or kv_bytes_per_token")
        blocks = kv.blocks(-(-adapter.bytes // kv_bytes_per_token))
    state = AdapterState(adapter, blocks, by_ticket, kv.clock)
    state.kv_tokens = blocks * kv.block_size
    state.view = AdapterView(state)
    return state


def max_context(kv: KVPool, adapters: Collection[AdapterState]) -> int:
    """The tokens of context that one request can have in the KV pool when it runs alone.

    Raises `InputError` when the pool has no room beside its adapters.
    """
    largest = max((state.blocks for state in adapters), default=0)
    pinned = sum(state.blocks for state in adapters if state.pinned)
    room = (kv.total - largest - pinned) * kv.block_size
    if room < 2:
        raise InputError(
            f"the KV pool of {kv.total} blocks has no room beside its adapters: raise num_gpu_blocks or "
            "gpu_memory_utilization, or lower adapter ranks"
        )
    return room
