"""Loratory metrics: those of a server's counts that no other server has, under names of our own."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter

from prometheus_client import Metric

from loratory.server.end_reasons import END_REASONS
from loratory.server.label_text import label_text
from loratory.server.leaders import OTHER
from loratory.server.metric_counts import Counts
from loratory.server.metric_maker import MetricMaker

_TIERS = ("gpu", "host")


def engine_metrics(counts: Counts, make: MetricMaker, uptime_s: float) -> Iterator[Metric]:
    """What an engine and its server have one of."""
    yield from _policy(counts, make)
    yield from _engine(counts, make)
    yield from _http(counts, make)
    yield make.gauge("loratory:uptime_seconds", "Seconds since the start.", uptime_s)


def _policy(counts: Counts, make: MetricMaker) -> Iterator[Metric]:
    policy = label_text(counts.policy)
    yield make.gauges("loratory:policy_info", "The policy in force.", ("policy",), [((policy,), 1)])
    yield make.counters(
        "loratory:policy_swaps",
        "Policies put in: done by order; put_back: one failed, and the one before it returned; refused by a check.",
        ("outcome",),
        [
            (("done",), counts.swaps["done"]),
            (("put_back",), counts.swaps["put_back"]),
            (("refused",), counts.swaps_refused),
        ],
    )
    last = max((swap.unix_s for swap in counts.swapped.copy()), default=0.0)
    yield make.gauge("loratory:policy_swap_timestamp_seconds", "Unix time of the last swap; 0 before it.", last)
    yield make.counters(
        "loratory:policy_refusals",
        "Actions of the policy that the engine refused, by its word for why.",
        ("action", "word"),
        counts.refusals.copy().items(),
    )


def _engine(counts: Counts, make: MetricMaker) -> Iterator[Metric]:
    preempted, ended = counts.preemptions.copy(), counts.ended.copy()
    causes = [((cause,), preempted[cause]) for cause in ("kv", "policy")]
    yield make.counters("loratory:preemptions", "Preemptions by cause.", ("cause",), causes)
    ways = [(status, reason) for status, reasons in END_REASONS.items() for reason in reasons]
    yield make.counters(
        "loratory:requests_ended",
        "Requests by final status and reason.",
        ("status", "reason"),
        [(way, ended[way]) for way in ways],
    )
    yield make.histograms(
        "loratory:request_time_seconds",
        "Histogram of the parts of a completed request's time, which together are all of it.",
        ("phase",),
        [((phase,), buckets) for phase, buckets in counts.phases.items()],
    )
    yield make.histogram("loratory:step_seconds", "Histogram of the time of a step.", counts.step)
    waited = counts.load_wait_s
    yield make.counter("loratory:step_load_wait_seconds", "Time that steps waited for adapter loads.", waited)
    yield make.gauge("loratory:batch_lora_adapters", "Distinct adapters in the last step.", counts.batch_adapters)
    yield make.gauge("loratory:max_num_seqs", "Most requests that run at once, in force.", counts.max_num_seqs)
    places, known = counts.config.host_slots, len(counts.residency.known)
    yield make.gauge("loratory:max_cpu_lora_adapters", "Number of adapters that host memory holds.", places)
    yield make.gauge("loratory:registered_lora_adapters", "Number of adapters that the engine knows.", known)


def adapter_metrics(counts: Counts, make: MetricMaker) -> Iterator[Metric]:
    """What each adapter has one of."""
    each = list(counts.adapters.items())
    for name, text, read in (
        ("requests", "Requests by adapter.", attrgetter("requests")),
        ("output_tokens", "Output tokens by adapter.", attrgetter("output_tokens")),
        ("hits", "Requests whose adapter was on the GPU and used before, when first admitted.", attrgetter("hits")),
        ("misses", "Requests whose adapter was not.", attrgetter("misses")),
        ("load_failures", "Adapter loads that failed.", attrgetter("failures")),
    ):
        values = [((adapter,), read(mine)) for adapter, mine in each]
        yield make.counters(f"loratory:adapter_{name}", text, ("adapter_name",), values)
    for name, text, label, read in (
        ("loads", "Adapter loads that began, by where to.", "to", attrgetter("loads")),
        ("evictions", "Adapters evicted, by where from.", "from", attrgetter("evictions")),
    ):
        both = [((adapter, tier), read(mine)[tier]) for adapter, mine in each for tier in _TIERS]
        yield make.counters(f"loratory:adapter_{name}", text, ("adapter_name", label), both)
    for name, text, read in (
        ("time_to_first_token", "Histogram of time to first token by adapter.", attrgetter("ttft")),
        (
            "time_per_output_token",
            "Histogram of time per output token after the first, by adapter.",
            attrgetter("tpot"),
        ),
    ):
        buckets = [((adapter,), read(mine)) for adapter, mine in each]
        yield make.histograms(f"loratory:adapter_{name}_seconds", text, ("adapter_name",), buckets)


def tenant_metrics(counts: Counts, make: MetricMaker) -> Iterator[Metric]:
    """What each tenant has one of."""
    each, gaps, label = list(counts.tenants.items()), counts.backlog.gaps(), ("tenant",)
    for name, text, read in (
        ("requests", "Requests by tenant.", attrgetter("requests")),
        (
            "service_tokens",
            "Service by tenant: prompt tokens of admitted requests, plus twice the output tokens.",
            attrgetter("service"),
        ),
    ):
        values = [((tenant,), read(mine)) for tenant, mine in each]
        yield make.counters(f"loratory:tenant_{name}", text, label, values)
    for name, text, read in (
        ("requests_running", "Requests that run, by tenant.", attrgetter("running")),
        ("requests_waiting", "Requests that wait, by tenant.", attrgetter("waiting")),
    ):
        values = [((tenant,), read(mine)) for tenant, mine in each]
        yield make.gauges(f"loratory:tenant_{name}", text, label, values)
    yield make.gauges(
        "loratory:tenant_service_gap_tokens",
        "How much more service over weight another waiting tenant has had, since both have been waiting.",
        label,
        [((tenant,), gaps.get(mine, 0.0)) for tenant, mine in each if tenant != OTHER],
    )
    ttft, text = [((tenant,), mine.ttft) for tenant, mine in each], "Histogram of time to first token by tenant."
    yield make.histograms("loratory:tenant_time_to_first_token_seconds", text, label, ttft)


def _http(counts: Counts, make: MetricMaker) -> Iterator[Metric]:
    responses, refused = counts.responses.copy(), counts.refused.copy()
    yield make.counters("loratory:http_responses", "HTTP answers.", ("route", "status"), responses.items())
    yield make.counters(
        "loratory:requests_refused",
        "Requests that were refused before they reached the engine.",
        ("reason",),
        [((reason,), number) for reason, number in refused.items()],
    )
    if (limit := counts.queue_limit) is not None:
        yield make.gauge("loratory:queue_limit", "Requests that may wait before more are refused.", limit)
