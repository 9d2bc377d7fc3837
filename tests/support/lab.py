"""The laws' laboratory: small random worlds, a deterministic cost, and runs that check the ledger at every step."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

import numpy as np
from checked import checked
from hypothesis import settings
from hypothesis import strategies as st
from roster import POLICIES

import loratory.sim.cluster
import loratory.sim.replica
from loratory.serving.config import EngineConfig
from loratory.serving.events import Admitted, Arrived, Ended, Evicted, Stepped
from loratory.serving.integrity import check
from loratory.serving.lora import Adapter, LoRARequest
from loratory.serving.plan import BatchShape
from loratory.serving.policy import Policy
from loratory.serving.views import RequestViews
from loratory.serving.workload import Workload
from loratory.sim.cost.base import DecodeLine
from loratory.sim.cost.options import TransferOptions
from loratory.sim.routers import router as make_router

loratory.sim.replica.STALL_PLANS = 3000  # what stalls does so for ever; wait less for it here
FINAL = ("completed", "rejected", "aborted", "failed")
MORE = int(os.environ.get("MORE", "1"))
"""Multiplies every number of examples: MORE=20 HYPOTHESIS_PROFILE=deep for a night of fuzzing."""


def examples(count: int) -> settings:
    """Hypothesis settings with so many examples."""
    return settings(max_examples=count * MORE)


# -- cost ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ToyCost:
    """A few multiplications. ``line``: offers a decode line. ``grid``: every step is 1/8 s, so that times coincide.

    ``fetches``: adapters fetched at once from remote storage, a part of whose time is latency.
    """

    line: bool = True
    floor_s: float = 0.0
    grid: bool = False
    scale: float = 1.0
    load_s: float = 0.013
    fetches: int = 1
    name: str = "toy"
    source: str = "tests"
    warnings: list[str] = field(default_factory=list)

    @property
    def below(self) -> TransferOptions:
        latency_s = (0.5 if self.grid else 5 * self.load_s) * self.scale
        return TransferOptions(remote_fixed_s=latency_s, remote_concurrency=self.fetches)

    def _line(self, shape: BatchShape) -> DecodeLine:
        scale = self.scale
        if self.grid:
            return DecodeLine(0.125 * scale, 0.0, 0.0)
        intercept = 0.0031 + 0.0007 * shape.decode_seqs + 0.0003 * shape.distinct_adapters + 0.00001 * shape.sum_ranks
        return DecodeLine(intercept * scale, 0.000037 * scale, self.floor_s * scale)

    def step_seconds(self, shape: BatchShape) -> float:
        if not shape.tokens:
            return 0.0
        seconds = self._line(shape).seconds(shape.kv_tokens)
        if not self.grid:
            seconds += (0.00041 * shape.prefill_tokens + 0.0000007 * shape.prefill_attention) * self.scale
        return seconds

    def decode_line(self, shape: BatchShape) -> DecodeLine | None:
        return self._line(shape) if self.line and not shape.prefill_tokens else None

    def load_seconds(self, adapter: Adapter, tier: str) -> float:
        factor = {"host": 1.0, "disk": 2.5, "remote": 7.0}.get(tier, 0.0)
        if self.grid:
            return 0.25 * factor * self.scale
        return (self.load_s + 0.00011 * adapter.bytes) * factor * self.scale

    def explain(self, shape: BatchShape) -> dict[str, float]:
        return {"step": self.step_seconds(shape)}


# -- worlds ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """One run's input."""

    workload: Workload
    adapters: tuple[Adapter, ...]
    config: EngineConfig
    cost: ToyCost
    kv_bytes_per_token: int = 10

    def with_config(self, **changes: Any) -> World:
        return replace(self, config=EngineConfig(**{**self.config.model_dump(), **changes}))


def adapter(number: int, rank: int = 8, size: int = 40, **options: Any) -> Adapter:
    """Adapter a<number>."""
    return Adapter(LoRARequest(f"a{number}", number, f"adapters/a{number}"), rank, size, **options)


def workload(rows: list[dict[str, Any]], adapters: tuple[Adapter, ...] = (), **options: Any) -> Workload:
    """From rows: at, adapter (number or None), tenant, prompt, out, cap, predicted, cached, priority, slack, and for a
    turn: after (the place of the row it follows), delay (s).
    """

    def column(key: str, default: Any, dtype: Any = np.int64) -> Any:
        return np.array([row.get(key, default) for row in rows], dtype=dtype)

    places = {a.lora.lora_int_id: place for place, a in enumerate(adapters)}
    outputs = column("out", 1)
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
        tenants=options.pop("tenants", ("t0", "t1", "t2", "t3")),
        predicted_tokens=np.array([row.get("predicted", row.get("out", 1)) for row in rows], dtype=np.int64),
        cached_tokens=np.array([min(row.get("cached", 0), row.get("prompt", 1) - 1) for row in rows], dtype=np.int64),
        priority=column("priority", 0),
        deadline=np.array([row.get("slack", np.inf) for row in rows], dtype=np.float64),
        after=column("after", -1) if any("after" in row for row in rows) else None,
        delay_s=column("delay", 0.0, np.float64) if any("after" in row for row in rows) else None,
        **options,
    )


@st.composite
def configs(draw: Any, **fixed: Any) -> EngineConfig:
    """Engine settings, small enough that every limit binds."""
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
        "eviction": draw(st.sampled_from(["lru", "lfu", "fifo", "cost_aware"])),
        "max_model_len": draw(st.sampled_from([None, None, 45])),
    }
    tokens = draw(st.sampled_from([64, 64, 90, 128, 1000]))
    values["num_gpu_blocks"] = -(-tokens // values["block_size"]) + (
        0 if values["memory"] == "slots" else -(-30 // values["block_size"])
    )
    return EngineConfig(**{**values, **fixed})


@st.composite
def worlds(draw: Any, most: int = 20, adapters: int | None = None, fits: bool = False, **fixed: Any) -> World:
    """A workload, adapters, settings and a cost. ``fits``: every request fits alone, without a limit of its context.

    ``turns``: whether requests follow others as turns of a session; by default in one world of three.
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
    rows = draw(st.lists(row, min_size=size, max_size=size))
    at = 0.0
    for entry in rows:
        at += entry.pop("gap") * unit
        entry["at"] = at
    if options.get("turns", draw(st.sampled_from([False, False, True]))):
        rows = _in_sessions(rows, draw(st.lists(st.integers(-9, 3), min_size=size, max_size=size)), unit)
    concurrency = options.get("concurrency")
    return World(workload(rows, tuple(made), concurrency=concurrency), tuple(made), config, cost)


def _in_sessions(rows: list[dict[str, Any]], delays: list[int], unit: float) -> list[dict[str, Any]]:
    """The rows with some of them turns, so many units after the one before in their session; below 0: not a turn."""
    last: dict[int, dict[str, Any]] = {}
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


# -- runs ------------------------------------------------------------------------------------------------------------


def plain(event: Any) -> tuple[Any, ...]:
    """An event as values only, so that two runs compare."""

    def value(item: Any) -> Any:
        if hasattr(item, "request_id"):
            return item.request_id
        if isinstance(item, tuple) and hasattr(item, "_fields"):
            return (type(item).__name__, *map(value, item))
        return tuple(map(value, item)) if isinstance(item, (tuple, list, RequestViews)) else item

    if isinstance(event, Ended):
        sequence = event.sequence
        return (
            "Ended", event.now, event.request.request_id, event.status, event.why, sequence.generated,
            sequence.admitted_at, sequence.first_token_at, sequence.preemptions, sequence.load_wait_s,
            sequence.preempted_s, sequence.hit,
        )  # fmt: skip
    return (type(event).__name__, *map(value, event))


@dataclass
class Run:
    """What a run left: events by replica, engines, how it ended."""

    world: World
    events: list[list[Any]]
    flat: list[list[tuple[Any, ...]]]
    outcome: Any
    engines: list[Any]

    @property
    def ended(self) -> dict[str, Ended]:
        return {e.request.request_id: e for events in self.events for e in events if isinstance(e, Ended)}

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        return [event for flat in self.flat for event in flat if event[0] == kind]

    @property
    def decisions(self) -> list[list[tuple[Any, ...]]]:
        return [[event for event in flat if event[0] == "Decided"] for flat in self.flat]


def run(world: World, policy: Callable[[], Policy] | str, *, check_books: bool = True, **options: Any) -> Run:
    """Simulate a world under a policy, books checked at every plan and commit."""
    made = POLICIES[policy] if isinstance(policy, str) else policy
    count = options.get("replicas", 1)
    events: list[list[Any]] = [[] for _ in range(count)]
    flat: list[list[tuple[Any, ...]]] = [[] for _ in range(count)]
    engines: list[Any] = []

    def sink(index: int) -> Callable[[Any], None]:
        def take(event: Any) -> None:
            events[index].append(event)
            flat[index].append(plain(event))
            if isinstance(event, Evicted) and engines:
                state = engines[index].ledger.adapters[event.adapter]
                assert not state.pinned and not state.references

        return take

    if isinstance(options.get("router"), str):
        options["router"] = make_router(options["router"])
    arguments: dict[str, Any] = {
        "adapters": world.adapters,
        "config": world.config,
        "policy": made,
        "cost": world.cost,
        "kv_bytes_per_token": world.kv_bytes_per_token,
        "sink": sink,
        **options,
    }
    if not check_books:
        outcome = loratory.sim.cluster.simulate(world.workload, **arguments)
        return Run(world, events, flat, outcome, engines)
    with checked() as made_engines:
        engines = made_engines
        outcome = loratory.sim.cluster.simulate(world.workload, **arguments)
    return Run(world, events, flat, outcome, list(made_engines))


def effective_max(world: World, index: int) -> int:
    """Output tokens at which a request ends: its max_tokens, or fewer when the context limit comes first."""
    config, work = world.config, world.workload
    blocks = [0]
    pinned = 0
    if config.memory == "unified":
        blocks += [ceil(ceil(a.bytes / world.kv_bytes_per_token) / config.block_size) for a in world.adapters]
        pinned = sum(size for size, a in zip(blocks[1:], world.adapters, strict=True) if a.pinned)
    limit = (config.num_gpu_blocks - max(blocks) - pinned) * config.block_size + 1
    if config.max_model_len is not None:
        limit = min(limit, config.max_model_len)
    return min(int(work.max_tokens[index]), limit - int(work.prompt_tokens[index]))


def assert_laws(result: Run, everything_sent: bool = True) -> None:
    """Conservation, causality, monotone time, clean end: what holds for every policy, broken ones included."""
    world, work = result.world, result.world.workload
    arrived = Counter(event[2] for event in result.of("Arrived"))
    ended = Counter(event[2] for event in result.of("Ended"))
    if everything_sent:
        assert sorted(arrived, key=int) == [str(i) for i in range(len(work))]
    assert arrived == ended and max(ended.values(), default=1) == 1
    for request_id, event in result.ended.items():
        sequence, index = event.sequence, int(request_id)
        assert event.status in FINAL and sequence.state == event.status
        times = [event.sequence.request.arrival, sequence.admitted_at, sequence.first_token_at, sequence.ended_at]
        known = [time for time in times if time is not None]
        assert known == sorted(known), (request_id, times)
        assert sequence.ended_at == event.now
        most = effective_max(world, index)
        expected = min(int(work.output_tokens[index]), most)
        if event.status == "completed":
            assert sequence.generated == expected, (request_id, sequence.generated, expected)
            parts = (
                sequence.queue_s,
                sequence.load_wait_s,
                sequence.prefill_s,
                sequence.decode_s,
                sequence.preempted_s,
            )
            assert all(part is not None and part >= -1e-9 for part in parts), (request_id, parts)
            e2e = sequence.ended_at - sequence.request.arrival
            assert abs(sum(parts) - e2e) <= 1e-9 * max(1.0, sequence.ended_at), (request_id, parts, e2e)
        else:
            assert sequence.generated < max(expected, 1) or event.status == "aborted"
        if event.status == "rejected" and event.why.startswith("prompt of"):
            assert most < 1
        if most < 1:
            assert event.status == "rejected"
    for turn, before in enumerate([] if work.after is None else work.after.tolist()):
        if before >= 0 and str(turn) in result.ended:  # a turn comes exactly when the one before ended, and its delay
            assert work.delay_s is not None
            due = result.ended[str(before)].now + float(work.delay_s[turn])
            assert result.ended[str(turn)].sequence.request.arrival == due
    for engine, events in zip(result.engines, result.events, strict=True):
        ledger = engine.ledger
        assert not ledger.sequences and not ledger.running and not ledger.waiting and engine.unfinished == 0
        assert ledger.kv.used == sum(a.blocks for a in ledger.adapters.values() if a.tier in ("gpu", "loading"))
        check(ledger, engine.ended_sequences)
        for sequence in engine.ended_sequences:
            name, request = sequence.request_id, sequence.request
            assert engine.sampled[name] == sequence.generated
            if sequence.state == "completed":
                least = request.prompt_tokens - request.cached_tokens
                assert engine.prefill_tokens[name] == least if not sequence.preemptions else True
                assert engine.prefill_tokens[name] >= least
        decoded = sum(e.steps * e.shape.decode_seqs for e in events if isinstance(e, Stepped))
        prefilled = sum(e.shape.prefill_tokens for e in events if isinstance(e, Stepped))
        assert prefilled == sum(engine.prefill_tokens.values())
        firsts = sum(sequence.admissions for sequence in engine.ended_sequences)
        total = sum(engine.sampled.values())
        assert total - firsts <= decoded <= total
        for event in events:
            if isinstance(event, (Arrived, Admitted)):
                assert event.request.arrival <= event.now


def assert_clock(result: Run) -> None:
    """Events come in order of time; a step counts from when it is over."""
    for events in result.events:
        clock = float("-inf")
        for event in events:
            if isinstance(event, Stepped):
                assert event.start <= event.end
                now = event.end
            else:
                now = event.now
            assert now >= clock, f"{event} after {clock}"
            clock = now
