"""edge_worlds: small worlds with what a policy's author forgets: nothing to do, hostile names, ties, no room."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from loratory.serving.config import EngineConfig
from loratory.serving.lora import LoRARequest
from loratory.testing.toy_cost import ToyCost
from loratory.testing.world import RequestRow, World, adapter, workload

HOSTILE_NAMES = ("None", "a1 ", "'; drop table", "名\u202eפ", "line\nbreak", "n" * 300)
"""Names that are allowed, and that a policy may take for something else, or fail to print."""


def edge_worlds() -> dict[str, World]:
    """By name, the smallest first."""
    two = [{"adapter": 1, "prompt": 3, "out": 2}, {"adapter": 2, "prompt": 3, "out": 2}]
    crowd = [{"adapter": i % 4 + 1, "prompt": 7, "out": 6, "tenant": i % 3} for i in range(12)]
    return {
        "one request": _world([{"out": 2}], adapters=0),
        "one request for an adapter": _world(two[:1], adapters=1),
        "two adapters and one slot": _world(two, adapters=2, max_loras=1),
        "requests that fit nowhere": _world([{"prompt": 999, "adapter": 1}, {"adapter": 2}]),
        "an adapter nobody registered": _unregistered(),
        "a long time without work": _world([{"at": 0.0, "out": 3}, {"at": 9.0, "adapter": 1, "out": 3}]),
        "all at once": _world(crowd, max_loras=1),
        "loads that take time": _world(crowd, adapter_loading="async"),
        "no room for the outputs": _world([{**row, "out": 25} for row in crowd], num_gpu_blocks=20),
        "one KV pool for adapters and requests": _world(crowd, memory="unified"),
        "a slot that is pinned": _pinned(crowd),
        "extreme priorities and deadlines": _world(
            [{**row, "priority": (-1) ** i * 10**9, "slack": [0.0, 1e9][i % 2]} for i, row in enumerate(crowd)]
        ),
        "a weight for each tenant": _world(crowd, tenant_weights=(0.001, 1.0, 1000.0, 1.0)),
        "clients that wait for answers": _world(crowd, concurrency=2),
        "hostile names": _hostile(crowd),
    }


def _world(rows: list[RequestRow], adapters: int = 4, **options: Any) -> World:
    made = tuple(adapter(number) for number in range(1, adapters + 1))
    columns = {key: options.pop(key) for key in ("tenant_weights", "concurrency") if key in options}
    settings = {"max_loras": 2, "max_num_seqs": 4, "num_gpu_blocks": 40, "block_size": 2, "max_num_batched_tokens": 16}
    return World(workload(rows, made, **columns), made, EngineConfig(**{**settings, **options}), ToyCost())


def _unregistered() -> World:
    world = _world([{"adapter": 1}, {"adapter": 2}, {}])
    return replace(world, adapters=world.adapters[1:])


def _pinned(rows: list[RequestRow]) -> World:
    world = _world(rows)
    first, *rest = world.adapters
    return replace(world, adapters=(replace(first, pinned=True), *rest))


def _hostile(rows: list[RequestRow]) -> World:
    world = _world(rows)
    named = tuple(
        replace(each, lora=LoRARequest(name, each.lora.lora_int_id, each.lora.lora_path))
        for each, name in zip(world.adapters, HOSTILE_NAMES, strict=False)
    )
    work = replace(world.workload, adapters=tuple(a.name for a in named), tenants=HOSTILE_NAMES[-4:])
    return replace(world, adapters=named, workload=work)
