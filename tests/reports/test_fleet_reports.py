"""What a report says of a fleet whose replicas fail, go, or are of several kinds: each figure by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from command import SMALL as LITTLE

from loratory.experiment.run import run_scenario
from loratory.reports import Recorder, RunInfo, RunReport, summarise, verdicts
from loratory.reports.fleet_figure import fleet_figures, marks_of
from loratory.reports.fleet_words import fleet_sentences
from loratory.reports.html import render
from loratory.reports.run_info import ReplicaLimits
from loratory.scenarios.load import load_text
from loratory.serving.events import Ended, Stepped
from loratory.serving.plan import BatchShape
from loratory.serving.request import Request
from loratory.serving.run_end import FleetChange, FleetRecord, RollOutRecord, TrafficShare

OPEN = (FleetChange(0.0, 0, "open"), FleetChange(0.0, 1, "open"))
FAILS = (*OPEN, FleetChange(4.0, 1, "failed"))
INFO = RunInfo(
    "made up", "fifo", replicas=2, gpus=2, replica_gpus=(1, 1), max_loras=4, max_num_seqs=8, num_gpu_blocks=50,
    max_num_batched_tokens=100, duration_s=8.0,
)  # fmt: skip


def _step(start: float, end: float, waiting: int = 0, running: int = 1, resident: int = 4, used: int = 1) -> Stepped:
    shape = BatchShape(0, 0.0, 0, running, 10, used, 16, 16, 1, 16)
    return Stepped(start, end, 1, shape, waiting, running, resident, 0, 10, 0.0)


@pytest.fixture
def measure(sequence: Any) -> Any:
    """The report of the steps of each replica, and of requests: (arrival, admitted or None, end), on replica 0."""

    def report_of(
        steps: list[list[Stepped]], info: RunInfo, requests: tuple[tuple[float, float | None, float], ...] = ()
    ) -> RunReport:
        with Recorder(None) as recorder:
            sinks = [recorder.sink(place) for place in range(len(steps))]
            for sink, mine in zip(sinks, steps, strict=True):
                for step in mine:
                    sink(step)
            for number, (arrival, admitted, end) in enumerate(requests):
                seq = sequence(Request(str(number), "a", arrival, 32, 5, "a"), 5 if admitted is not None else 0)
                seq.admitted_at = seq.first_token_at = admitted
                seq.ended_at, seq.hit = end, True if admitted is not None else None
                done = ("completed", "length") if admitted is not None else ("failed", "no replica is open")
                sinks[0](Ended(end, seq.view, *done))
        return summarise(recorder.close(), info)

    return report_of


def _at(report: RunReport, name: str, second: float) -> float:
    curves = report.curves
    return float(curves.series[name][(abs(curves.times - second)).argmin()])


@pytest.mark.parametrize("gone", ["failed", "off"])
def test_adapters_of_a_replica_that_is_gone_are_gone(measure: Any, gone: Any) -> None:
    """Both hold 4; replica 1 ends its last step at 3 s, keeps its adapters until second 4, and runs again from 6 on."""
    back = (FleetChange(4.0, 1, gone), FleetChange(5.0, 1, "starting"), FleetChange(6.0, 1, "open"))
    info = replace(INFO, fleet=FleetRecord((*OPEN, *back)))
    report = measure([[_step(0, 8)], [_step(0, 2), _step(2, 3), _step(6, 7, resident=1)]], info)
    held = [_at(report, "resident", second) for second in (1.0, 3.5, 4.5, 5.5, 6.5, 7.5)]
    assert held == pytest.approx([8, 8, 4, 4, 5, 5])
    times, counts = report.curves.slots
    assert list(zip(times, counts, strict=True)) == [(0.0, 8.0), (4.0, 4.0), (5.0, 4.0), (6.0, 8.0)]


def test_slots_of_a_fleet_that_stays_are_one_line(measure: Any) -> None:
    times, counts = measure([[_step(0, 8)], []], INFO).curves.slots
    assert (times.tolist(), counts.tolist()) == ([0.0], [8.0])
    assert measure([[_step(0, 8)], []], replace(INFO, max_loras=None)).curves.slots is None


def test_requests_at_the_gateway_wait(measure: Any) -> None:
    """No replica is open from 2 to 6 s: one request waits from 3 to 6, one from 4 to its end, one was served before."""
    changes = (
        FleetChange(0.0, 0, "open"),
        FleetChange(2.0, 0, "failed"),
        FleetChange(5.0, 0, "starting"),
        FleetChange(6.0, 0, "open"),
    )
    info = replace(INFO, replicas=1, gpus=1, replica_gpus=(1,), fleet=FleetRecord(changes), submitted=3)
    report = measure([[_step(0, 2), _step(6, 7)]], info, ((0.0, 0.0, 2.0), (3.0, 6.0, 7.0), (4.0, None, 5.0)))
    waits = [_at(report, "waiting", second) for second in (1.0, 2.5, 3.5, 4.5, 5.5, 6.5)]
    assert waits == pytest.approx([0, 0, 1, 2, 1, 0], abs=1e-9)


def test_a_replica_is_busy_and_loaded_for_the_time_that_it_is_there(measure: Any) -> None:
    """Both run one request at a time while they are there: even, and busy all the time; replica 1 for half of it."""
    info = replace(INFO, fleet=FleetRecord(FAILS))
    run = measure([[_step(0, 8)], [_step(0, 4)]], info).run
    assert run["engine"]["imbalance"] == pytest.approx(1.0)
    assert [row["busy_share"] for row in run["per_replica"]] == [1.0, 1.0]
    uneven = measure([[_step(0, 4, running=3), _step(4, 8)], [_step(0, 4)]], info).run
    assert uneven["engine"]["imbalance"] == pytest.approx((12 + 4) / (8 + 4))
    stays = measure([[_step(0, 8)], [_step(0, 4)]], INFO).run
    assert stays["engine"]["imbalance"] == pytest.approx(8 / 6) and stays["per_replica"][1]["busy_share"] == 0.5


def test_a_replica_that_was_open_for_a_moment_is_not_the_busiest(measure: Any) -> None:
    late = FleetRecord((OPEN[0], FleetChange(7.9, 1, "open")))
    run = measure([[_step(0, 8)], [_step(7.9, 8, running=9)]], replace(INFO, fleet=late)).run
    assert run["engine"]["imbalance"] <= 1.0


SMALL = ReplicaLimits("a100", 2, 8, 100, 40, 0, 16)
LARGE = replace(SMALL, kind="h100", max_loras=8, num_gpu_blocks=50)


def test_limits_of_two_kinds_are_told_apart(measure: Any) -> None:
    """The h100 has half of its 8 slots in use; the a100 both of its own, and there 6 of 7 requests wait."""
    info = replace(INFO, each=(LARGE, SMALL))
    report = measure([[_step(0, 8, waiting=1, used=4)], [_step(0, 8, waiting=6, used=2)]], info)
    used = report.run["usage"]
    assert used["slots"]["limit"] is None and used["seqs"]["limit"] == 8 and "kinds" not in used["seqs"]
    assert used["slots"]["kinds"] == {
        "h100": {"limit": 8, "p50": 4, "max": 4},
        "a100": {"limit": 2, "p50": 2, "max": 2},
    }
    assert report.run["waiting"]["kinds"] == pytest.approx({"h100": 1 / 7, "a100": 6 / 7})
    text = next(v.text for v in verdicts([report.run]) if v.topic == "Bottleneck")
    assert "each of the 8 (h100) or 2 (a100) slots held" in text
    assert "85.7 % of all waiting is on a100" in text and "10 of 50 (h100) and 10 of 40 (a100) KV blocks" in text
    assert "Replicas are uneven: the busiest has 1.6 times the mean load." in text and "try another router" not in text
    page = render("s", [report])
    assert "per policy and kind (requests: of all kinds together)" in page


def test_the_same_limits_are_one(measure: Any) -> None:
    info = replace(INFO, each=(replace(LARGE, max_loras=2, num_gpu_blocks=40), SMALL))
    run = measure([[_step(0, 8)], [_step(0, 8)]], info).run
    assert (
        run["usage"]["slots"] == {"limit": 2, "p50": 1, "max": 1, "held": 4} and "kinds" not in run["usage"]["tokens"]
    )


@pytest.mark.parametrize(
    ("prices", "each", "sentence", "page"),
    [
        ({"h100": 3.0}, (3.0, 3.0), "that cost 0.01 USD", "(prices of a GPU an hour, USD: 3 for h100)"),
        (
            {"h100": 3.0, "a100": None},
            None,
            "no price for a100",
            "(no cost, because plan.prices has no price for a100)",
        ),
        ({}, None, "0.00333 GPU hours, 1 failure", "Fleet, per policy<"),
    ],
)
def test_a_cost_has_its_unit_and_its_prices(measure: Any, prices: Any, each: Any, sentence: str, page: str) -> None:
    """Two GPUs, of which one fails after 4 of 8 s: 12 GPU seconds."""
    info = replace(INFO, fleet=FleetRecord(FAILS, resent=2), prices=prices, replica_prices=each, currency="USD")
    report = measure([[_step(0, 8)], [_step(0, 4)]], info)
    ((policy, told),) = fleet_sentences([report.run])
    assert policy == "fifo" and told.startswith("1.5 replicas open on average (1 to 2), 0.00333 GPU hours")
    assert sentence in told and told.endswith("1 failure, 2 requests sent again")
    html = render("s", [report])
    assert page in html and ("cost, USD" in html) == (each is not None)


def test_failures_and_roll_outs_are_marked(measure: Any) -> None:
    changes = (*FAILS, FleetChange(6.0, 1, "starting"), FleetChange(7.0, 1, "open"))
    rolled = RollOutRecord("a", "a", "a@2", 3.0, 3.0, (TrafficShare(3.0, 1.0),))
    report = measure([[_step(0, 8)], [_step(0, 4)]], replace(INFO, fleet=FleetRecord(changes, roll_outs=(rolled,))))
    assert marks_of(report) == {"replica fails": [4.0], "replica recovers": [6.0], "roll-out begins": [3.0]}
    (figure,) = fleet_figures([report])
    assert (
        "those that have failed" in figure.caption and "replica fails, replica recovers and roll-out" in figure.caption
    )
    stays = measure(
        [[_step(0, 8)], [_step(0, 4)]], replace(INFO, fleet=FleetRecord((*OPEN, FAILS[2]._replace(state="off"))))
    )
    assert "failed" not in fleet_figures([stays])[0].caption


@pytest.mark.parametrize("cutoff", [None, 4.0])
def test_what_no_replica_was_open_for_is_nobodys(tmp_path: Path, cutoff: float | None) -> None:
    """Both replicas fail at second 2: what comes later has no replica, and no policy is to blame."""
    fails = [{"at_s": 2, "fail": 0}, {"at_s": 2, "fail": 1}]
    changes = [f"cluster={json.dumps({'replicas': 2, 'events': fails})}"]
    changes += [] if cutoff is None else [f"workload.cutoff_s={cutoff}"]
    scenario = load_text(LITTLE, overrides=["workload.duration_s=6", "workload.arrivals=20", *changes])
    run = run_scenario(scenario, tmp_path / "out")["runs"][0]
    table = pq.read_table(tmp_path / "out" / "fifo" / "0" / "requests.parquet").to_pylist()
    left = [row for row in table if row["first_token"] is None]
    assert left and all(row["replica"] is None and "no replica was open from 2 s on" in row["why"] for row in left)
    assert [each["requests"] for each in run["per_replica"]] == [
        sum(row["replica"] == place for row in table) for place in (0, 1)
    ]
    assert sum(each["requests"] for each in run["per_replica"]) + len(left) == len(table)
    assert run["never_served"]["cause"] is None and run["bottleneck"] == "replicas"
    text = (tmp_path / "out" / "report.html").read_text()
    assert "replicas that are open" in text and "no replica was open from 2 s on" in text
