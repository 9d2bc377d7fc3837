"""Metrics of an executor whose adapters and policies change while it runs, and that are read while they are written."""

from __future__ import annotations

from collections import Counter
from threading import Event as Flag
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import examples
from live_run import Order, live_run, spare_adapter
from metered import metered, read_samples, sample, samples
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain_metrics
from roster import POLICIES

from loratory.executor.executor import Executor
from loratory.server.end_reasons import END_REASONS, end_reason
from loratory.server.label_text import label_text
from loratory.server.leaders import OTHER, Leaders
from loratory.server.metric_counts import MOST_NAMES
from loratory.server.metrics import ServerMetrics
from loratory.serving.config import EngineConfig
from loratory.testing import ToyCost, World, adapter, workload, worlds

NAMES = sorted(POLICIES)


@st.composite
def orders(draw: st.DrawFn, world: World) -> list[Order]:
    """Orders at random times of a world's run."""
    adapters = [each.name for each in world.adapters] + ["spare1", "spare2"]
    kinds: dict[str, st.SearchStrategy[Any]] = {
        "swap": st.sampled_from(NAMES),
        "abort": st.integers(0, max(0, len(world.workload) - 1)),
        "add": st.integers(1, 2).map(spare_adapter),
        **dict.fromkeys(("remove", "pin", "unpin", "preload"), st.sampled_from(adapters)),
    }
    times = st.floats(0, float(max(world.workload.arrival, default=0.0)) + 0.3)
    entries = draw(st.lists(st.tuples(times, st.sampled_from(sorted(kinds))), min_size=2, max_size=10))
    return sorted(((at, kind, draw(kinds[kind])) for at, kind in entries), key=lambda order: order[0])


@examples(25)
@given(data=st.data())
def test_adapters_pins_and_policies_are_the_engines(data: st.DataObject) -> None:
    world = data.draw(worlds(memory="slots", async_scheduling=False, turns=False, most=12, adapters=4))
    metrics = ServerMetrics(world.config, "base", adapters=world.adapters, policy="fifo")

    def check(executor: Executor) -> None:
        ledger, counts = executor.engine.ledger, metrics.counts
        residency = counts.residency
        assert residency.known.keys() == ledger.adapters.keys()
        assert residency.pinned.keys() == {name for name, state in ledger.adapters.items() if state.pinned}
        assert residency.gpu.keys() == ledger.slots.on_gpu.keys()
        host = {name for name, state in ledger.adapters.items() if state.tier == "host"}
        assert host == {name for name in residency.host if ledger.adapters[name].tier != "loading"}
        assert (counts.running, counts.waiting) == (len(ledger.running), len(ledger.waiting))

    run = live_run(world, "fifo", data.draw(orders(world)), sink=metrics.sink, each_step=check)
    found = samples(metrics)
    swaps = Counter("put_back" if event[3] else "done" for event in run.of("PolicySwapped"))
    for outcome in ("done", "put_back"):
        assert sample(found, "loratory:policy_swaps_total", outcome=outcome) == swaps[outcome]
    policy = run.of("PolicySwapped")[-1][2] if swaps else "fifo"
    assert sample(found, "loratory:policy_info", policy=policy) == 1
    ends = Counter((status, end_reason(status, why)) for status, why, _ in run.ends.values())
    for status, reasons in END_REASONS.items():
        for reason in reasons:
            number = sample(found, "loratory:requests_ended_total", status=status, reason=reason)
            assert number == ends[status, reason]


def _small(tenants: int = 3, adapters: int = 5, requests: int = 80) -> World:
    made = tuple(adapter(n, name=f"a{n}@1") for n in range(1, adapters + 1))
    config = EngineConfig(max_num_seqs=4, max_num_batched_tokens=64, num_gpu_blocks=40, max_loras=2, max_cpu_loras=3)
    rows = [
        {"at": 0.01 * n, "adapter": n % adapters + 1, "tenant": n % tenants, "prompt": 8, "out": 1 + n % 9}
        for n in range(requests)
    ]
    names = tuple(f"tenant {n}" for n in range(tenants))
    return World(workload(rows, made, tenants=names), made, config, ToyCost())


def test_a_scrape_while_the_engine_runs_is_whole() -> None:
    """Histograms add up, counters never fall, in whatever moment of a step the scrape comes."""
    world = _small(requests=300)
    metrics = ServerMetrics(world.config, "base", adapters=world.adapters)
    over = Flag()
    faults: list[str] = []
    scrapes: list[dict[Any, float]] = []

    def scrape() -> None:
        while not over.is_set() or len(scrapes) < 5:
            found = read_samples(metrics.render()[0])
            if scrapes:
                faults.extend(
                    f"{key} fell from {before} to {found.get(key)}"
                    for key, before in scrapes[-1].items()
                    if key[0].endswith(("_total", "_count", "_sum", "_bucket")) and found.get(key, 0) < before
                )
            scrapes.append(found)

    thread = Thread(target=scrape)
    thread.start()
    metered(world, POLICIES["fair_share"], metrics=metrics)
    over.set()
    thread.join(60)
    assert not thread.is_alive() and not faults and len(scrapes) >= 5
    assert sample(samples(metrics), "vllm:e2e_request_latency_seconds_count") == 300


def test_names_beyond_the_most_are_counted_together() -> None:
    world = _small(tenants=MOST_NAMES + 20, adapters=MOST_NAMES + 20, requests=200)
    found = samples(metered(world, POLICIES["fifo"]).metrics)
    for name, label in (("tenant_requests", "tenant"), ("adapter_requests", "adapter_name")):
        values = {dict(labels)[label]: v for (n, labels), v in found.items() if n == f"loratory:{name}_total"}
        assert len(values) == MOST_NAMES + 1
        assert sum(values.values()) == 200 and values[OTHER] == 200 - sum(v for n, v in values.items() if n != OTHER)
    loaded = [dict(labels)["level"] for n, labels in found if n == "vllm:lora_adapter_loaded"]
    assert sorted(loaded) == ["cpu", "gpu", "gpu"]


def test_a_name_that_is_asked_for_more_takes_the_place_of_the_least() -> None:
    leaders = Leaders(2, list[str])
    for name, number in (("a", 10), ("b", 4), ("c", 7)):
        for _ in range(number):
            leaders.arrived(name).append(name)
    assert list(leaders.own) == ["a", "b"] and leaders.other == ["c"] * 7  # 7 is not half as many again, and one
    leaders.arrived("c").append("c")
    assert list(leaders.own) == ["a", "c"] and leaders.own["c"] == ["c"]  # from zero: what it had stays with others
    assert leaders.of("b") is leaders.other and leaders.arrived(OTHER) is leaders.other
    assert [name for name, _ in leaders.items()] == ["a", "c", OTHER]


def test_names_that_nobody_asks_for_any_more_are_forgotten() -> None:
    leaders = Leaders(2, list[str])
    for number in range(100_000):
        leaders.arrived(f"client {number}")
    assert len(leaders._seen) < 20_000
    for _ in range(20_000):
        leaders.arrived("regular")
    assert "regular" in leaders.own and len(leaders._seen) < 100


ODD = [
    'quote " inside',
    "back\\slash",
    "new\nline",
    "tab\tin it",
    "comma,ted",
    "{brace}",
    "emoji 🙂",
    "lone \ud800",
    "",
]


@pytest.mark.parametrize("name", [*ODD, "x" * 10_000])
def test_labels_with_odd_characters_are_escaped(name: str) -> None:
    world = _small(tenants=1)
    world = World(
        workload([{"adapter": 1, "out": 3}] * 3, world.adapters, tenants=(name,)),
        world.adapters,
        world.config,
        ToyCost(),
    )
    metrics = ServerMetrics(world.config, name, lambda _: name, adapters=world.adapters, policy=name)
    metered(world, POLICIES["fifo"], metrics=metrics, tables=False)
    metrics.response(name, 200)
    for accept, parse in (("", plain_metrics), ("application/openmetrics-text", open_metrics)):
        text, _ = metrics.render(accept)
        found = {s.name: s.labels for family in parse(text.decode()) for s in family.samples}
        shown = label_text(name)
        assert len(shown) <= 120
        assert found["loratory:policy_info"]["policy"] == shown == found["loratory:policy_info"]["model_name"]
        assert found["vllm:lora_adapter_loaded"]["adapter_name"] == shown
        tenants = {s.labels["tenant"] for f in parse(text.decode()) for s in f.samples if "tenant" in s.labels}
        assert tenants == {shown, OTHER}


def test_http_counts_are_bounded_and_none_is_lost_between_threads() -> None:
    metrics = ServerMetrics(EngineConfig(num_gpu_blocks=9), "base", queue_limit=7)

    def count(thread: int) -> None:
        for number in range(2000):
            metrics.response(f"/made/up/{thread}/{number}", 404)
            metrics.response("/v1/completions", 200)
            metrics.refused("queue")
            metrics.refused(f"reason {number}")
            metrics.swap_refused()

    threads = [Thread(target=count, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = samples(metrics)
    assert sample(found, "loratory:http_responses_total", route="/v1/completions", status="200") == 8000
    assert sum(v for (name, _), v in found.items() if name == "loratory:http_responses_total") == 16_000
    assert sum(name == "loratory:http_responses_total" for name, _ in found) <= 250
    assert sample(found, "loratory:requests_refused_total", reason="queue") == 8000
    assert sample(found, "loratory:policy_swaps_total", outcome="refused") == 8000
    assert sample(found, "loratory:queue_limit") == 7


WHYS = [
    ("completed", "stop", "stop"),
    ("completed", "length", "length"),
    ("rejected", "adapter 'x' is not registered", "adapter"),
    ("rejected", "prompt of 9 tokens and an output do not fit max_model_len 8", "context"),
    ("rejected", "too late", "policy"),
    ("aborted", "aborted by the client", "client"),
    ("aborted", "the server is shutting down", "shutdown"),
    ("failed", "adapter 'x' could not be loaded: no such file", "adapter"),
    ("failed", "its logits are not finite: look for NaN or inf in the adapter's weights", "logits"),
    ("failed", "policy mine.py:Mine failed at 1.0 s: it raised ValueError", "policy"),
    ("failed", "the executor made 3000 plans without serving a token", "policy"),
    ("failed", "KeyError: 'x'", "other"),
]


@pytest.mark.parametrize(("status", "why", "word"), WHYS)
def test_a_reason_is_one_word_out_of_few(status: Any, why: str, word: str) -> None:
    assert end_reason(status, why) == word and word in END_REASONS[status]
