"""ServerMetrics: counts what an engine and its HTTP server do, and renders it for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from threading import Lock

from loratory.server.end_reasons import end_reason
from loratory.server.exposition import Exposition
from loratory.server.label_text import label_text
from loratory.server.metric_counts import AdapterCounts, Counts, Swap, TenantCounts
from loratory.serving.config import EngineConfig
from loratory.serving.events import (
    AdapterAdded,
    AdapterPinned,
    AdapterRemoved,
    Admitted,
    Arrived,
    Decided,
    Ended,
    EventHandlers,
    Evicted,
    HostEvicted,
    Loaded,
    LoadFailed,
    LoadStarted,
    PolicySwapped,
    Preempted,
    Sink,
    Stepped,
)
from loratory.serving.lora import Adapter
from loratory.serving.sequence import Sequence, sequence_of


class _Live:
    """What is known of a request in flight. ``last_at``: the second of its last token."""

    __slots__ = ("adapter", "admitted", "arrival", "engine_adapter", "last_at", "prompt_tokens", "running", "tenant")

    def __init__(
        self,
        arrival: float,
        prompt_tokens: int,
        engine_adapter: str | None,
        adapter: AdapterCounts,
        tenant: TenantCounts,
    ) -> None:
        self.arrival = arrival
        self.prompt_tokens = prompt_tokens
        self.engine_adapter = engine_adapter
        self.adapter = adapter
        self.tenant = tenant
        self.admitted = False
        self.running = False
        self.last_at: float | None = None


class ServerMetrics:
    """Counts of one engine and of the server in front of it.

    `sink` takes the engine's events and `token` each sampled token, both in the engine's thread; they only add to plain
    numbers (`counts`). `render` may be called in any thread, and waits for no step. ``model_name`` labels every metric;
    ``public_name`` gives the name by which clients know an adapter of the engine; ``adapters`` are those that the
    engine begins with, and ``policy`` the spec of its policy. What an adapter, a tenant or a route is called comes from
    outside, so each of these labels has a bounded number of values; the rest is counted as "other".
    """

    def __init__(
        self,
        config: EngineConfig,
        model_name: str,
        public_name: Callable[[str], str] = str,
        *,
        adapters: Iterable[Adapter] = (),
        policy: str = "",
        queue_limit: int | None = None,
        unix_s: Callable[[], float] = time.time,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counts = Counts(config, model_name, adapters, policy, queue_limit)
        self._public_name = public_name
        self._unix_s = unix_s
        self._live: dict[str, _Live] = {}
        self._exposition = Exposition(self.counts, public_name, unix_s, monotonic_s)
        self._rendering = Lock()
        counts = self.counts
        self.sink: Sink = EventHandlers(
            {
                Arrived: self._arrived,
                Admitted: self._admitted,
                Preempted: self._preempted,
                Ended: self._ended,
                Stepped: self._stepped,
                Decided: self._decided,
                LoadStarted: self._load_started,
                Loaded: self._loaded,
                LoadFailed: self._load_failed,
                Evicted: self._evicted,
                HostEvicted: self._host_evicted,
                AdapterAdded: counts.residency.added,
                AdapterRemoved: counts.residency.removed,
                AdapterPinned: counts.residency.pin_changed,
                PolicySwapped: self._swapped,
            }
        )
        """Takes the engine's events."""

    # -- from any thread -------------------------------------------------------------------------------------------

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics as text, and its content type: OpenMetrics where the ``Accept`` header asks for it, else
        Prometheus's own format."""
        with self._rendering:  # scrapes take turns: each makes as much garbage as there are series
            return self._exposition.text(accept)

    @property
    def uptime_s(self) -> float:
        """Seconds since it was made."""
        return self._exposition.uptime_s

    def public_name(self, adapter: str | None) -> str:
        """What clients call an adapter of the engine, or the base model."""
        return self.counts.model_name if adapter is None else self._public_name(adapter)

    def response(self, route: str, status: int) -> None:
        """HTTP answered a request; ``route`` is a template of the app's, such as ``/v1/completions``."""
        self.counts.respond(route, status)

    def refused(self, reason: str) -> None:
        """HTTP refused a request that the engine never saw; ``reason`` is one word out of few, such as ``queue``."""
        self.counts.refuse(reason)

    def swap_refused(self) -> None:
        """A policy did not pass its checks, and was not put in."""
        self.counts.refuse_swap()

    def max_num_seqs(self, limit: int) -> None:
        """An operator changed the limit of running requests."""
        self.counts.max_num_seqs = limit

    # -- in the engine's thread ------------------------------------------------------------------------------------

    def token(self, request_id: str, at_s: float) -> None:
        """A token of a request was sampled at second ``at_s`` of the engine's clock."""
        live = self._live.get(request_id)
        if live is None:
            return
        counts, last_at = self.counts, live.last_at
        live.last_at = at_s
        counts.output_tokens += 1
        live.adapter.output_tokens += 1
        live.tenant.output_tokens += 1
        if last_at is not None:
            counts.itl.observe(at_s - last_at)
            return
        counts.prompt_tokens += live.prompt_tokens
        waited = at_s - live.arrival
        counts.ttft.observe(waited)
        live.adapter.ttft.observe(waited)
        live.tenant.ttft.observe(waited)

    def _arrived(self, event: Arrived) -> None:
        counts, request = self.counts, sequence_of(event.request).request
        adapter = counts.adapters.arrived(label_text(self.public_name(request.adapter)))
        tenant = counts.tenants.arrived(label_text(request.tenant))
        self._live[request.request_id] = _Live(request.arrival, request.prompt_tokens, request.adapter, adapter, tenant)
        counts.waiting += 1
        adapter.requests += 1
        tenant.requests += 1
        tenant.waiting += 1
        tenant.name = request.tenant
        tenant.weight = request.weight
        tenant.queued += 1
        if tenant.queued == 1 and tenant is not counts.tenants.other:
            counts.backlog.begin(tenant)
        if request.adapter is not None:
            self._moved(request.adapter, 0, 1)

    def _admitted(self, event: Admitted) -> None:
        live, counts = self._live[event.request.request_id], self.counts
        if not live.admitted:
            live.admitted = True
            live.tenant.prompt_tokens += live.prompt_tokens
            self._dequeued(live.tenant)
            if event.hit is not None:
                if event.hit:
                    counts.hits += 1
                    live.adapter.hits += 1
                else:
                    counts.misses += 1
                    live.adapter.misses += 1
        live.running = True
        counts.waiting -= 1
        counts.running += 1
        live.tenant.waiting -= 1
        live.tenant.running += 1
        if live.engine_adapter is not None:
            self._moved(live.engine_adapter, 1, -1)

    def _preempted(self, event: Preempted) -> None:
        live, counts = self._live[event.request.request_id], self.counts
        counts.preemptions[event.why] += 1
        live.running = False
        counts.waiting += 1
        counts.running -= 1
        live.tenant.waiting += 1
        live.tenant.running -= 1
        if live.engine_adapter is not None:
            self._moved(live.engine_adapter, -1, 1)

    def _ended(self, event: Ended) -> None:
        sequence, counts = sequence_of(event.request), self.counts
        live = self._live.pop(sequence.request.request_id)
        if not live.admitted:
            self._dequeued(live.tenant)
        if live.running:
            counts.running -= 1
            live.tenant.running -= 1
        else:
            counts.waiting -= 1
            live.tenant.waiting -= 1
        if live.engine_adapter is not None:
            self._moved(live.engine_adapter, -live.running, live.running - 1)
        counts.ended[event.status, end_reason(event.status, event.why)] += 1
        if event.status == "completed":
            self._completed(sequence, live)

    def _completed(self, sequence: Sequence, live: _Live) -> None:
        """A request has all its tokens: where its time went."""
        counts, request, output = self.counts, sequence.request, sequence.generated
        admitted, first, ended = sequence.admitted_at, sequence.first_token_at, sequence.ended_at
        assert admitted is not None and first is not None and ended is not None
        counts.e2e.observe(ended - request.arrival)
        counts.queue.observe(admitted - request.arrival)
        counts.prefill.observe(first - admitted)
        counts.decode.observe(ended - first)
        counts.inference.observe(ended - admitted)
        counts.request_prompt.observe(request.prompt_tokens)
        counts.request_output.observe(output)
        counts.max_tokens.observe(request.max_tokens)
        if output > 1:
            each = (ended - first) / (output - 1)
            counts.tpot.observe(each)
            live.adapter.tpot.observe(each)
        parts = (
            sequence.queue_s, sequence.load_wait_s, sequence.prefill_s, sequence.decode_s, sequence.preempted_s,
        )  # fmt: skip
        for phase, seconds in zip(counts.phases.values(), parts, strict=True):
            phase.observe(seconds or 0.0)

    def _dequeued(self, tenant: TenantCounts) -> None:
        """One of its requests, which had never run, waits no more."""
        tenant.queued -= 1
        if not tenant.queued:
            self.counts.backlog.end(tenant)

    def _moved(self, adapter: str, running: int, waiting: int) -> None:
        """The requests of an adapter that run and that wait are so many more."""
        in_flight = self.counts.in_flight
        number = in_flight.setdefault(adapter, [0, 0])
        number[0] += running
        number[1] += waiting
        if number == [0, 0]:
            del in_flight[adapter]

    def _stepped(self, event: Stepped) -> None:
        counts, shape = self.counts, event.shape
        counts.kv_blocks = event.kv_blocks
        counts.batch_adapters = shape.distinct_adapters
        counts.load_wait_s += event.load_s
        if shape.tokens:
            counts.step_tokens.observe(shape.tokens, event.steps)
            counts.step.observe((event.end - event.start) / event.steps, event.steps)

    def _decided(self, event: Decided) -> None:
        outcome = event.outcome
        if not outcome.ok:
            self.counts.refusals[type(event.action).__name__.lower(), str(outcome.why)] += 1

    def _load_started(self, event: LoadStarted) -> None:
        self._of(event.adapter).loads["host" if event.prefetch else "gpu"] += 1
        self.counts.residency.load_started(event)

    def _loaded(self, event: Loaded) -> None:
        if (took := self.counts.residency.loaded(event)) is not None:
            tier, seconds = took
            self.counts.loads["activate" if tier == "host" else "load"].observe(seconds)

    def _load_failed(self, event: LoadFailed) -> None:
        self._of(event.adapter).failures += 1
        self.counts.residency.load_failed(event)

    def _evicted(self, event: Evicted) -> None:
        self._of(event.adapter).evictions["gpu"] += 1
        self.counts.residency.evicted(event)

    def _host_evicted(self, event: HostEvicted) -> None:
        self._of(event.adapter).evictions["host"] += 1
        self.counts.residency.host_evicted(event)

    def _of(self, adapter: str) -> AdapterCounts:
        return self.counts.adapters.of(label_text(self._public_name(adapter)))

    def _swapped(self, event: PolicySwapped) -> None:
        counts = self.counts
        counts.policy = event.policy
        counts.swaps["put_back" if event.why else "done"] += 1
        counts.swapped.append(Swap(self._unix_s(), event.policy, event.why))
