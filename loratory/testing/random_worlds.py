"""worlds: hypothesis strategies for small random worlds, in which every limit binds."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from loratory.serving.config import EngineConfig
from loratory.testing.toy_cost import ToyCost
from loratory.testing.world import RequestRow, World, adapter, workload


@st.composite
def configs(draw: st.DrawFn, /, **fixed: Any) -> EngineConfig:
    """Engine settings, small enough that every limit binds; ``fixed`` ones are not drawn."""
    max_num_seqs = draw(st.sampled_from([1, 2, 4, 8, 8]))
    max_loras = draw(st.integers(1, 4))
    values: dict[str, Any] = {
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max(max_num_seqs, draw(st.sampled_from([4, 9, 16, 40, 200, 200]))),
        "block_size": draw(st.sampled_from([1, 2, 3, 4, 16])),
        "max_loras": max_loras,
        "max_cpu_loras": draw(st.sampled_from([None, max_loras, max_loras + 1, max_loras + 4])),
        "adapter_loading": draw(st.sampled_from(["sync", "async"])),
        "memory": draw(st.sampled_from(["slots", "slots", "unified"])),
        "batching": draw(st.sampled_from(["chunked", "chunked", "separate"])),
        "enable_chunked_prefill": draw(st.sampled_from([True, True, False])),
        "long_prefill_token_threshold": draw(st.sampled_from([0, 0, 5])),
        "long_prefill_threshold_alone": draw(st.booleans()),
        "scheduler_reserve_full_isl": draw(st.booleans()),
        "watermark": draw(st.sampled_from([0.0, 0.0, 0.1])),
        "null_block": draw(st.booleans()),
        "eviction": draw(st.sampled_from(["lru", "lfu", "fifo", "cost_aware"])),
        "max_model_len": draw(st.sampled_from([None, None, 45])),
    }
    tokens = draw(st.sampled_from([64, 64, 90, 128, 1000]))
    values["num_gpu_blocks"] = -(-tokens // values["block_size"]) + (
        0 if values["memory"] == "slots" else -(-30 // values["block_size"])
    )
    values["num_gpu_blocks"] += values["null_block"]
    if {**values, **fixed}["batching"] == "chunked":
        values["async_scheduling"] = draw(st.sampled_from([None, True]))
    return EngineConfig(**{**values, **fixed})


@st.composite
def worlds(draw: st.DrawFn, /, most: int = 20, adapters: int | None = None, fits: bool = False, **fixed: Any) -> World:
    """Worlds of up to ``most`` requests for ``adapters`` adapters (by default 0 to 6).

    ``fits``: every request fits alone, without a limit of its context. Further options: ``tenants`` (a number),
    ``base``, ``deadlines``, ``cached`` (whether requests have them), ``concurrency`` (a closed loop), ``turns``
    (whether requests follow others as turns of a session; by default in one world of three), and engine settings that
    are not drawn, such as ``memory="slots"``.
    """
    known = ("tenants", "base", "deadlines", "concurrency", "cached", "turns")
    options = {key: fixed.pop(key) for key in known if key in fixed}
    config = draw(configs(**fixed, **({"max_model_len": None} if fits else {})))
    count = draw(st.integers(0, 6)) if adapters is None else adapters
    pinnable = config.max_loras - 1
    made = []
    for number in range(1, count + 1):
        pinned = pinnable > 0 and draw(st.integers(0, 7)) == 7
        pinnable -= pinned
        made.append(
            adapter(
                number,
                rank=draw(st.sampled_from([4, 8, 16])),
                size=draw(st.sampled_from([10, 40, 80])),
                pinned=pinned,
                tier=draw(st.sampled_from(["host", "disk", "disk", "remote"])),
            )
        )
    grid = draw(st.sampled_from([False, False, True]))
    cost = ToyCost(
        line=draw(st.booleans()),
        floor_s=draw(st.sampled_from([0.0, 0.0, 0.0062])),
        grid=grid,
        fetches=draw(st.sampled_from([1, 2, 15])),
    )
    unit = 0.125 if grid else 0.0037
    row = st.fixed_dictionaries(
        {
            "gap": st.sampled_from([0, 0, 0, 1, 1, 2, 5, 30]),
            "adapter": st.sampled_from(
                [*range(1, count + 1), *([None] if options.get("base", True) or not count else [])]
            ),
            "tenant": st.integers(0, options.get("tenants", 3) - 1),
            "prompt": st.sampled_from([1, 2, 4, 7, 16, 17, 33]),
            "out": st.sampled_from([1, 2, 3, 8, 20, 29, 29]),
            "cap": st.sampled_from([1, 2, 8, 29, 29, 500]) if not fits else st.sampled_from([1, 2, 8, 29]),
            "predicted": st.sampled_from([1, 5, 20]),
            "cached": st.sampled_from([0, 0, 0, 3]) if options.get("cached", True) else st.just(0),
            "priority": st.integers(0, 2),
            "slack": st.sampled_from([0.02, 0.3, np.inf, np.inf])
            if options.get("deadlines", True)
            else st.just(np.inf),
        }
    )
    size = draw(st.sampled_from([1, 3, most // 2, most, most]))
    rows: list[RequestRow] = draw(st.lists(row, min_size=size, max_size=size))
    at = 0.0
    for entry in rows:
        at += entry.pop("gap") * unit
        entry["at"] = at
    if options.get("turns", draw(st.sampled_from([False, False, True]))):
        rows = _in_sessions(rows, draw(st.lists(st.integers(-9, 3), min_size=size, max_size=size)), unit)
    concurrency = options.get("concurrency")
    return World(workload(rows, tuple(made), concurrency=concurrency), tuple(made), config, cost)


def _in_sessions(rows: list[RequestRow], delays: list[int], unit: float) -> list[RequestRow]:
    """The rows with some of them turns, N units after the one before in their session; N below 0: not a turn."""
    last: dict[int, RequestRow] = {}
    for place, (entry, units) in enumerate(zip(rows, delays, strict=True)):
        before = last.get(place % 3)
        if units >= 0 and before is not None:
            entry |= {"before": before, "delay": units * unit, "at": before["at"] + units * unit}
        last[place % 3] = entry
    rows = sorted(rows, key=lambda entry: entry["at"])
    place_of = {id(entry): place for place, entry in enumerate(rows)}
    for entry in rows:
        before = entry.pop("before", None)
        entry["after"] = -1 if before is None else place_of[id(before)]
    return rows
