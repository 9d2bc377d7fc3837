"""adapter_states: the adapters that an engine serves; refuses those that its configuration can never serve."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from loratory.errors import InputError
from loratory.serving.adapter_limits import pinned_problem, rank_problem
from loratory.serving.config import EngineConfig
from loratory.serving.kv_pool import KVPool
from loratory.serving.lora import Adapter
from loratory.serving.usage import AdapterState
from loratory.serving.views import AdapterView
from loratory.serving.wait_queue import Queued


def adapter_states(
    config: EngineConfig,
    adapters: Iterable[Adapter],
    kv: KVPool,
    kv_bytes_per_token: int | None,
    by_ticket: Mapping[int, Queued],
) -> list[AdapterState]:
    """The state of each adapter, in order; ``by_ticket`` has the engine's waiting requests.

    Raises `InputError` for a name or id that repeats, a rank above ``max_lora_rank``, too many pinned adapters, and
    ``memory: unified`` without ``kv_bytes_per_token`` (bytes of KV cache a token takes).
    """
    states: dict[str, AdapterState] = {}
    ids: dict[int, str] = {}
    for adapter in adapters:
        name, other = adapter.name, ids.setdefault(adapter.lora.lora_int_id, adapter.name)
        if name in states or other != name:
            raise InputError(
                f"adapter {name!r} repeats the name or the lora_int_id {adapter.lora.lora_int_id} of adapter "
                f"{other!r}: both must be unique in an engine"
            )
        states[name] = adapter_state(config, adapter, kv, kv_bytes_per_token, by_ticket)
    pinned = sum(state.pinned for state in states.values())
    if problem := pinned_problem("the engine is given pinned", pinned, len(states), config.max_loras):
        raise InputError(problem)
    return list(states.values())


def adapter_state(
    config: EngineConfig,
    adapter: Adapter,
    kv: KVPool,
    kv_bytes_per_token: int | None,
    by_ticket: Mapping[int, Queued],
) -> AdapterState:
    """The state of one adapter. Raises `InputError` as `adapter_states` does for what concerns it alone."""
    if problem := rank_problem(f"adapter {adapter.name!r} has rank", adapter.rank, config.max_lora_rank):
        raise InputError(problem)
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
