"""Metered: a world run step by step, as an executor would, with a server's metrics and a recorder as its sinks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from loratory.reports.recorder import Recorder, Records
from loratory.server.metrics import ServerMetrics
from loratory.serving.engine import Engine
from loratory.serving.events import Admitted, Arrived, Decided, Event, EventHandlers, combined
from loratory.serving.plan import StepResult
from loratory.serving.policy import PolicyLike
from loratory.testing import World

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
"""Values by name and labels, those that all metrics share left out."""

MODEL = "base"


@dataclass
class Metered:
    """What a run left: its metrics, its tables, and when each request got its tokens."""

    world: World
    engine: Engine
    metrics: ServerMetrics
    records: Records | None = None
    tokens: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    events: list[Event] = field(default_factory=list)
    """Arrivals, admissions, decisions and failed loads."""
    steps: int = 0

    def table(self, name: str) -> list[dict[str, Any]]:
        """The rows of "requests", "steps" or "events"."""
        assert self.records is not None
        rows: list[dict[str, Any]] = getattr(self.records, name).read().to_pylist()
        return rows


def metered(
    world: World,
    policy: Callable[[], PolicyLike],
    *,
    metrics: ServerMetrics | None = None,
    failing: Collection[int] = (),
    aborted: Collection[tuple[int, int]] = (),
    after_commit: Callable[[Metered], None] = lambda run: None,
    most_steps: int = 1500,
    tables: bool = True,
) -> Metered:
    """Run a world. ``failing``: which loads fail, by number; ``aborted``: (step, place in the workload) pairs.

    ``after_commit`` is called with the run after each step. What is left after ``most_steps`` is aborted. ``tables``:
    whether the recorder's are made, which takes only names that UTF-8 can encode.
    """
    config, cost, work = world.config, world.cost, world.workload
    if metrics is None:
        ticks = count()  # a clock on which every scrape is a second after the one before
        metrics = ServerMetrics(
            config, MODEL, adapters=world.adapters, policy="the-policy", monotonic_s=lambda: next(ticks)
        )
    recorder = Recorder(None)
    kept: list[Event] = []
    listener = EventHandlers(dict.fromkeys((Arrived, Admitted, Decided), kept.append))
    sink = combined(metrics.sink, recorder.sink(0), listener)
    engine = Engine(config, world.adapters, policy(), cost, world.kv_bytes_per_token, sink)
    run = Metered(world, engine, metrics, events=kept)
    requests = [work.request(i) for i in range(len(work))]
    outputs = {request.request_id: int(work.output_tokens[i]) for i, request in enumerate(requests)}
    aborts = defaultdict(list)
    for step, place in aborted:
        aborts[step].append(requests[place % len(requests)].request_id)
    due, loads, loading, now = list(reversed(requests)), 0, list[Any](), 0.0
    while run.steps < most_steps:
        while due and due[-1].arrival <= now:
            engine.submit(due.pop())
        for request_id in aborts[run.steps]:
            engine.abort(request_id)
        while loading and loading[0][0] <= now:
            _, number, name, prefetch = heappop(loading)
            if number in failing:
                engine.load_failed(name, "no such file", prefetch)
            else:
                engine.loaded(name, prefetch)
        plan = engine.plan(now)
        run.steps += 1
        if plan is None:
            times = [due[-1].arrival] if due else []
            times += [loading[0][0]] if loading else []
            times += [engine.wake_at] if engine.wake_at is not None else []
            if not times:
                break
            now = max(now, min(times))
            continue
        engine.expect_loads(plan, now)
        load_s, failed, brought = 0.0, dict[str, str](), set[str]()
        for load in plan.loads:
            name, loads = load.adapter.name, loads + 1
            if load.prefetch or not engine.ledger.slots.sync:
                heappush(loading, (now + load.seconds(cost), loads, name, load.prefetch))
                continue
            if name not in engine.ledger.slots.on_gpu or name in brought:
                continue  # evicted, or evicted and loaded again, before this step began
            brought.add(name)
            load_s += load.seconds(cost)
            if loads in failing:
                heappush(loading, (now, loads, name, False))
                users = [p.sequence for p in plan.prefills] + list(plan.decodes if plan.decode_count else ())
                failed |= {s.request_id: "it could not be loaded" for s in users if s.request.adapter == name}
        end = now + load_s + (cost.step_seconds(plan.shape) if plan.computes else 0.0)
        sampled = list(plan.decodes) if plan.decode_count else []
        sampled += [prefill.sequence for prefill in plan.prefills if prefill.completes]
        finished = []
        for sequence in sampled:
            if sequence.request_id in failed:
                continue
            run.tokens[sequence.request_id].append(end)
            metrics.token(sequence.request_id, end)
            if sequence.generated + 1 >= outputs[sequence.request_id]:
                finished.append(sequence.request_id)
        engine.commit(plan, StepResult(1, finished, load_s, failed or None), end)
        now = end
        after_commit(run)
    engine.end_all(now, "aborted", "the server is shutting down")
    if tables:
        run.records = recorder.close()
    return run


def samples(metrics: ServerMetrics) -> Samples:
    """What `ServerMetrics.render` shows, read by Prometheus's own parser; no series appears twice."""
    return read_samples(metrics.render()[0], metrics.counts.model_name)


def read_samples(text: bytes, model_name: str = MODEL) -> Samples:
    """The same of a text."""
    found: Samples = {}
    for family in text_string_to_metric_families(text.decode()):
        for name, labels, value, *_ in family.samples:
            shared = {("model_name", model_name), ("engine", "0")}
            key = (name, frozenset(set(labels.items()) - shared))
            assert key not in found, f"{key} appears twice"
            found[key] = value
    return found


def sample(found: Samples, name: str, **labels: str) -> float:
    """One value."""
    return found[name, frozenset(labels.items())]
