"""World: the input of one run (workload, adapters, engine settings, cost), and how to write one down in a few lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np

from loratory.serving.config import EngineConfig
from loratory.serving.lora import Adapter, LoRARequest
from loratory.serving.workload import Workload
from loratory.sim.cost.base import CostModel

RequestRow = dict[str, Any]
"""One request of a workload: see `workload`."""


@dataclass(frozen=True)
class World:
    """The input of one run. ``kv_bytes_per_token`` matters with ``memory: unified`` only."""

    workload: Workload
    adapters: tuple[Adapter, ...]
    config: EngineConfig
    cost: CostModel
    kv_bytes_per_token: int = 10

    def with_config(self, **changes: Any) -> World:
        """The same world with other engine settings."""
        return replace(self, config=EngineConfig(**{**self.config.model_dump(), **changes}))

    def output_limit(self, index: int) -> int:
        """Output tokens at which a request ends: its max_tokens, or fewer where the context limit comes first.

        Below 1, it can never be served.
        """
        config, work = self.config, self.workload
        blocks = [0]
        pinned = 0
        if config.memory == "unified":
            blocks += [ceil(ceil(a.bytes / self.kv_bytes_per_token) / config.block_size) for a in self.adapters]
            pinned = sum(size for size, a in zip(blocks[1:], self.adapters, strict=True) if a.pinned)
        limit = (config.require_blocks() - max(blocks) - pinned) * config.block_size + 1
        if config.max_model_len is not None:
            limit = min(limit, config.max_model_len)
        return min(int(work.max_tokens[index]), limit - int(work.prompt_tokens[index]))


def takes_over_at(world: World) -> int:
    """The plan, counted from 1, before which `check_policy` puts a policy into this world's running engine."""
    return 2 + len(world.workload) % 5


TENANTS = ("t0", "t1", "t2", "t3")
"""Names of tenants, unless others are given."""


def adapter(number: int, rank: int = 8, size: int = 40, name: str = "", **options: Any) -> Adapter:
    """Adapter ``a<number>`` of ``size`` bytes; ``options`` are those of `loratory.serving.lora.Adapter`."""
    return Adapter(LoRARequest(name or f"a{number}", number, f"adapters/a{number}"), rank, size, **options)


def workload(rows: Sequence[RequestRow], adapters: Sequence[Adapter] = (), **options: Any) -> Workload:
    """A workload from rows, in order of arrival; every key has a default.

    ``at`` (seconds), ``adapter`` (its number, or None), ``tenant`` (its place), ``prompt``, ``out`` and ``cap`` (tokens
    of prompt and output, and max_tokens), ``predicted``, ``cached``, ``priority``, ``slack`` (seconds to the deadline);
    and for a turn of a session ``after`` (the place of the row that it follows) and ``delay`` (seconds). ``options``
    are those of `loratory.serving.workload.Workload`.
    """

    def column(key: str, default: Any, dtype: Any = np.int64) -> Any:
        return np.array([row.get(key, default) for row in rows], dtype=dtype)

    places = {a.lora.lora_int_id: place for place, a in enumerate(adapters)}
    outputs = column("out", 1)
    turns = any("after" in row for row in rows)
    return Workload(
        arrival=column("at", 0.0, np.float64),
        adapter=np.array(
            [-1 if row.get("adapter") is None else places[row["adapter"]] for row in rows], dtype=np.int64
        ),
        tenant=column("tenant", 0),
        prompt_tokens=column("prompt", 1),
        output_tokens=outputs,
        max_tokens=np.array([row.get("cap", row.get("out", 1)) for row in rows], dtype=np.int64),
        adapters=tuple(a.name for a in adapters),
        tenants=options.pop("tenants", TENANTS),
        predicted_tokens=np.array([row.get("predicted", row.get("out", 1)) for row in rows], dtype=np.int64),
        cached_tokens=np.array([min(row.get("cached", 0), row.get("prompt", 1) - 1) for row in rows], dtype=np.int64),
        priority=column("priority", 0),
        deadline=np.array([row.get("slack", np.inf) for row in rows], dtype=np.float64),
        after=column("after", -1) if turns else None,
        delay_s=column("delay", 0.0, np.float64) if turns else None,
        **options,
    )
