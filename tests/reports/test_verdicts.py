"""Verdicts say what the runs show: each sentence is checked against a run made to deserve it."""

from __future__ import annotations

from typing import Any

from loratory.reports import Verdict, verdicts
from loratory.reports.groups import groups
from loratory.reports.number_text import change, count, percent, seconds


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
    assert any("a was given true output lengths" in text for text in texts)
    assert "beyond the profile (a)" in texts


def test_a_promised_bound_is_checked(report: Any) -> None:
    calm = {"rejected": 0.0, "failed": 0.0, "slo": {"ttft_p99_s": 100.0}}
    for bound, mood in ((1e9, "good"), (1e-3, "bad")):
        promised = [v for v in _of("Fairness", verdicts([report(bound=bound, **calm).run])) if "promises" in v.text]
        assert [v.mood for v in promised] == [mood]
    (missed,) = [v for v in _of("Fairness", verdicts([report(bound=1e9).run])) if "promises" in v.text]
    assert missed.mood == "note"


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


def _settled(run: dict[str, Any], **ttft: float) -> dict[str, Any]:
    """The run as one that has settled, with these TTFT figures."""
    run["warmup"]["state"] = "steady"
    run["ttft_s"] |= ttft
    return run


def test_no_green_tick_beside_a_missed_slo_or_a_wait_of_minutes(report: Any) -> None:
    calm = {"rejected": 0.0, "failed": 0.0, "bound": 1e9, "slowness": 0.01}
    fine = _settled(report("fine", **calm, slo={"ttft_p99_s": 30.0}).run)
    assert "good" in {v.mood for v in verdicts([fine]) if v.topic in ("SLO", "Starvation", "Fairness")}
    missed = _settled(report("late", **calm, slo={"ttft_p99_s": 1e-6}).run)
    assert not [v for v in verdicts([missed]) if v.mood == "good"]
    unlimited = _settled(report("slow", **calm, slo={"tpot_p99_s": 100.0}).run, p99=180.0)
    for unit in ("per_adapter", "per_tenant"):
        for row in unlimited[unit]:
            row["ttft_p99_s"] = 180.0
    found = verdicts([unlimited])
    assert not [v for v in found if v.mood == "good"]
    assert "sets no limit on TTFT, whose p99 is 180 s under slow" in found[0].text
    assert [v.mood for v in _of("Starvation", found)] == ["bad"]


def test_an_slo_met_while_the_queue_grows_is_no_good_sign(report: Any) -> None:
    run = _settled(report("a", rejected=0.0, failed=0.0, slowness=0.1, slo={"ttft_p99_s": 30.0}).run)
    run["warmup"]["state"] = "no steady state"
    first = verdicts([run])[0]
    assert first.mood == "note" and "a longer run may miss it" in first.text


def test_verdict_and_table_name_the_same_adapter_with_the_same_figure(report: Any) -> None:
    """The mean over seeds, although another adapter is the worst of the first seed."""
    runs = [report("fifo", seed, adapters=4, tenants=2, requests=400, rejected=0.0, failed=0.0).run for seed in (0, 1)]
    seconds_of = ({"adapter-1": 30.0, "adapter-2": 20.0}, {"adapter-1": 2.0, "adapter-2": 20.0})
    for run, worst in zip(runs, seconds_of, strict=True):
        for row in run["per_adapter"]:
            row["ttft_p99_s"] = worst.get(row["adapter"], 1.0)
    (verdict,) = [v for v in _of("Starvation", verdicts(runs)) if " adapter " in v.text]
    assert "adapter adapter-2 waits longest: TTFT p99 20 s, 20.0 times" in verdict.text
    first, second, *_ = groups(runs, "adapter")
    assert (first["adapter"], first["ttft_p99_s"]) == ("adapter-2", 20.0)
    assert (second["adapter"], second["ttft_p99_s"]) == ("adapter-1", 16.0)


def test_groups_with_few_requests_come_last_in_the_table_too(report: Any) -> None:
    run = report("fifo", adapters=3, requests=300).run
    run["per_adapter"][0] |= {"requests": 2, "ttft_p99_s": 1e6}
    rows = groups([run], "adapter")
    assert rows[-1]["few"] and rows[-1]["ttft_p99_s"] == 1e6 and not rows[0]["few"]


def test_policies_that_do_not_differ_are_said_not_to(report: Any) -> None:
    same = [report(name, seed).run for name in ("fifo", "affinity") for seed in (0, 1, 2)]
    (verdict,) = _of("No difference", verdicts(same))
    assert verdict.text.startswith("affinity does not differ from fifo here")
    other = [report("slow", seed, slowness=4.0).run for seed in (0, 1, 2)]
    found = verdicts(same + other)
    assert [v.text.split(" do")[0] for v in _of("No difference", found)] == ["affinity"]
    assert not _of("No difference", verdicts(same[:3] + other))


def test_a_policy_is_the_same_within_the_noise_of_its_seeds(report: Any) -> None:
    """2 % in both seeds is a difference, 0.5 % in both is none; +2 % in one and -1 % in the other says nothing."""
    cases = (((1.02, 0.99), "Undecided"), ((1.02, 1.02), ""), ((1.005, 1.005), "No difference"))
    for factors, topic in cases:
        runs, others = ([report(name, seed).run for seed in (0, 1)] for name in ("fifo", "x"))
        for before, after, factor in zip(runs, others, factors, strict=True):
            before["ttft_s"]["p99"] = 1.0
            after["ttft_s"]["p99"] = factor
        told = [v for v in verdicts(runs + others) if v.topic in ("No difference", "Undecided")]
        assert [v.topic for v in told] == ([topic] if topic else [])
        if topic == "Undecided":
            assert "x cannot be told apart from fifo with 2 seeds" in told[0].text
            assert "(TTFT p99 under x, +0.5 % ± 19.1 %)" in told[0].text


def test_a_caution_names_its_policy_once(report: Any) -> None:
    warning = "a: no request has a deadline"
    found = verdicts([report("a", warnings=(warning,)).run, report("b").run])
    assert warning in [v.text for v in _of("Caution", found)]


def test_the_bottleneck_comes_with_its_figures_and_what_to_try(report: Any) -> None:
    run = report("fifo", slowness=3.0).run
    run["bottleneck"], run["waiting"]["share"], run["waiting"]["by"]["slots"] = "slots", 0.4, 0.9
    run["usage"]["slots"] |= {"limit": 8, "p50": 8}
    run["advice"] = ["Try engine.max_loras 16: it fits."]
    found = verdicts([run])
    (verdict,) = _of("Bottleneck", found)
    assert "adapter slots (max_loras): requests wait for 40 % of their time; for 90 % of that," in verdict.text
    assert "8 slots" in verdict.text and "running requests" in verdict.text
    assert [v.text for v in _of("Next", found)] == ["Try engine.max_loras 16: it fits."]
    run["throughput"] |= {"ceiling_tokens_per_s_per_gpu": 1000.0, "ceiling_share": 0.25}
    (used,) = _of("Utilisation", verdicts([run]))
    assert "share of the 1,000 that the cost model gives" in used.text and "(25 %)" in used.text


def test_where_nothing_limits_the_time_itself_is_told(report: Any) -> None:
    run = report("fifo").run
    run["bottleneck"] = "none"
    run["waits_s"] |= {"queue_s": 0.0, "load_wait_s": 0.0, "prefill_s": 1.0, "decode_s": 3.0, "preempted_s": 0.0}
    (verdict,) = _of("Bottleneck", verdicts([run]))
    assert verdict.mood == "bad" and "takes 4 s on average, 75 % of it decode and 25 % of it prefill" in verdict.text
