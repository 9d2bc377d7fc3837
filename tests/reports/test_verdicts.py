"""Verdicts say what the runs show: each sentence is checked against a run made to deserve it."""

from __future__ import annotations

from typing import Any

from reports import Verdict, verdicts
from reports.words import change, count, percent, seconds


def _of(topic: str, found: list[Verdict]) -> list[Verdict]:
    return [verdict for verdict in found if verdict.topic == topic]


def test_slo_names_who_meets_it_and_by_how_much_others_miss(report: Any) -> None:
    slo = {"ttft_p99_s": 20.0}
    good = report("quick", rejected=0.0, failed=0.0, slowness=0.1, slo=slo).run
    bad = report("slow", rejected=0.0, failed=0.0, slowness=50.0, slo=slo).run
    met, missed = _of("SLO", verdicts([good, bad]))
    assert met.mood == "good" and met.text.startswith("quick (100 % of requests) meets the SLO")
    assert missed.mood == "bad" and f"TTFT p99 {seconds(bad['ttft_s']['p99'])} against 20 s" in missed.text


def test_none_meets_it(report: Any) -> None:
    first = verdicts([report("a", slo={"tpot_p99_s": 1e-9}).run])[0]
    assert first.mood == "bad" and "No policy here meets the SLO (TPOT p99 at most" in first.text


def test_starvation_names_the_one_that_waits(report: Any) -> None:
    run = report("skip", requests=400, adapters=4, rejected=0.0, failed=0.0).run
    for unit in ("per_adapter", "per_tenant"):
        run[unit][2]["ttft_p99_s"] = 500.0
    (verdict,) = _of("Starvation", verdicts([run]))
    assert verdict.mood == "bad" and str(run["per_tenant"][2]["tenant"]) in verdict.text and "500 s" in verdict.text


def test_never_served_requests_are_told_with_their_reason(report: Any) -> None:
    run = report("stuck", failed=0.5).run
    (verdict,) = _of("Never served", verdicts([run]))
    assert verdict.mood == "bad" and f"{run['requests']['failed']} requests never got a token" in verdict.text
    assert "never scheduled" in verdict.text


def test_many_policies_do_not_make_many_sentences(report: Any) -> None:
    found = verdicts([report(f"p{n}", slowness=1 + n).run for n in range(9)])
    assert len(_of("SLO", found)) == 5 and len(_of("Never served", found)) == len(_of("Rejected", found)) == 1
    told = " ".join(verdict.text for verdict in _of("SLO", found))
    assert all(f"p{n} " in told for n in range(9))


def test_cautions_mark_oracles_and_warnings(report: Any) -> None:
    found = verdicts([report("a", oracle=True, warnings=("beyond the profile",)).run, report("b").run])
    texts = [verdict.text for verdict in _of("Caution", found)]
    assert any("a was told true output lengths" in text for text in texts)
    assert "beyond the profile (a)" in texts


def test_a_promised_bound_is_checked(report: Any) -> None:
    for bound, mood in ((1e9, "good"), (1e-3, "bad")):
        promised = [v for v in _of("Fairness", verdicts([report(bound=bound).run])) if "promises" in v.text]
        assert [v.mood for v in promised] == [mood]


def test_words() -> None:
    assert [seconds(v) for v in (0.00042, 0.42, 4.2149, 421.4, 0.0, None)] == [
        "420 µs",
        "420 ms",
        "4.21 s",
        "421 s",
        "0 s",
        "none",
    ]
    assert [percent(v) for v in (1.0, 0.99999, 0.931, 0.0)] == ["100 %", "99.9 %", "93.1 %", "0 %"]
    assert [count(v) for v in (12288.4, 3.0, 0.23456)] == ["12,288", "3", "0.235"]
    assert [change(*v) for v in ((108.2, 100), (100, 100), (1, 0), (5000, 1))] == [
        "+8.2 %",
        "no change",
        "from 0",
        "5,000 times",
    ]
