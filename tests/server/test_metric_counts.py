"""Every metric against a recomputation from the tables that a recorder wrote of the same run."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import examples
from metered import MODEL, Metered, Samples, metered, sample, samples
from roster import POLICIES

from loratory.reports.tenant_service import Demand, service_gap
from loratory.server.end_reasons import FINISHED, end_reason
from loratory.server.leaders import OTHER
from loratory.serving.events import Admitted, Arrived, Decided
from loratory.testing import World, worlds

SLOTS: dict[str, Any] = {"memory": "slots", "async_scheduling": None, "turns": False, "cached": False}
POLICY = st.sampled_from(sorted(POLICIES))
TROUBLE = {
    "failing": st.sets(st.integers(1, 12), max_size=3),
    "aborted": st.lists(st.tuples(st.integers(0, 60), st.integers(0, 30)), max_size=4),
}


def histogram(found: Samples, name: str, values: list[float], **labels: str) -> None:
    """The count, the sum and every bucket of a histogram are those of these values."""
    assert sample(found, f"{name}_count", **labels) == len(values), name
    assert sample(found, f"{name}_sum", **labels) == pytest.approx(math.fsum(values), abs=1e-9), name
    bounds = [dict(key)["le"] for n, key in found if n == f"{name}_bucket" and labels.items() <= dict(key).items()]
    assert len(bounds) > 5 and bounds[-1] == "+Inf"
    for bound in bounds:
        below = int((np.array(values) <= float(bound)).sum())
        assert sample(found, f"{name}_bucket", **labels, le=bound) == below, (name, bound)


@examples(40)
@given(world=worlds(**SLOTS), policy=POLICY, trouble=st.fixed_dictionaries(TROUBLE))
def test_every_metric_is_what_the_tables_say(world: World, policy: str, trouble: dict[str, Any]) -> None:
    run = metered(world, POLICIES[policy], **trouble)
    found, rows = samples(run.metrics), run.table("requests")
    done = [row for row in rows if row["status"] == "completed"]
    assert len(rows) == sum(isinstance(event, Arrived) for event in run.events)

    _requests(run, found, done)
    statuses = Counter((row["status"], end_reason(row["status"], row["why"])) for row in rows)
    for (status, reason), number in statuses.items():
        assert sample(found, "loratory:requests_ended_total", status=status, reason=reason) == number
    assert sum(v for (name, _), v in found.items() if name == "loratory:requests_ended_total") == len(rows)
    for word in ("stop", "length", "abort", "error"):
        number = sum(n for way, n in statuses.items() if FINISHED.get(way) == word)
        assert sample(found, "vllm:request_success_total", finished_reason=word) == number

    first = [times[0] for times in run.tokens.values()]
    arrival = {row["request_id"]: row["arrival"] for row in rows}
    ttft = {i: times[0] - arrival[i] for i, times in run.tokens.items()}
    assert len(first) == len(ttft)
    histogram(found, "vllm:time_to_first_token_seconds", list(ttft.values()))
    gaps = [b - a for times in run.tokens.values() for a, b in pairwise(times)]
    histogram(found, "vllm:inter_token_latency_seconds", gaps)
    assert sample(found, "vllm:generation_tokens_total") == sum(map(len, run.tokens.values()))
    assert sum(map(len, run.tokens.values())) == sum(row["output_tokens"] for row in rows)
    prompts = {row["request_id"]: row["prompt_tokens"] for row in rows}
    assert sample(found, "vllm:prompt_tokens_total") == sum(prompts[i] for i in run.tokens)

    _steps(run, found)
    _loads(run, found)
    _refusals(run, found)
    _adapters(run, found, rows, ttft)
    _tenants(run, found, rows, ttft)
    _idle(found)


def _requests(run: Metered, found: Samples, done: list[dict[str, Any]]) -> None:
    """Where the time of the completed requests went, and how long they were."""
    histogram(found, "vllm:e2e_request_latency_seconds", [r["finish"] - r["arrival"] for r in done])
    histogram(found, "vllm:request_queue_time_seconds", [r["admitted"] - r["arrival"] for r in done])
    histogram(found, "vllm:request_prefill_time_seconds", [r["first_token"] - r["admitted"] for r in done])
    histogram(found, "vllm:request_decode_time_seconds", [r["finish"] - r["first_token"] for r in done])
    histogram(found, "vllm:request_inference_time_seconds", [r["finish"] - r["admitted"] for r in done])
    histogram(found, "vllm:request_prompt_tokens", [r["prompt_tokens"] for r in done])
    histogram(found, "vllm:request_generation_tokens", [r["output_tokens"] for r in done])
    histogram(found, "vllm:request_params_max_tokens", [r["max_tokens"] for r in done])
    long = [r for r in done if r["output_tokens"] > 1]
    tpot = [(r["finish"] - r["first_token"]) / (r["output_tokens"] - 1) for r in long]
    histogram(found, "vllm:request_time_per_output_token_seconds", tpot)
    columns = ("queue_s", "load_wait_s", "prefill_s", "decode_s", "preempted_s")
    phases = ("queue", "adapter_load", "prefill", "decode", "preempted")
    for column, phase in zip(columns, phases, strict=True):
        histogram(found, "loratory:request_time_seconds", [r[column] for r in done], phase=phase)
    whole = sum(sample(found, "loratory:request_time_seconds_sum", phase=phase) for phase in phases)
    assert whole == pytest.approx(sample(found, "vllm:e2e_request_latency_seconds_sum"), abs=1e-9)


def _steps(run: Metered, found: Samples) -> None:
    steps = run.table("steps")
    computed = [s for s in steps if s["prefill_tokens"] + s["decode_seqs"]]
    tokens = [s["prefill_tokens"] + s["decode_seqs"] for s in computed]
    histogram(found, "vllm:iteration_tokens_total", tokens)
    histogram(found, "loratory:step_seconds", [s["end"] - s["start"] for s in computed])
    waited = sum(s["load_s"] for s in steps)
    assert sample(found, "loratory:step_load_wait_seconds_total") == pytest.approx(waited)
    preempted = sum(row["kind"] == "preempted" for row in run.table("events"))
    assert sample(found, "vllm:num_preemptions_total") == preempted
    causes = [sample(found, "loratory:preemptions_total", cause=cause) for cause in ("kv", "policy")]
    assert sum(causes) == preempted


def _loads(run: Metered, found: Samples) -> None:
    """Loads that ended, each paired with the start of its kind before it. A load that overtook its prefetch leaves a
    start without an end."""
    rows = run.table("events")
    started = Counter((row["adapter"], row["kind"]) for row in rows if row["kind"] in ("load", "prefetch"))
    for kind, to in (("load", "gpu"), ("prefetch", "host")):
        for adapter in {a.name for a in run.world.adapters}:
            shown = found.get(("loratory:adapter_loads_total", frozenset({("adapter_name", adapter), ("to", to)})), 0)
            assert shown <= started[adapter, kind]
        total = sum(
            v for (n, labels), v in found.items() if n == "loratory:adapter_loads_total" and ("to", to) in labels
        )
        assert total == sum(n for (_, k), n in started.items() if k == kind)
    begun = Counter(row["tier"] == "host" for row in rows if row["kind"] in ("load", "prefetch"))
    ended = Counter[bool]()
    for transition, activates in (("load", False), ("activate", True)):
        ended[activates] = int(sample(found, "vllm:lora_adapter_load_seconds_count", transition=transition))
        assert ended[activates] <= begun[activates]
    if run.engine.ledger.slots.sync:
        waited = sum(sample(found, "vllm:lora_adapter_load_seconds_sum", transition=t) for t in ("load", "activate"))
        if not any(row["kind"] == "prefetch" for row in rows):
            assert ended.total() == begun.total()
            stalls = sum(step["load_s"] for step in run.table("steps"))
            assert waited == pytest.approx(stalls, abs=1e-9)


def _refusals(run: Metered, found: Samples) -> None:
    refused = Counter(
        (type(event.action).__name__.lower(), event.outcome.why)
        for event in run.events
        if isinstance(event, Decided) and not event.outcome
    )
    shown = {key: v for key, v in found.items() if key[0] == "loratory:policy_refusals_total"}
    assert {(dict(k[1])["action"], dict(k[1])["word"]): v for k, v in shown.items()} == refused
    assert {a: dict(w) for a, w in run.engine.refusals.items()} == {
        action: {w: n for (a, w), n in refused.items() if a == action} for action, _ in refused
    }


def _adapters(run: Metered, found: Samples, rows: list[dict[str, Any]], ttft: dict[str, float]) -> None:
    hits = Counter[tuple[str, bool]]()
    seen: set[str] = set()
    adapter_of = {row["request_id"]: row["adapter"] or MODEL for row in rows}
    for event in run.events:
        if isinstance(event, Admitted) and (i := event.request.request_id) not in seen:
            seen.add(i)
            if event.hit is not None:
                hits[adapter_of[i], event.hit] += 1
    for name in set(adapter_of.values()):
        mine = [row for row in rows if adapter_of[row["request_id"]] == name]
        label = {"adapter_name": name}
        assert sample(found, "loratory:adapter_requests_total", **label) == len(mine)
        tokens = sum(row["output_tokens"] for row in mine)
        assert sample(found, "loratory:adapter_output_tokens_total", **label) == tokens
        assert sample(found, "loratory:adapter_hits_total", **label) == hits[name, True]
        assert sample(found, "loratory:adapter_misses_total", **label) == hits[name, False]
        first = [t for i, t in ttft.items() if adapter_of[i] == name]
        histogram(found, "loratory:adapter_time_to_first_token_seconds", first, **label)
    assert sample(found, "loratory:adapter_requests_total", adapter_name=OTHER) == 0


def _tenants(run: Metered, found: Samples, rows: list[dict[str, Any]], ttft: dict[str, float]) -> None:
    for tenant in {row["tenant"] for row in rows}:
        mine = [row for row in rows if row["tenant"] == tenant]
        assert sample(found, "loratory:tenant_requests_total", tenant=tenant) == len(mine)
        service = sum(row["prompt_tokens"] for row in mine if row["admitted"] is not None)
        service += 2 * sum(row["output_tokens"] for row in mine)
        assert sample(found, "loratory:tenant_service_tokens_total", tenant=tenant) == service
        ids = {row["request_id"] for row in mine}
        first = [t for i, t in ttft.items() if i in ids]
        histogram(found, "loratory:tenant_time_to_first_token_seconds", first, tenant=tenant)


def _idle(found: Samples) -> None:
    """Every gauge of what is in flight is back at zero."""
    for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"):
        assert sample(found, name) == 0
    in_flight = ("vllm:num_requests_waiting_by_reason", "loratory:tenant_requests_running")
    in_flight += ("loratory:tenant_requests_waiting", "loratory:tenant_service_gap_tokens")
    assert not any(value for (name, _), value in found.items() if name in in_flight)
    (info,) = [dict(labels) for name, labels in found if name == "vllm:lora_requests_info"]
    assert info["running_lora_adapters"] == info["waiting_lora_adapters"] == ""


@examples(25)
@given(world=worlds(**SLOTS, adapters=6), policy=POLICY, trouble=st.fixed_dictionaries(TROUBLE))
def test_gauges_are_the_ledgers_after_each_step(world: World, policy: str, trouble: dict[str, Any]) -> None:
    """Levels of adapters, requests, blocks, who runs and who waits: after each step as the ledger has them."""

    def check(run: Metered) -> None:
        ledger, counts = run.engine.ledger, run.metrics.counts
        assert counts.residency.gpu.keys() == ledger.slots.on_gpu.keys()
        held = {n for n, state in ledger.adapters.items() if state.tier == "host"}
        extra = counts.residency.host.keys() - held
        assert held <= counts.residency.host.keys()
        assert all(ledger.adapters[name].tier == "loading" for name in extra)  # on its way from host memory
        assert counts.residency.host.keys() <= ledger.host_cache.held.keys()
        running, waiting = len(ledger.running), len(ledger.waiting)
        assert (counts.running, counts.waiting) == (running, waiting)
        for name, state in ledger.adapters.items():
            assert counts.in_flight.get(name, [0, 0]) == [state.running, state.waiting]
        for name, tenant in ledger.tenants.items():
            mine = counts.tenants.own[name]
            assert (mine.running, mine.waiting) == (tenant.running, tenant.waiting)
            assert mine.service == tenant.admitted_tokens + 2 * tenant.output_tokens
        queued = {s.tenant.name for s in ledger.waiting.by_ticket.values() if not s.admissions}
        assert {counts.tenants.own[name] for name in queued} == counts.backlog.gaps().keys()
        if run.steps in (3, 12, 40, 120):
            _shown(run)

    metered(world, POLICIES[policy], after_commit=check, **trouble)


def _shown(run: Metered) -> None:
    """What is rendered in the middle of a run."""
    found, ledger = samples(run.metrics), run.engine.ledger
    shown = {dict(labels)["adapter_name"]: dict(labels) for n, labels in found if n == "vllm:lora_adapter_loaded"}
    for name, state in ledger.adapters.items():
        if state.tier in ("gpu", "host"):
            level = "gpu" if state.tier == "gpu" else "cpu"
            pinned = str(state.pinned).lower()
            labels = {"adapter_name": name, "level": level, "rank": str(state.rank), "pinned": pinned}
            assert shown[name] == labels
        elif state.tier != "loading":
            assert name not in shown
    assert sample(found, "vllm:num_gpu_loaded_lora_adapters") == len(ledger.slots.on_gpu)
    assert len(ledger.slots.on_gpu) <= sample(found, "vllm:max_gpu_lora_adapters") == run.world.config.max_loras
    most = sample(found, "loratory:max_cpu_lora_adapters")
    assert sample(found, "vllm:num_cpu_loaded_lora_adapters") <= most == run.world.config.host_slots
    (info,) = [dict(labels) for name, labels in found if name == "vllm:lora_requests_info"]
    for word, count in (("running", "running"), ("waiting", "waiting")):
        names = [name for name in info[f"{word}_lora_adapters"].split(",") if name]
        assert sorted(names) == sorted(n for n, state in ledger.adapters.items() if getattr(state, count))
    deferred = sample(found, "vllm:num_requests_waiting_by_reason", reason="deferred")
    capacity = sample(found, "vllm:num_requests_waiting_by_reason", reason="capacity")
    assert deferred + capacity == sample(found, "vllm:num_requests_waiting") == len(ledger.waiting)
    assert deferred == sum(s.waiting for s in ledger.adapters.values() if s.tier != "gpu")


@examples(40)
@given(world=worlds(**SLOTS, adapters=3, deadlines=False), policy=POLICY)
def test_a_tenants_gap_is_exactly_what_the_ledgers_history_says(world: World, policy: str) -> None:
    """From the service of all tenants after each step, and since which step each has had a new request waiting."""
    service: list[dict[str, float]] = [{}]
    since: dict[str, int] = {}
    widest: list[float] = []

    def check(run: Metered) -> None:
        ledger = run.engine.ledger
        waits = {s.tenant.name for s in ledger.waiting.by_ticket.values() if not s.admissions}
        for name in since.keys() - waits:
            del since[name]
        since.update({name: len(service) - 1 for name in waits - since.keys()})
        now = {name: t.admitted_tokens + 2.0 * t.output_tokens for name, t in ledger.tenants.items()}
        service.append(now)
        expected = dict.fromkeys(since, 0.0)
        for f in since:
            for g in since:
                then = service[max(since[f], since[g])]
                had = {name: now[name] - then.get(name, 0.0) for name in (f, g)}
                expected[f] = max(expected[f], had[g] - had[f])
        counts = run.metrics.counts
        names = {tenant: name for name, tenant in counts.tenants.own.items()}
        assert {names[tenant]: gap for tenant, gap in counts.backlog.gaps().items()} == expected
        widest.append(max(expected.values(), default=0.0))

    run = metered(world, POLICIES[policy], after_commit=check)
    _within_the_report(run, max(widest, default=0.0))


def _within_the_report(run: Metered, largest: float) -> None:
    """The report looks at every window in which two tenants wait; the live gauge at those that last until now."""
    rows = run.table("requests")
    if any(row["status"] != "completed" and row["admitted"] is not None for row in rows):
        return  # the report spreads the tokens of a request that was cut short over time that it did not have
    names = sorted({row["tenant"] for row in rows})
    columns = [
        [float("nan") if row[column] is None else row[column] for row in rows]
        for column in ("arrival", "admitted", "first_token", "finish", "prompt_tokens", "output_tokens")
    ]
    tenant = np.array([names.index(row["tenant"]) for row in rows], np.int64)
    demand = Demand(tenant, *(np.array(column, np.float64) for column in columns))
    _, found = service_gap(demand, np.ones(max(1, len(names))))
    # At an admission the prompt counts here; in the report at the first token, and output in between evenly.
    slack = 2 * max((row["prompt_tokens"] + 2 * row["output_tokens"] for row in rows), default=0)
    assert largest <= (found.max() if len(found) else 0.0) + slack
