"""simplest: a world in which something fails, made plainer while it fails: fewer requests, default settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from loratory.serving.config import EngineConfig
from loratory.serving.workload import Workload
from loratory.testing.toy_cost import ToyCost
from loratory.testing.world import World

_KEEP = {"num_gpu_blocks", "max_num_seqs", "max_num_batched_tokens"}
"""Settings whose defaults are no plainer than a small number."""


def simplest(world: World, fails: Callable[[World], bool]) -> World:
    """The plainest world reached by steps that each still fail; ``fails`` returns False when time is over."""
    found = True
    while found:
        found = False
        for plainer in _plainer(world):
            if fails(plainer):
                world, found = plainer, True
                break
    return world


def _plainer(world: World) -> Iterator[World]:
    """Worlds that are one step plainer, the largest steps first."""
    work = world.workload
    if work.after is not None:
        yield replace(world, workload=replace(work, after=None, delay_s=None))
    else:
        yield from (replace(world, workload=_rows(work, keep)) for keep in _subsets(len(work)))
    if (used := _used(world)) is not None:
        yield used
    if world.cost != ToyCost():
        yield replace(world, cost=ToyCost())
    yield from _settings(world)
    yield from _columns(world)


def _subsets(count: int) -> Iterator[Any]:
    """Which rows to keep: without a half, a quarter, ... and each alone."""
    size = count // 2
    while size:
        for start in range(0, count, size):
            keep = np.ones(count, dtype=bool)
            keep[start : start + size] = False
            if keep.any():
                yield keep
        size //= 2


def _rows(work: Workload, keep: Any) -> Workload:
    names = ("arrival", "adapter", "tenant", "prompt_tokens", "output_tokens", "max_tokens", "predicted_tokens")
    columns = {name: getattr(work, name) for name in (*names, "cached_tokens", "priority", "deadline")}
    kept: dict[str, Any] = {name: None if column is None else column[keep] for name, column in columns.items()}
    return replace(work, **kept)


def _used(world: World) -> World | None:
    """Without the adapters that no request names; None where there are none."""
    work = world.workload
    places = sorted({int(place) for place in work.adapter if place >= 0})
    names = tuple(work.adapters[place] for place in places)
    if names == work.adapters and len(world.adapters) <= len(names):
        return None
    moved = np.array([-1 if place < 0 else places.index(int(place)) for place in work.adapter], dtype=np.int64)
    kept = tuple(each for each in world.adapters if each.name in names)
    return replace(world, adapters=kept, workload=replace(work, adapters=names, adapter=moved))


def _settings(world: World) -> Iterator[World]:
    """One setting of the engine at its default, or one adapter plain."""
    defaults = EngineConfig()
    for name in EngineConfig.model_fields:
        if name not in _KEEP and getattr(world.config, name) != getattr(defaults, name):
            try:
                yield world.with_config(**{name: getattr(defaults, name)})
            except ValueError:
                continue  # it does not go with the others
    for place, each in enumerate(world.adapters):
        plain = (replace(each, pinned=False), replace(each, tier="disk"), replace(each, rank=8, bytes=40))
        for made in plain:
            if made != each:
                yield replace(world, adapters=(*world.adapters[:place], made, *world.adapters[place + 1 :]))


def _columns(world: World) -> Iterator[World]:
    """One column of the workload without anything special."""
    work = world.workload
    zero, one = np.zeros(len(work), dtype=np.int64), np.ones(len(work), dtype=np.int64)
    plain: dict[str, Any] = {
        "deadline": np.full(len(work), np.inf),
        "priority": zero,
        "cached_tokens": zero,
        "tenant": zero,
        "arrival": np.zeros(len(work)),
        "max_tokens": work.output_tokens,
        "predicted_tokens": work.output_tokens,
        "prompt_tokens": one,
    }
    for name, column in plain.items():
        if not np.array_equal(getattr(work, name), column):
            changes = {name: column, **({"cached_tokens": zero} if name == "prompt_tokens" else {})}
            yield replace(world, workload=replace(work, **changes))
    if work.concurrency is not None:
        yield replace(world, workload=replace(work, concurrency=None, arrival=np.zeros(len(work))))
    if work.tenant_weights:
        yield replace(world, workload=replace(work, tenant_weights=()))
