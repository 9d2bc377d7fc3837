"""Size limits: a number beyond them is treated as a typing error; `--unbounded` lifts them all.

Otherwise a typing error (a rate of ten million, a duration in nanoseconds) would use up the machine's memory, or run
for hours, without a message. The limits are far above real use: the benchmarks have a million requests and 100,000
adapters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

from loratory.errors import InputError, shortened
from loratory.scenarios.arrivals import ArrivalsSpec
from loratory.scenarios.document import Document, dotted
from loratory.scenarios.document import Path as KeyPath
from loratory.scenarios.schema import Scenario

MOST_REQUESTS = 10_000_000
"""Most requests of a run, expected or given."""

MOST_TRACE_BYTES = 4_000_000_000
"""Largest size of a trace, unpacked; it may have as many rows as a run has requests."""

MOST_RUNS = 10_000
"""Most runs: policies times seeds."""

SHORTEST_S = 1e-3
"""The shortest interval at which something is seen or decided anew, s."""

MOST_DECISIONS = 1_000_000
"""Most times that something is decided anew at equal intervals: how many replicas there are, or homes of adapters."""

LARGEST, SMALLEST = 1e18, 1e-30
"""The largest value of any other number, and the least value of a divisor."""

_DIVISOR = re.compile(
    r".*(arrivals(\.(poisson|constant))?|rate(_on|_off|_scale)?|rates(\..*)?|cv|noise|(on|off|period|duration)_s|peak"
    r"|scale|.*bandwidth_bytes_s|.*efficiency|gpu_memory_utilization|deadline_s.*|weights(\..*)?|slo\..*)"
)
"""Keys of rates, spreads, periods and other divisors; any other number may be arbitrarily close to 0."""

LIFT = "lift all limits with --unbounded (in Python: unbounded=True)"

_LIMITS: tuple[tuple[str, float], ...] = (
    (r"adapters\.count", 1_000_000),
    (r"adapters\.rates\.\d+\.count", 1_000_000),
    (r"adapters\.rates(\.(\d+\.rate|[^.]+))?", 1_000_000),
    (r"adapters\.ranks(\.\d+)?", 65_536),
    (r"adapters\.popularity\.(zipf|power)", 1_000),
    (r"engine\.(max_loras|tensor_parallel_size)", 1_000_000),
    (r"engine\.max_lora_rank", 65_536),
    (r"engine\.(max_cpu_loras|max_num_seqs|block_size)", 10_000_000),
    (r"engine\.(max_num_batched_tokens|max_model_len|long_prefill_token_threshold)", 100_000_000),
    (r"engine\.num_gpu_blocks", 1_000_000_000),
    (r"cluster\.(replicas|autoscale\.most)", 10_000),
    (r"cost\.noise\.(cv|run_cv)", 10),
    (r"cost\.noise\.stall_rate_hz", 1_000),
    (r"executor\.(threads|time_scale)", 1_000_000),
    (r"tenants\.map\.groups", 1_000_000),
    (r"tenants\..*priority.*", 1_000_000_000),
    (r"workload\.requests", MOST_REQUESTS),
    (r"workload\.(streams\.\d+\.)?arrivals\.closed_loop\.concurrency", MOST_REQUESTS),
    (r"workload\..*\bcv", 1_000),
    (r"workload\.predicted_tokens\.noise", 1_000),
    (
        r"workload\.(streams\.\d+\.)?(input|output)_tokens(\.(fixed|uniform\.\d|lognormal\.(mean|min|max)))?",
        100_000_000,
    ),
    (r"workload\.max_tokens", 100_000_000),
    (r"workload\.block_tokens", 100_000_000),
    (r"workload\.(streams\.\d+\.)?arrivals(\.(poisson|constant|.*rate(_on|_off)?))?", 1_000_000_000),
    (r"workload\.rate_scale", 1_000_000_000),
    (r"workload\.streams\.\d+\.priority", 1_000_000_000),
    (r"(?!.*_bytes_s).*_s(\..*)?", 10_000_000_000),
    (r"workload\.window\.\d", 10_000_000_000),
)
"""Key paths and the largest number that each may hold; the first match counts."""

_LONGEST_NUMBER = 40
"""Characters that a text may have to be read as a number."""

_COMPILED = tuple((re.compile(pattern), most) for pattern, most in _LIMITS)


def check_keys(document: Document) -> None:
    """Refuse an implausibly large number before anything of that size is built.

    Raises `InputError` with the place, the key, the value and the limit.
    """
    for path, value in _numbers(document.raw, ()):
        name = dotted(path)
        most = next((limit for pattern, limit in _COMPILED if pattern.fullmatch(name)), LARGEST)
        if abs(value) > most:
            raise _implausible(document, path, f"is {_number(value)}, above {_number(most)}, the largest expected")
        if 0 < abs(value) < SMALLEST and _DIVISOR.fullmatch(name):
            text = f"is {value:g}, closer to 0 than {SMALLEST:g}, the least expected"
            raise _implausible(document, path, text, "raise")
    seeds, policies = document.raw.get("seeds"), document.raw.get("policies")
    runs = max(len(seeds) if isinstance(seeds, list) else 1, 1) * max(
        len(policies) if isinstance(policies, list) else 1, 1
    )
    if runs > MOST_RUNS:
        key: KeyPath = ("seeds",) if isinstance(seeds, list) and len(seeds) > 1 else ("policies",)
        raise _implausible(document, key, f"gives {runs:,} runs, above {MOST_RUNS:,}, the most expected")


def check_requests(scenario: Scenario, document: Document) -> None:
    """Refuse a workload with an implausible number of requests. Raises `InputError` like `check_keys`."""
    path, requests = expected_requests(scenario)
    if requests > MOST_REQUESTS:
        duration_s = scenario.workload.duration_s or 0.0
        text = (
            f"gives about {_number(requests)} requests in {duration_s:g} s (workload.duration_s), above "
            f"{MOST_REQUESTS:,}, the most expected of a run"
        )
        raise _implausible(document, path, text)
    trace = scenario.workload.trace
    if trace is not None:
        from loratory.scenarios.traces.files import too_large

        if beyond := too_large(Path(trace), MOST_REQUESTS, MOST_TRACE_BYTES):
            text = f"is {shortened(str(trace), 100)}, which has {beyond}, the limit for a trace"
            raise _implausible(document, ("workload", "trace"), text, "cut")
    drift = scenario.adapters.popularity.drift if scenario.adapters.popularity is not None else None
    shifts = (scenario.workload.duration_s or 0.0) / drift.period_s if drift is not None else 0.0
    if shifts > MOST_REQUESTS:
        text = f"makes {_number(shifts)} shifts of popularity, above {MOST_REQUESTS:,}, the most expected"
        raise _implausible(document, ("adapters", "popularity", "drift", "period_s"), text, "raise")
    _check_intervals(scenario, document)


def _check_intervals(scenario: Scenario, document: Document) -> None:
    """Refuse intervals so short that they would take hours, and change nothing."""
    scale, placement = scenario.cluster.autoscale, scenario.cluster.placement
    for path, every_s in (
        (("cluster", "autoscale", "interval_s"), None if scale is None else scale.interval_s),
        (("cluster", "placement", "every_s"), None if placement is None else placement.every_s),
        (("cluster", "metrics_interval_s"), scenario.cluster.metrics_interval_s),
    ):
        if every_s is None:
            continue
        if every_s < SHORTEST_S:
            text = f"is {every_s:g}, below {SHORTEST_S:g}, the smallest expected"
            raise _implausible(document, path, text, "raise")
        times = (scenario.workload.duration_s or 0.0) / every_s
        if times > MOST_DECISIONS and path[-1] != "metrics_interval_s":
            text = f"makes {_number(times)} decisions, above {MOST_DECISIONS:,}, the most expected"
            raise _implausible(document, path, text, "raise")


def expected_requests(scenario: Scenario) -> tuple[KeyPath, float]:
    """About how many requests a run has, and the key that sets it; 0 if a trace does."""
    workload, rates = scenario.workload, scenario.adapters.rates
    if workload.trace is not None or workload.duration_s is None:
        return ("workload", "requests"), float(workload.requests or 0)
    if workload.streams is not None:
        ends = [min(stream.end_s or workload.duration_s, workload.duration_s) for stream in workload.streams]
        each = [
            rate_of(stream.arrivals) * max(end - stream.start_s, 0.0)
            for stream, end in zip(workload.streams, ends, strict=True)
        ]
        largest = max(range(len(each)), key=each.__getitem__)
        return ("workload", "streams", largest, "arrivals"), sum(each)
    if rates is not None:
        names = scenario.adapters.known_count or 0
        if isinstance(rates, dict):
            total = sum(rates.values())
        elif isinstance(rates, list):
            total = sum(group.rate * (names if group.count is None else group.count) for group in rates)
        else:
            total = rates * names
        return ("adapters", "rates"), total * workload.duration_s
    rate = 0.0 if workload.arrivals is None else rate_of(workload.arrivals)
    return ("workload", "arrivals"), rate * workload.duration_s


def rate_of(arrivals: ArrivalsSpec) -> float:
    """Mean rate of open arrivals, requests/s; 0 in a closed loop."""
    if arrivals.on_off is not None:
        spec = arrivals.on_off
        return (spec.rate_on * spec.on_s + spec.rate_off * spec.off_s) / (spec.on_s + spec.off_s)
    for given in (arrivals.gamma, arrivals.diurnal):
        if given is not None:
            return given.rate
    return arrivals.poisson or arrivals.constant or 0.0


def _numbers(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, float]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _numbers(item, (*path, index))
    elif isinstance(value, str) and _may_be_number(value, path):
        with suppress(ValueError):  # YAML reads 1e12 as a text, and the key's type reads it as a number
            yield from _numbers(float(value), path)
    elif isinstance(value, int) or (isinstance(value, float) and isfinite(value)):
        yield path, value


def _may_be_number(text: str, path: KeyPath) -> bool:
    """Whether a text stands in place of a number; elsewhere it may be a name."""
    looks_like_it = len(text) <= _LONGEST_NUMBER and text[:1] in tuple("+-.0123456789")
    return looks_like_it and any(pattern.fullmatch(dotted(path)) for pattern, _ in _COMPILED)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) < 1e15 else f"{float(value):g}" if abs(value) < 1e300 else "over 1e300"


def _implausible(document: Document, path: KeyPath, text: str, remedy: str = "lower") -> InputError:
    where = f"{shortened(document.place(path), 120)}: {shortened(dotted(path), 80)}"
    return InputError(shortened(f"{where} {text}: {remedy} it, or {LIFT}"))
