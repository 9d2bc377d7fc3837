"""State: what the live page shows of an engine at one moment, as JSON values: bounded however many adapters there are.

In the engine's thread, between two steps: `loop.call(lambda executor, at: read_state(executor, public_name, at))`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from loratory.executor.executor import Executor
from loratory.reports.tenant_service import OUTPUT_WEIGHT
from loratory.server.label_text import label_text
from loratory.serving.ledger import Ledger
from loratory.serving.usage import AdapterState

MOST_ADAPTERS = 200
"""Adapters that are listed: those on the GPU first, then those that requests wait for, those in host memory, others."""

MOST_QUEUED = 30
"""Waiting requests that are listed, the longest waiting first."""


def read_state(
    executor: Executor, public_name: Callable[[str], str], at: float, tenants: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What runs, waits and is loaded at second ``at``. ``tenants``: those to be listed: how each is shown, and the
    engine's name for it.

    Keys: ``running``, ``waiting``, ``max_num_seqs``, ``kv``, ``policy``; ``tiers``: how many adapters are where;
    ``adapters``: a list of name, tier, rank, pinned, running, waiting; ``adapters_left_out``: those not in it;
    ``queue``: a list of adapter, tenant, waited_s, prompt_tokens, preempted; ``tenants``: a list of name, running,
    waiting, service.
    """
    ledger = executor.engine.ledger
    slots, kv = ledger.slots, ledger.kv
    listed = list(islice(_adapters(ledger), MOST_ADAPTERS))
    gpu, loading = len(slots.on_gpu), len(slots.loading)
    host = len(ledger.host_cache.held) - gpu - loading
    return {
        "running": len(ledger.running),
        "waiting": len(ledger.waiting),
        "max_num_seqs": ledger.seq_budget + len(ledger.running),
        "max_loras": slots.max_loras,
        "max_cpu_loras": ledger.host_cache.max_cpu_loras,
        "kv": {"used": kv.used, "total": kv.total},
        "policy": executor.policy_spec,
        "tiers": {"gpu": gpu, "loading": loading, "host": host, "disk": len(ledger.adapters) - gpu - loading - host},
        "adapters": [_adapter(state, public_name, leaving=state.name in ledger.leaving) for state in listed],
        "adapters_left_out": len(ledger.adapters) - len(listed),
        "queue": [
            {
                "adapter": None if view.adapter is None else public_name(view.adapter),
                "tenant": label_text(view.tenant),
                "waited_s": max(0.0, at - view.arrival),
                "prompt_tokens": view.prompt_tokens,
                "preempted": view.preemptions > 0,
            }
            for view in islice(executor.engine.view.waiting, MOST_QUEUED)
        ],
        "tenants": [
            {
                "name": shown,
                "running": tenant.running,
                "waiting": tenant.waiting,
                "service": tenant.admitted_tokens + OUTPUT_WEIGHT * tenant.output_tokens,
            }
            for shown, name in (tenants or {}).items()
            if (tenant := ledger.tenants.get(name)) is not None
        ],
    }


def _adapters(ledger: Ledger) -> Iterator[AdapterState]:
    """Each adapter once, the ones that matter most first."""
    seen: set[str | None] = {None}
    waited_for = [ledger.adapters[name] for name in ledger.waiting.backlogged if name is not None]
    slots = ledger.slots
    for states in (slots.on_gpu, slots.loading, waited_for, ledger.host_cache.held, ledger.adapters):
        for state in states.values() if isinstance(states, Mapping) else states:
            if state.name not in seen:
                seen.add(state.name)
                yield state


def _adapter(state: AdapterState, public_name: Callable[[str], str], leaving: bool) -> dict[str, Any]:
    assert state.name is not None
    return {
        "name": public_name(state.name),
        "tier": state.tier,
        "rank": state.rank,
        "pinned": state.pinned,
        "running": state.running,
        "waiting": state.waiting,
        "leaving": leaving,
    }
