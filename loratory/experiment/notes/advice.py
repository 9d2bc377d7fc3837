"""advice: what to try next, from what limited a run; only settings that build, and that help by the cost model."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, isfinite
from typing import Any

from loratory.errors import InputError
from loratory.experiment.notes.decode_ceiling import ceiling
from loratory.experiment.resolve import Built, build
from loratory.reports.slo import further_targets
from loratory.scenarios.schema import Scenario
from loratory.serving.ledger import KV_CACHE
from loratory.serving.workload import Workload

WORTH = 1.05
"""A change is suggested when it raises what it is for by at least this factor."""

BUSY = 0.7
"""The share of its ceiling at which a replica should run."""

SPARE = 0.75
"""Slots are called unused when at most this share of them was ever held."""

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def advise(scenario: Scenario, built: Built, workload: Workload, run: Mapping[str, Any]) -> list[str]:
    """At most two sentences for the ``run`` object of a simulated run, the one about its bottleneck first."""
    requests = run["requests"]
    if not isfinite(ceiling(built, workload)):
        return []
    adviser = _Adviser(scenario, built, workload, run)
    larger = adviser.own_blocks() if any(KV_CACHE in why for why in run["rejected"]["why"]) else ""
    if requests["rejected"] == requests["submitted"]:
        return [larger] if larger else []
    limit = run["bottleneck"]
    advice = {
        "slots": adviser.slots,
        "seqs": adviser.seats,
        "kv_blocks": adviser.kv,
        "tokens": adviser.tokens,
        "compute": adviser.replicas,
        "loads": adviser.loads,
        "policy": adviser.policy,
        "none": adviser.fewer_replicas,
    }.get(limit, str)
    texts = [larger] if larger else [adviser.replicas()] if adviser.overloaded() else []
    if not texts or limit not in ("compute", "seqs", "tokens"):
        text = advice()
        if not texts or (text not in texts and adviser.spread() not in text):
            texts.append(text)
    if limit not in ("slots", "kv_blocks"):
        texts.append(adviser.unused_slots())
    return [text for text in texts if text][:2]


class _Adviser:
    def __init__(self, scenario: Scenario, built: Built, workload: Workload, run: Mapping[str, Any]) -> None:
        self._scenario, self._built, self._workload, self._run = scenario, built, workload, run
        self._engine = built.engine
        self._top = ceiling(built, workload)

    def _with(self, **change: Any) -> Built | None:
        """The scenario built with other engine settings; None where it cannot be, or has no room on the GPU."""
        engine = self._scenario.engine.model_copy(update=change)
        host = engine.max_cpu_loras
        if engine.max_num_batched_tokens < engine.max_num_seqs or (host is not None and host < engine.max_loras):
            return None
        try:
            other = build(self._scenario.model_copy(update={"engine": engine}))
        except InputError:
            return None
        return None if len(other.notes) > len(self._built.notes) else other

    def overloaded(self) -> bool:
        """Whether more output tokens are asked for than the replicas can give by the cost model."""
        gpus = self._scenario.cluster.count * self._engine.tensor_parallel_size
        return self._workload.concurrency is None and self._offered() > self._top * gpus

    def slots(self) -> str:
        """More slots, as many as fit; fewer ranks to a slot where that is what it takes."""
        now, seen = self._engine.max_loras, self._run["adapters"]["seen"]
        wanted = sorted({min(seen, round(now * factor)) for factor in (2, 1.5, 1.25)} - {now}, reverse=True)
        wanted = [slots for slots in wanted if slots > now]
        host = self._engine.max_cpu_loras
        for slots in wanted:
            more = {"max_cpu_loras": slots} if host is not None and host < slots else {}
            other = self._with(max_loras=slots, **more)
            if other is not None:
                also = f" and engine.max_cpu_loras {slots}" if more else ""
                return f"Try engine.max_loras {slots}{also}: it fits, {self._left(other)}.{self._router()}"
        least = self._least_rank()
        for slots in wanted if least else []:
            other = self._with(max_loras=slots, max_lora_rank=least)
            if other is not None:
                return (
                    f"No more slots of rank {self._engine.max_lora_rank} fit, but the largest adapter needs {least}: "
                    f"try engine.max_lora_rank {least} with engine.max_loras {slots}, {self._left(other)}."
                )
        if not wanted:
            return ""
        return f"No more slots fit beside model and KV cache: try {self.spread()}."

    def seats(self) -> str:
        """More running requests, if a larger batch gives more by the cost model."""
        return self._larger("max_num_seqs", self._engine.max_num_seqs)

    def tokens(self) -> str:
        """More tokens in a step, under the same condition."""
        return self._larger("max_num_batched_tokens", self._engine.max_num_batched_tokens)

    def own_blocks(self) -> str:
        """To leave out a number of KV blocks below what the GPU has room for; empty where there is none."""
        now = self._engine.require_blocks()
        other = None if self._scenario.engine.num_gpu_blocks is None else self._with(num_gpu_blocks=None)
        blocks = 0 if other is None else other.engine.require_blocks()
        if blocks < WORTH * now:
            return ""
        return f"Try to leave out engine.num_gpu_blocks: it gives {blocks:,} KV blocks instead of {now:,}."

    def kv(self) -> str:
        """What gives more KV blocks: unused slots, unused ranks, memory that the engine leaves free."""
        engine, used = self._scenario.engine, self._run["usage"]["slots"]
        options: list[dict[str, Any]] = []
        if used["held"] < engine.max_loras and engine.memory == "slots":
            options.append({"max_loras": max(1, used["held"])})
        if least := self._least_rank():
            options.append({"max_lora_rank": least})
        if engine.gpu_memory_utilization < 0.95:
            options.append({"gpu_memory_utilization": 0.95})
        now, kept = self._engine.require_blocks(), self._engine.watermark_blocks
        if now >= WORTH * max(1, now - kept):
            return f"Try engine.watermark 0: it now keeps {kept:,} of {now:,} KV blocks from new requests."
        for change in options:
            other = self._with(**change)
            blocks = 0 if other is None else other.engine.require_blocks()
            if blocks >= WORTH * now:
                ((key, value),) = change.items()
                return f"Try engine.{key} {value}: it gives {blocks:,} KV blocks instead of {now:,}."
        return (
            self.own_blocks()
            or f"KV blocks are short, and no engine setting gives more than a few: try {self.spread()}."
        )

    def replicas(self) -> str:
        """How many replicas this load needs at least."""
        now = self._scenario.cluster.count
        one = self._top * self._engine.tensor_parallel_size
        if self._workload.concurrency is not None:
            return f"The GPU computes all the time: try more replicas or a faster GPU; {self._per_replica(one)}."
        offered = self._offered()
        if not offered:
            return f"Requests come in one burst: try more replicas or a faster GPU; {self._per_replica(one)}."
        need = ceil(offered / one)
        load = f"the requests ask for {offered:,.0f} output tokens/s, and {self._per_replica(one)}"
        if need > now:
            return f"Try cluster.replicas {ceil(offered / (BUSY * one))}: {load}, so fewer than {need} cannot keep up."
        return (
            f"The mean load is not too high, but bursts are ({load}): try another replica, or longer times in the SLO."
        )

    def loads(self) -> str:
        """Fewer or cheaper loads."""
        adapters, engine = self._run["adapters"], self._engine
        seen = adapters["seen"]
        below = adapters["loads"] - adapters["loads_from_host"]
        again = below - seen * self._scenario.cluster.count
        if again > 0.3 * adapters["loads"] and engine.host_slots < seen:
            return (
                f"Try engine.max_cpu_loras {seen}: {again:,} of {adapters['loads']:,} loads brought an adapter back "
                f"from below host memory, which holds {engine.host_slots} of {seen} adapters."
            )
        if engine.adapter_loading == "sync":
            return "Try engine.adapter_loading async: steps then do not wait for loads."
        return self.slots()

    def policy(self) -> str:
        """Nothing was full, so another policy would have admitted."""
        name = self._run["policy"]
        return "" if name == "fifo" else f"Compare with fifo, which admits whatever fits, while {name} waits."

    def fewer_replicas(self) -> str:
        """Whether fewer replicas would do."""
        now = self._scenario.cluster.count
        if now == 1 or self._workload.concurrency is not None or self._run["slo"]["met"] is False:
            return ""
        one = self._top * self._engine.tensor_parallel_size
        offered = self._offered()
        if not offered:
            return ""
        least = max(1, ceil(offered / (BUSY * one)))
        fewer = next((count for count in range(least, now) if self._room_on(count)), None)
        if fewer is None:
            return ""
        load = f"the requests ask for {offered:,.0f} output tokens/s, and {self._per_replica(one)}"
        return f"Try cluster.replicas {fewer}: {load}; what was in use at the peak would fit."

    def _room_on(self, count: int) -> bool:
        """Whether ``count`` replicas hold what was in use at the peak, and keep the SLO if times grow as the load does.

        The tokens of a step do not matter here: one long prompt fills a step on any number of replicas.
        """
        factor = self._scenario.cluster.count / count
        usage, slo = self._run["usage"], self._run["slo"]
        full = any(
            usage[name]["limit"] is not None and usage[name]["max"] * factor > usage[name]["limit"]
            for name in ("slots", "kv_blocks", "seqs")
        )
        slow = any(
            slo["values"].get(key) is None or slo["values"][key] * factor > limit
            for key, limit in (slo["limits"] or {}).items()
            if key in slo["values"] and key.endswith("_s")
        )
        # How a share of requests would change, its value does not tell.
        late = any(
            target["unit"] == "share" or target["value"] is None or target["value"] * factor > target["limit"]
            for target in further_targets(slo)
        )
        return not (full or slow or late)

    def unused_slots(self) -> str:
        """Slots that no adapter ever held take memory from the KV cache."""
        held, now = self._run["usage"]["slots"]["held"], self._engine.max_loras
        if not 0 < held <= SPARE * now or self._engine.memory != "slots":
            return ""
        other = self._with(max_loras=held)
        more = 0 if other is None else other.engine.require_blocks() - self._engine.require_blocks()
        frees = f", and frees room for {more:,} KV blocks" if more > 0 else ""
        was = "was" if now - held == 1 else "were"
        return f"{now - held} of the {now} slots {was} never used: engine.max_loras {held} would do{frees}."

    def _larger(self, key: str, now: int) -> str:
        other = self._with(**{key: 2 * now})
        top = 0.0 if other is None else ceiling(other, self._workload)
        if other is not None and top >= WORTH * self._top:
            return (
                f"Try engine.{key} {2 * now}: with it the cost model's ceiling is {top:,.0f} instead of "
                f"{self._top:,.0f} output tokens/s per GPU."
            )
        same = f"the cost model's ceiling stays at {self._top:,.0f} output tokens/s per GPU"
        return f"A larger engine.{key} would not help: {same}. {self.replicas()}"

    def _left(self, other: Built) -> str:
        blocks, used = other.engine.require_blocks(), self._run["usage"]["kv_blocks"]["max"]
        if blocks < used:
            return f"but leaves {blocks:,} KV blocks, where up to {used:,} were in use: they are the next limit"
        return f"and leaves {blocks:,} KV blocks, of which up to {used:,} were in use"

    def _least_rank(self) -> int:
        """The smallest ``max_lora_rank`` that every adapter fits; 0 where it is not below the present one."""
        largest = max((adapter.rank for adapter in self._built.adapters), default=0)
        least = next((rank for rank in _RANKS if rank >= largest), largest)
        return least if 0 < least < self._engine.max_lora_rank else 0

    def spread(self) -> str:
        """What gives more room where no setting of the engine does."""
        one = "a GPU with more memory, a larger tensor_parallel_size, or more replicas"
        return one if self._scenario.cluster.count > 1 else f"{one} with router lora_affinity"

    def _router(self) -> str:
        """A router that sends an adapter's requests to fewer replicas needs fewer slots on each."""
        cluster = self._scenario.cluster
        if cluster.count == 1 or cluster.router not in ("round_robin", "least_loaded"):
            return ""
        return " Or cluster.router lora_affinity, under which the requests of an adapter share its slot."

    def _offered(self) -> float:
        """Output tokens asked for, a second, from the first arrival to the last; 0 where they come in one burst.

        A burst is shorter than twice what it takes to serve a request: it has no rate that would go on.
        """
        span = float(self._workload.arrival[-1] - self._workload.arrival[0])
        waits = self._run["waits_s"]
        served = (waits["prefill_s"] or 0.0) + (waits["decode_s"] or 0.0)
        return 0.0 if span <= 2 * served or span <= 0 else float(self._workload.output_tokens.sum()) / span

    @staticmethod
    def _per_replica(one: float) -> str:
        return f"by the cost model a replica gives at most {one:,.0f} output tokens/s"
