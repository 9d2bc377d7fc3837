"""The run object: every number again from the tables by other means, and the laws it keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loratory.errors import InputError
from loratory.reports import Recorder, RunInfo, summarise
from loratory.reports.metrics import inter_token
from loratory.reports.run_columns import RunColumns
from loratory.serving.events import Stepped
from loratory.serving.plan import BatchShape

COMMON = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@COMMON
@given(seed=st.integers(0, 2**32 - 1), requests=st.integers(0, 80), adapters=st.integers(0, 5))
def test_requests_and_tokens_are_conserved(report: Any, seed: int, requests: int, adapters: int) -> None:
    run = report(seed=seed, requests=requests, adapters=adapters).run
    counts = run["requests"]
    assert counts["submitted"] == requests == sum(counts[s] for s in ("completed", "rejected", "aborted", "failed"))
    for unit in ("tenant", "adapter"):
        rows = run[f"per_{unit}"]
        assert sum(row["requests"] for row in rows) == requests
        assert sum(row["completed"] for row in rows) == counts["completed"]
        tokens = run["throughput"]["output_tokens_per_s"] * run["duration_s"]
        assert sum(row["output_tokens"] for row in rows) == pytest.approx(tokens, rel=1e-6)
    assert run["never_served"]["count"] == counts["failed"]
    parts = [value for value in run["waits_s"].values() if value is not None]
    assert sum(parts) == pytest.approx(run["e2e_s"]["mean"] or 0.0, rel=1e-6, abs=1e-8)


def test_latencies_are_those_of_the_table(make_stream: Any, record: Any) -> None:
    stream = make_stream(seed=11, requests=300)
    records = record(stream.events())
    run = summarise(records, RunInfo("s", "fifo")).run
    table = records.requests.read().to_pandas()
    ttft = (table["first_token"] - table["arrival"]).dropna()
    done = table[(table["status"] == "completed") & (table["output_tokens"] > 1)]
    tpot = (done["finish"] - done["first_token"]) / (done["output_tokens"] - 1)
    for name, values in (("ttft_s", ttft), ("tpot_s", tpot), ("queue_s", table["queue_s"].dropna())):
        for mark, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
            assert run[name][mark] == pytest.approx(values.quantile(share), rel=1e-8)
        assert run[name]["mean"] == pytest.approx(values.mean(), rel=1e-8)
    hits = table["hit"].dropna().astype(bool)
    assert run["adapters"]["hit_rate"] == pytest.approx(hits.mean(), rel=1e-8)
    worst = table.assign(ttft=ttft).groupby("adapter", observed=True)["ttft"].quantile(0.99)
    for row in run["per_adapter"]:
        if row["adapter"] is not None:
            assert row["ttft_p99_s"] == pytest.approx(worst[row["adapter"]], rel=1e-8)
    assert [row["requests"] for row in run["per_adapter"]] == sorted(
        (row["requests"] for row in run["per_adapter"]), reverse=True
    )


def test_a_lost_request_is_an_internal_error(make_stream: Any, record: Any) -> None:
    with pytest.raises(AssertionError, match="bug in Loratory"):
        summarise(record(make_stream(requests=20).events()), RunInfo("s", "fifo", submitted=21))


def test_same_records_give_the_same_object(report: Any) -> None:
    assert report(seed=4).run == report(seed=4).run


def test_warmup_is_counted_but_not_measured(make_stream: Any, record: Any) -> None:
    records = record(make_stream(seed=2, requests=200).events())
    whole = summarise(records, RunInfo("s", "fifo")).run
    late = summarise(records, RunInfo("s", "fifo", warmup_s=15.0)).run
    table = records.requests.read().to_pandas()
    measured = table[table["arrival"] >= 15.0]
    assert late["requests"] == whole["requests"] | {"measured": len(measured)}
    ttft = (measured["first_token"] - measured["arrival"]).dropna()
    assert late["ttft_s"]["max"] == pytest.approx(ttft.max(), rel=1e-8)


def test_a_clock_that_starts_late_changes_nothing(make_stream: Any, record: Any) -> None:
    records = record(make_stream(seed=2, requests=80).events())
    first = summarise(records, RunInfo("s", "fifo", duration_s=100.0)).run
    shifted = summarise(records, RunInfo("s", "fifo", duration_s=100.0, start_s=-50.0)).run
    for key in ("ttft_s", "e2e_s", "adapters", "per_tenant"):
        assert shifted[key] == pytest.approx(first[key]) if key != "per_tenant" else shifted[key] == first[key]


def test_slo_is_met_by_what_keeps_it(report: Any) -> None:
    kind = report(seed=1, rejected=0.0, failed=0.0, slo={"ttft_p99_s": 1e6, "itl_p99_s": 1e6, "e2e_max_s": 1e6})
    assert kind.run["slo"]["met"] is True and kind.run["slo"]["attainment"] == 1.0
    strict = report(seed=1, rejected=0.0, failed=0.0, slo={"ttft_p99_s": 1e-6}).run
    assert strict["slo"]["met"] is False and strict["slo"]["attainment"] == 0.0
    assert strict["slo"]["values"]["ttft_p99_s"] == strict["ttft_s"]["p99"]
    assert report().run["slo"]["met"] is not None and report(slo={}).run["slo"]["met"] is None


def test_turning_requests_away_meets_no_slo(report: Any) -> None:
    run = report(seed=1, rejected=0.2, failed=0.0, slo={"ttft_p99_s": 1e6}).run
    assert run["slo"]["met"] is False and run["slo"]["values"]["ttft_p99_s"] is None
    assert run["slo"]["attainment"] == pytest.approx(run["requests"]["completed"] / run["requests"]["submitted"])


def test_an_attainment_target_is_judged(report: Any) -> None:
    run = report(rejected=0.0, failed=0.0, slo={"ttft_p50_s": 1e6, "e2e_p50_s": 1e6, "attainment": 1.0}).run
    assert run["slo"]["met"] is True
    middle = report(rejected=0.0, failed=0.0).run["e2e_s"]["p90"]
    run = report(rejected=0.0, failed=0.0, slo={"e2e_p50_s": middle, "attainment": 0.95}).run
    assert run["slo"]["values"]["e2e_p50_s"] <= middle and run["slo"]["met"] is False


@pytest.mark.parametrize("slo", [{"ttft_s": 1.0}, {"p99_ttft": 1.0}, {"ttft_p99_s": 0.0}])
def test_an_slo_that_means_nothing_is_refused(report: Any, slo: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"slo\."):
        report(slo=slo)


def test_nothing_served_has_no_latency_and_no_error(report: Any) -> None:
    run = report(rejected=0.0, failed=1.0, requests=10).run
    assert run["ttft_s"]["p99"] is None and run["fairness"]["jain"] is None
    assert run["never_served"] == {
        "count": 10,
        "why": {"never scheduled": 10},
        "adapters": run["never_served"]["adapters"],
        "first": run["never_served"]["first"],
        "cause": None,
    }
    assert len(run["never_served"]["first"]) == 10
    assert report(requests=0).run["throughput"]["requests_per_s"] == 0


def _gaps(steps: list[tuple[float, float, int, int, int]]) -> dict[float, float]:
    """Token gaps by length for steps (start, end, steps, prefill sequences, decode sequences)."""
    recorder = Recorder()
    sink = recorder.sink()
    for start, end, repeat, prefills, decodes in steps:
        shape = BatchShape(prefill_tokens=10 * prefills, prefill_seqs=prefills, decode_seqs=decodes)
        sink(Stepped(start, end, repeat, shape, 0, 0, 0, 0, 0, 0.0))
    seconds, tokens = inter_token(RunColumns(RunInfo("s", "p"), recorder.close()))
    found: dict[float, float] = {}
    for gap, many in zip(np.round(seconds, 9).tolist(), tokens.tolist(), strict=True):
        found[gap] = found.get(gap, 0.0) + many
    return {gap: many for gap, many in found.items() if many}


def test_itl_is_the_step_of_each_decoding_sequence() -> None:
    """A jump of 4 steps of 0.1 s with 3 sequences, then a mixed step of 0.5 s with 2."""
    assert _gaps([(0, 0.4, 4, 0, 3), (0.4, 0.9, 1, 1, 2)]) == {0.1: 12, 0.5: 2}


def test_a_prefill_only_step_delays_those_that_were_decoding() -> None:
    """Two decode; a prefill-only step of 1 s brings a third; then all three decode in 0.1 s."""
    assert _gaps([(0, 0.1, 1, 0, 2), (0.1, 1.1, 1, 1, 0), (1.1, 1.2, 1, 0, 3)]) == {0.1: 3, 1.1: 2}


def test_idle_time_is_no_gap_between_tokens() -> None:
    """All end, an idle minute, one new request."""
    assert _gaps([(0, 0.1, 1, 0, 1), (60, 61, 1, 1, 0), (61, 61.1, 1, 0, 1)]) == {0.1: 2}
