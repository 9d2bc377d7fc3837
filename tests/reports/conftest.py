"""Synthetic event streams: what an engine would tell of a run, made from a seed without running one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loratory.reports import Recorder, Records, RunInfo, RunReport, summarise
from loratory.serving.actions import OK, REFUSED, Admit, Evict, Load
from loratory.serving.events import (
    Admitted,
    Arrived,
    Decided,
    Ended,
    Event,
    Evicted,
    Loaded,
    LoadStarted,
    Preempted,
    Stepped,
)
from loratory.serving.plan import BatchShape
from loratory.serving.request import Request
from loratory.serving.sequence import Sequence
from loratory.serving.usage import AdapterState, TenantState
from loratory.serving.views import RequestView


def sequence(request: Request, generated: int = 0, allowed: int | None = None) -> Sequence:
    """A Sequence outside any ledger, which ended after so many output tokens."""
    clock = [0]
    adapter, tenant = AdapterState(None, 0, {}, clock), TenantState(request.tenant, {}, clock)
    made = Sequence(request, adapter, tenant, clock, request.max_tokens if allowed is None else allowed)
    made.view = RequestView(made)
    made.last_generated = generated
    return made


@dataclass
class Stream:
    """A made-up run of ``requests`` requests: Poisson arrivals, Zipf adapters, one tenant an adapter.

    Each waits, loads, prefills, decodes and may be preempted for random times; a share is turned away or never served.
    """

    seed: int = 0
    requests: int = 200
    rate: float = 5.0
    adapters: int = 8
    slowness: float = 1.0
    rejected: float = 0.05
    failed: float = 0.03
    tenants: int | None = None
    adapter_name: str = "adapter-"
    sequences: list[Sequence] = field(default_factory=list)

    def events(self) -> Iterator[Event]:
        """The events, in order of time as far as it matters."""
        rng = np.random.default_rng(self.seed)
        made: list[tuple[float, int, Event]] = []
        now = 0.0
        shares = 1 / np.arange(1, self.adapters + 1) if self.adapters else np.ones(1)
        for number in range(self.requests):
            now += float(rng.exponential(1 / self.rate))
            made += [(e[0], len(made) + k, e) for k, e in enumerate(self._request(rng, number, now, shares))]
        end = max((at for at, _, _ in made), default=0.0)
        step = 0.0
        while step < end:
            length = float(rng.uniform(0.01, 0.3))
            made.append((step + length, len(made), self._step(rng, step, step + length)))
            step += length + (float(rng.uniform(0, 0.2)) if rng.random() < 0.2 else 0.0)
        yield from (event for _, _, event in sorted(made, key=lambda item: item[:2]))

    def _request(self, rng: np.random.Generator, number: int, now: float, shares: Any) -> Iterator[Any]:
        place = int(rng.choice(len(shares), p=shares / shares.sum()))
        adapter = f"{self.adapter_name}{place}" if self.adapters and rng.random() > 0.1 else None
        tenant = adapter or "base" if self.tenants is None else f"tenant-{number % self.tenants}"
        deadline = now + 9.0 if rng.random() < 0.2 else None
        prompt = int(rng.integers(1, 2000))
        request = Request(str(number), adapter, now, prompt, int(rng.integers(1, 300)), tenant, deadline=deadline)
        output = int(rng.integers(1, request.max_tokens + 1))
        seq = sequence(request, 0, int(rng.integers(output, request.max_tokens + 1)))
        self.sequences.append(seq)
        yield Arrived(now, seq.view)
        fate = rng.random()
        if fate < self.rejected + self.failed:
            seq.ended_at = now + float(rng.exponential(2.0))
            status, why = ("rejected", "deadline") if fate < self.rejected else ("failed", "never scheduled")
            yield Ended(seq.ended_at, seq.view, status, why)
            return
        queue, load, prefill, decode, lost = (float(x) * self.slowness for x in rng.exponential((1, 0.1, 0.2, 2, 0.5)))
        seq.hit = None if adapter is None else bool(rng.random() < 0.7)
        seq.load_wait_s = load if seq.hit is False else 0.0
        seq.preemptions = int(rng.random() < 0.1)
        seq.preempted_s = lost if seq.preemptions else 0.0
        seq.preempted_before_first_s = seq.preempted_s if rng.random() < 0.3 else 0.0
        seq.admitted_at = now + queue + seq.load_wait_s
        seq.first_token_at = seq.admitted_at + prefill + seq.preempted_before_first_s
        after = seq.preempted_s - seq.preempted_before_first_s
        seq.ended_at = seq.first_token_at + (decode + after if output > 1 else 0.0)
        if output == 1:
            seq.preempted_s = seq.preempted_before_first_s
        seq.last_generated = output
        if adapter is not None and seq.hit is False:
            yield Decided(now + queue, Load(adapter), OK)
            yield LoadStarted(now + queue, adapter, "host", False)
            yield Loaded(seq.admitted_at, adapter, False)
            yield Evicted(seq.admitted_at, adapter)
            yield Decided(seq.admitted_at, Evict(adapter), REFUSED["in_use"])
        yield Decided(seq.admitted_at, Admit(seq.view), OK)
        yield Admitted(seq.admitted_at, seq.view, seq.hit)
        if seq.preemptions:
            yield Preempted(seq.first_token_at, seq.view, "kv")
        yield Ended(seq.ended_at, seq.view, "completed", "length")

    @staticmethod
    def _step(rng: np.random.Generator, start: float, end: float) -> Stepped:
        prefills, decodes = int(rng.integers(0, 3)), int(rng.integers(0, 40))
        tokens = prefills * int(rng.integers(1, 400))
        steps = int(rng.integers(1, 9)) if not prefills and decodes else 1
        shape = BatchShape(tokens, tokens * 10.5, prefills, decodes, decodes * 300, 3, 48, 16, decodes, decodes * 16)
        waiting, running = (int(x) for x in rng.integers(0, 20, 2))
        return Stepped(start, end, steps, shape, waiting, running, 4, 1, decodes * 20, 0.0)


def record(events: Iterator[Event], folder: Path | None = None, replica: int = 0) -> Records:
    """Records of one engine's events."""
    with Recorder(folder) as recorder:
        sink = recorder.sink(replica)
        for event in events:
            sink(event)
    return recorder.close()


def make_report(policy: str = "fifo", seed: int = 0, timeline: int = 400, **options: Any) -> RunReport:
    """A finished report of a synthetic run; ``options`` for `Stream` or `RunInfo`."""
    known = {name: options.pop(name) for name in list(options) if name in Stream.__dataclass_fields__}
    stream = Stream(seed=seed, **known)
    info = {"scenario": "synthetic", "slo": {"ttft_p99_s": 6.0}, "max_loras": 8, "submitted": stream.requests} | options
    return summarise(record(stream.events()), RunInfo(policy=policy, seed=seed, **info), timeline)


@pytest.fixture(name="make_stream")
def stream_class() -> type[Stream]:
    """`Stream`."""
    return Stream


@pytest.fixture(name="record")
def record_function() -> Callable[..., Records]:
    """`record`."""
    return record


@pytest.fixture(name="report")
def report_function() -> Callable[..., RunReport]:
    """`make_report`."""
    return make_report


@pytest.fixture(name="sequence")
def sequence_function() -> Callable[..., Sequence]:
    """`sequence`."""
    return sequence
