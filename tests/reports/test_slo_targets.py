"""Targets of an SLO: the value and the verdict that a recomputation request by request gives, and misses allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import ceil, floor, inf, isfinite, isnan, nan, nextafter
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loratory.reports.recorder import Records
from loratory.reports.run_columns import RunColumns
from loratory.reports.run_info import RunInfo
from loratory.reports.slo import judge, judged
from loratory.reports.slo_target import (
    AdapterClass,
    SloGroup,
    SloTarget,
    allowed_misses,
    named_class,
    share_target,
    time_target,
)
from loratory.reports.target_rows import target_rows
from loratory.serving.events import Admitted, Arrived, Ended, Event
from loratory.serving.request import Request

NO_GAPS = (np.zeros(0), np.zeros(0))
MARKS = st.sampled_from(["mean", "max", "p1", "p50", "p90", "p95", "p99", "p99.9"])
METRICS = st.sampled_from(["ttft", "tpot", "e2e", "queue"])
SECONDS = st.floats(0.05, 20.0)
CLASSES = st.sampled_from(
    [
        None,
        named_class(("adapter-0",)),
        named_class(("adapter-1", "adapter-3")),
        AdapterClass("the base model", base=True),
    ]
)
TENANTS = st.sampled_from([None, "tenant-0", "tenant-1", "nobody"])
WITHIN = st.dictionaries(METRICS, SECONDS, min_size=1).map(lambda limits: tuple(limits.items()))


@st.composite
def groups(draw: Any, marks: bool = True) -> SloGroup:
    over = draw(st.sampled_from([None, "tenant", "adapter"]))
    mark = draw(st.none() | MARKS) if over and marks else None
    tenant = draw(TENANTS) if over != "tenant" else None
    return SloGroup(tenant, draw(CLASSES), over, mark)


TARGETS = st.builds(time_target, METRICS, MARKS, SECONDS, groups()) | st.builds(
    share_target, st.floats(0.01, 1.0), WITHIN, groups(marks=False)
)


def times(row: dict[str, Any]) -> dict[str, float]:
    """The times of one request, as docs/reports.md defines them; infinite unless it completed."""
    if row["status"] != "completed":
        return dict.fromkeys(("ttft", "tpot", "e2e", "queue"), inf)
    many = row["output_tokens"] > 1
    return {
        "ttft": row["first_token"] - row["arrival"],
        "tpot": (row["finish"] - row["first_token"]) / (row["output_tokens"] - 1) if many else nan,
        "e2e": row["finish"] - row["arrival"],
        "queue": row["queue_s"],
    }


def mark_of(values: list[float], mark: str) -> float:
    """A mark in plain Python: numpy's interpolation, or with infinite values the smallest that reaches its share."""
    ordered = sorted(values)
    done = [value for value in ordered if isfinite(value)]
    if mark == "mean":
        return sum(done) / len(done) if done else inf
    share = 100.0 if mark == "max" else float(mark[1:])
    if len(done) < len(ordered):
        return ordered[max(ceil(share / 100 * len(ordered) - 1e-9), 1) - 1]
    place = (len(ordered) - 1) * share / 100
    low = floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def value_of(target: SloTarget, rows: list[dict[str, Any]]) -> float | None:
    """The value of a target; None where no request has it."""
    if not rows:
        return None
    if target.metric is None:
        kept = [all(isnan(times(r)[m]) or times(r)[m] <= limit for m, limit in target.within) for r in rows]
        return sum(kept) / len(kept)
    values = [v for v in (times(row)[target.metric] for row in rows) if not isnan(v)]
    return mark_of(values, str(target.mark)) if values else None


def expected(target: SloTarget, rows: list[dict[str, Any]]) -> tuple[float | None, bool | None]:
    group = target.group
    if group.tenant is not None:
        rows = [row for row in rows if row["tenant"] == group.tenant]
    if group.adapters is not None and group.adapters.base:
        rows = [row for row in rows if row["adapter"] is None]
    elif group.adapters is not None:
        rows = [row for row in rows if row["adapter"] in group.adapters.names]
    if group.over == "adapter":
        rows = [row for row in rows if row["adapter"] is not None]
    if not rows:
        return None, None
    if group.over is None:
        value = value_of(target, rows)
    else:
        names = {row[group.over] for row in rows}
        each = [value_of(target, [row for row in rows if row[group.over] == name]) for name in names]
        known = [value for value in each if value is not None]
        if not known:
            value = None
        elif group.mark is not None:
            value = sum(known) / len(known) if group.mark == "mean" else mark_of(known, group.mark)
        else:
            value = min(known) if target.metric is None else max(known)
    return value, value is not None and (value >= target.limit if target.metric is None else value <= target.limit)


@pytest.fixture(name="runs")
def recorded(make_stream: Any, record: Any) -> list[tuple[Records, list[dict[str, Any]]]]:
    """Runs of many kinds with the rows of their requests: few or many requests; all, some or none of them completed."""
    kinds = [
        {"requests": 1}, {"requests": 3, "adapters": 2}, {"requests": 40, "tenants": 3},
        {"requests": 90, "rejected": 0.0, "failed": 0.0, "tenants": 2}, {"requests": 25, "failed": 0.97},
        {"requests": 60, "rejected": 0.3, "tenants": 5, "adapters": 5}, {"requests": 12, "adapters": 0},
    ]  # fmt: skip
    found = []
    for seed, kind in enumerate(kinds):
        records = record(make_stream(seed=seed, **kind).events())
        found.append((records, records.requests.read().to_pylist()))
    return found


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), target=TARGETS, warmup=st.sampled_from([0.0, 2.0]))
def test_a_target_has_the_value_of_its_requests(
    runs: Any, data: st.DataObject, target: SloTarget, warmup: float
) -> None:
    records, rows = data.draw(st.sampled_from(runs))
    run = RunColumns(RunInfo("s", "p", warmup_s=warmup, targets=(target,)), records)
    (found,) = judged(run, NO_GAPS)
    value, met = expected(target, [row for row in rows if row["arrival"] >= warmup])
    assert found.value == (value if value is None else pytest.approx(value, rel=1e-9))
    assert (found.met is None) == (met is None)
    if value is None or abs(value - target.limit) > 1e-9 * target.limit:
        assert found.met == met


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), metric=METRICS, mark=MARKS, share=st.floats(0.1, 1.0), limit=SECONDS)
def test_a_target_on_all_requests_is_the_limit_of_that_name(
    runs: Any, data: st.DataObject, metric: str, mark: str, share: float, limit: float
) -> None:
    records, _ = data.draw(st.sampled_from(runs))
    key = f"{metric}_{mark}_s"
    old = judge(RunColumns(RunInfo("s", "p", slo={key: limit, "attainment": share}), records), NO_GAPS)
    targets = (time_target(metric, mark, limit), share_target(share, ((metric, limit),)))
    new = judge(RunColumns(RunInfo("s", "p", targets=targets), records), NO_GAPS)
    assert [t["value"] for t in new["targets"]] == [old["values"][key], old["attainment"]]
    assert [t["met"] for t in new["targets"]] == [t["met"] for t in old["targets"]] and new["met"] == old["met"]
    assert [t["name"] for t in old["targets"]] == [key, "attainment"]


def stream(ttfts: list[float], tenant: str, sequence: Callable[..., Any], first_id: int = 0) -> Iterator[Event]:
    """Requests that arrive at 0 and get their token after these seconds; those of infinity fail."""
    for number, ttft in enumerate(ttfts, first_id):
        made = sequence(Request(str(number), f"adapter-{tenant}", 0.0, 10, 5, tenant), 5)
        yield Arrived(0.0, made.view)
        if ttft == inf:
            made.ended_at = 1.0
            yield Ended(1.0, made.view, "failed", "never scheduled")
            continue
        made.admitted_at, made.first_token_at, made.ended_at, made.last_generated = 0.0, ttft, ttft + 1.0, 5
        yield Admitted(0.0, made.view, None)
        yield Ended(made.ended_at, made.view, "completed", "length")


ONE_GROUP = st.sampled_from(
    [SloGroup(), SloGroup(tenant="a"), SloGroup(over="tenant"), SloGroup(over="adapter"),
     SloGroup("a", named_class(("adapter-a",)))]
)  # fmt: skip
LIMIT = 2.0
COUNTABLE = st.builds(time_target, st.just("ttft"), MARKS.filter(lambda m: m != "mean"), st.just(LIMIT), ONE_GROUP)
COUNTABLE |= st.builds(share_target, st.floats(0.01, 1.0), st.just((("ttft", LIMIT),)), ONE_GROUP)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(target=COUNTABLE, count=st.integers(1, 40), data=st.data())
def test_allowed_misses_are_where_a_target_turns(
    record: Any, sequence: Any, target: SloTarget, count: int, data: st.DataObject
) -> None:
    most = allowed_misses(target, count)
    assert most is not None and 0 <= most < count

    def met(ttfts: list[float]) -> bool | None:
        alone = target.group == SloGroup()  # else a second tenant, whose requests are in time, changes nothing
        other = () if alone else stream([0.0] * 7, "b", sequence, count)
        records = record(iter([*stream(ttfts, "a", sequence), *other]))
        return judged(RunColumns(RunInfo("s", "p", targets=(target,)), records), NO_GAPS)[0].met

    late = st.sampled_from([nextafter(LIMIT, inf), 3.0, 50.0, inf])
    misses = data.draw(st.integers(most + 1, count))
    assert met([*data.draw(st.lists(late, min_size=misses, max_size=misses)), *[0.0] * (count - misses)]) is False
    assert met([*[nextafter(LIMIT, inf)] * most, *[0.0] * (count - most)]) is True


@given(count=st.integers(1, 5000), mark=MARKS.filter(lambda m: m != "mean"))
def test_more_requests_allow_as_many_misses_or_more(count: int, mark: str) -> None:
    target = time_target("tpot", mark, 1.0)
    fewer, more = allowed_misses(target, count), allowed_misses(target, count + 1)
    assert fewer is not None and more is not None and fewer <= more


@pytest.mark.parametrize(
    "target",
    [time_target("ttft", "mean", 1.0), time_target("itl", "p99", 1.0),
     time_target("ttft", "p95", 1.0, SloGroup(over="adapter", mark="max"))],
)  # fmt: skip
def test_no_number_of_misses_decides_some_targets(target: SloTarget) -> None:
    assert allowed_misses(target, 100) is None


def test_a_starved_tail_cannot_hide_in_an_average(record: Any, sequence: Any) -> None:
    events = [*stream([0.1] * 99, "a", sequence), *stream([30.0], "b", sequence, 99)]
    targets = (time_target("ttft", "p95", 1.0), time_target("ttft", "p95", 1.0, SloGroup(over="adapter")))
    run = judge(RunColumns(RunInfo("s", "p", targets=targets), record(iter(events))), NO_GAPS)
    every, each = run["targets"]
    assert every["met"] is True and each["met"] is False and run["met"] is False
    assert each["value"] == 30.0 and each["worst"] == "adapter-b"
    assert each["words"] == "TTFT p95 of each adapter at most 1 s"


def test_a_target_without_requests_is_not_judged_and_says_so(report: Any) -> None:
    target = time_target("ttft", "p95", 1e6, SloGroup(tenant="nobody"))
    run = report(rejected=0.0, failed=0.0, slo={"ttft_p99_s": 1e6}, targets=(target,)).run
    assert run["slo"]["met"] is None and run["slo"]["targets"][1]["met"] is None
    assert any("TTFT p95 of tenant nobody" in text and "not judged" in text for text in run["warnings"])
    missed = report(rejected=0.0, failed=0.0, slo={"ttft_p99_s": 1e-6}, targets=(target,)).run
    assert missed["slo"]["met"] is False


def test_rejecting_all_requests_of_a_tenant_misses_its_targets(record: Any, sequence: Any) -> None:
    events = [*stream([0.1] * 9, "a", sequence), *stream([inf] * 2, "b", sequence, 9)]
    group = SloGroup(tenant="b")
    targets = (time_target("ttft", "p50", 9.0, group), time_target("ttft", "mean", 9.0, group))
    found = judged(RunColumns(RunInfo("s", "p", targets=targets), record(iter(events))), NO_GAPS)
    assert [(one.value, one.met) for one in found] == [(inf, False), (inf, False)]


@pytest.mark.parametrize(
    ("target", "name", "words"),
    [
        (time_target("e2e", "p99.9", 0.25), "e2e_p99.9_s", "end-to-end p99.9 at most 250 ms"),
        (
            time_target("ttft", "p95", 2.0, SloGroup("B", AdapterClass("adapters of rank 64"))),
            "ttft_p95_s of tenant B and adapters of rank 64",
            "TTFT p95 of tenant B and adapters of rank 64 at most 2 s",
        ),
        (
            time_target("ttft", "p95", 2.0, SloGroup("B", AdapterClass("adapters of rank 64"), "adapter", "p95")),
            "p95 over adapters of rank 64 of ttft_p95_s for tenant B",
            "p95 over adapters of rank 64 of their TTFT p95 for tenant B at most 2 s",
        ),
        (
            time_target("queue", "max", 2.0, SloGroup(None, AdapterClass("the base model"), "tenant", "max")),
            "max over tenants of queue_max_s for the base model",
            "max over tenants of their queue time max for the base model at most 2 s",
        ),
        (
            share_target(0.9995, (("ttft", 2.0), ("tpot", 0.05)), SloGroup(over="tenant")),
            "attainment (ttft_s 2, tpot_s 0.05) of each tenant",
            "99.95 % of requests of each tenant within TTFT 2 s and TPOT 50 ms",
        ),
        (
            time_target("ttft", "p95", 2.0, SloGroup("B", named_class(tuple("abcde")), "adapter")),
            "ttft_p95_s of tenant B and each of adapters a, b, c and 2 more",
            "TTFT p95 of tenant B and each of adapters a, b, c and 2 more at most 2 s",
        ),
    ],
)
def test_names_and_words(target: SloTarget, name: str, words: str) -> None:
    assert (target.name, target.words) == (name, words)


def test_rows_tell_which_policies_meet_a_target(report: Any) -> None:
    targets = (time_target("ttft", "p95", 3.0, SloGroup(over="tenant")),)
    fine = {"rejected": 0.0, "failed": 0.0, "tenants": 2, "slo": {}, "targets": targets}
    runs = [report("fifo", seed, **fine, slowness=s).run for seed, s in ((0, 9.0), (1, 0.01))]
    runs += [report("other", seed, **fine, slowness=0.01).run for seed in (0, 1)]
    (row,) = target_rows(runs)
    assert [cell.verdict for cell in row.cells] == ["missed in 1 of 2 seeds", "met"]
    assert row.sentence.startswith("TTFT p95 of each tenant at most 3 s: missed in 1 of 2 seeds under fifo (")
