"""Verdicts: the first sentences of a report, computed from its runs, with numbers and units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loratory.reports.bottlenecks import advice, bottlenecks, utilisation
from loratory.reports.fitted_ranges import warnings_of
from loratory.reports.groups import LONG_S, TOO_LONG_S, starving
from loratory.reports.number_text import count, listed, percent, plural, seconds
from loratory.reports.outcomes import reason_of
from loratory.reports.policy_differences import costs, differ, one_request, sameness
from loratory.reports.seeds import seed_notes
from loratory.reports.slo import ATTAINMENT, SloLimit, further_targets, read_slo
from loratory.reports.target_rows import missed_words
from loratory.reports.verdict_types import Mood, PolicyRuns, Verdict, by_policy
from loratory.reports.warmup import warmup_notes

MATTERS = 0.01
"""From this share of the requests on, rejected or truncated requests are marked as bad."""

_DETAILED = 3
"""Most policies that miss the SLO with a sentence each: those that come closest."""

_COSTS = {
    "ttft_s.mean": "mean TTFT",
    "ttft_s.p99": "TTFT p99",
    "throughput.output_tokens_per_s": "output throughput",
    "adapters.loads": "adapter loads",
}


def verdicts(runs: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """All verdicts on these runs, the most important first."""
    policies = by_policy(runs)
    parts = (
        _slo,
        bottlenecks,
        utilisation,
        advice,
        sameness,
        starving,
        _unserved,
        _cache,
        _fairness,
        _cautions,
    )
    return [verdict for part in parts for verdict in part(policies)]


def _slo(policies: list[PolicyRuns]) -> list[Verdict]:
    slo = policies[0].runs[0]["slo"]
    limits, wanted, targets = read_slo(slo["limits"]), slo["limits"].get(ATTAINMENT), further_targets(slo)
    if not limits and not targets:
        best = _lowest(policies, "ttft_s.p99")
        if best is None:
            return [Verdict("SLO", "bad", "No request got a token, so there is no latency to report.")]
        others = [p for p in policies if p is not best]
        apart = any(differ(best, p, "ttft_s.p99") for p in others)
        lowest = f"{'Lowest ' if apart else ''}TTFT p99: {best.name + ' with ' if others and apart else ''}"
        text = f"The scenario sets no SLO. {lowest}{seconds(best.get('ttft_s.p99'))}."
        return [Verdict("SLO", "bad" if best.mean["ttft_s.p99"] > TOO_LONG_S else "note", text)]
    goals = [limit.words for limit in limits]
    goals += [] if wanted is None else [f"all of these for {percent(wanted)} of requests"]
    goal = listed([*goals, *(target["words"] for target in targets)])
    met = [p for p in policies if all(run["slo"]["met"] for run in p.runs)]
    if met:
        names = listed([_attained(p) for p in met])
        text = f"{names} {'meet' if len(met) > 1 else 'meets'} the SLO ({goal})."
        doubts = _doubts(met, limits)
        found = [Verdict("SLO", "note" if doubts else "good", " ".join([text, *doubts]))]
    else:
        found = [Verdict("SLO", "bad", f"No policy here meets the SLO ({goal}).")]
    missed = sorted((p for p in policies if p not in met), key=lambda p: -(p.get("slo.attainment") or 0.0))
    found += [Verdict("SLO", "bad", _missed(policy, limits)) for policy in missed[:_DETAILED]]
    if rest := missed[_DETAILED:]:
        names = listed([_attained(p) for p in rest])
        found.append(Verdict("SLO", "bad", f"Farther from it: {names}."))
    return found


def _attained(policy: PolicyRuns) -> str:
    """A policy's name with the share of requests within every limit on all of them, where there is such a limit."""
    share = policy.get("slo.attainment")
    return policy.name if share is None else f"{policy.name} ({percent(share)} of requests)"


def _doubts(met: list[PolicyRuns], limits: list[SloLimit]) -> list[str]:
    """Why meeting an SLO is not a good sign: waits that it does not limit, and queues that still grow."""
    doubts = []
    slowest = max(met, key=lambda p: p.get("ttft_s.p99") or 0.0)
    longest = slowest.get("ttft_s.p99") or 0.0
    limited = {limit.metric for limit in limits}
    limited |= {metric for target in further_targets(met[0].runs[0]["slo"]) for metric in target["metrics"]}
    if longest > LONG_S and not limited & {"ttft", "e2e", "queue"}:
        doubts.append(f"But it sets no limit on TTFT, whose p99 is {seconds(longest)} under {slowest.name}.")
    growing = [p.name for p in met if all(run["warmup"]["state"] == "no steady state" for run in p.runs)]
    if growing:
        whose = listed(growing)
        doubts.append(f"But the requests in the system do not settle under {whose}: a longer run may miss it.")
    return doubts


def _missed(policy: PolicyRuns, limits: list[SloLimit]) -> str:
    """By how much a policy misses the SLO."""
    failing = []
    for limit in limits:
        values = [run["slo"]["values"].get(limit.key) for run in policy.runs]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            failing.append(f"too many requests did not complete for a {limit.label}")
        elif max(known) > limit.most_s:
            failing.append(f"{limit.label} {seconds(sum(known) / len(known))} against {seconds(limit.most_s)}")
    failing += missed_words(policy.runs)
    if not policy.missed:
        return f"{policy.name} is not judged: a target is about requests of which none was measured."
    seeds = sum(not run["slo"]["met"] for run in policy.runs)
    often = "" if len(policy.runs) == 1 else f" in {seeds} of {len(policy.runs)} seeds"
    reasons = f": {listed(failing)}" if failing else ""
    share = policy.get("slo.attainment")
    kept = "" if share is None else f"{';' if failing else ':'} {percent(share)} of requests met every limit"
    return f"{policy.name} misses the SLO{often}{reasons}{kept}."


def _unserved(policies: list[PolicyRuns]) -> list[Verdict]:
    """Requests that were never served, rejected or truncated: of the worst policy with the reason, then the others."""
    found = []
    for kind, topic, words in (
        ("never_served", "Never served", "{} never got a token"),
        ("rejected", "Rejected", "{} rejected"),
        ("truncated", "Truncated", "{} truncated"),
    ):
        counts = [(sum(run[kind]["count"] for run in p.runs), p) for p in policies]
        hit = sorted((item for item in counts if item[0]), key=lambda item: -item[0])
        if not hit:
            continue
        total, worst = hit[0]
        share = total / max(sum(run["requests"]["submitted"] for run in worst.runs), 1)
        requests = plural(total, "request") + ("" if kind == "never_served" else " was" if total == 1 else " were")
        text = f"Under {worst.name}, {words.format(requests)}, {percent(share)} of all: {reason_of(worst.runs, kind)}."
        if kind == "never_served":
            adapters = next(run[kind]["adapters"] for run in worst.runs if run[kind]["count"])
            text += f" {next(iter(adapters))} was hit hardest."
        if len(hit) > 1:
            text += f" Others: {listed([f'{count(number)} under {other.name}' for number, other in hit[1:]])}."
        mood: Mood = "bad" if kind == "never_served" or share >= MATTERS else "note"
        found.append(Verdict(topic, mood, text))
    return found


def _cache(policies: list[PolicyRuns]) -> list[Verdict]:
    known = [p for p in policies if p.get("adapters.hit_rate") is not None]
    if not known:
        return [Verdict("Adapter cache", "note", "No request that ran used an adapter.")]
    ordered = sorted(known, key=lambda p: -p.mean["adapters.hit_rate"])
    alike = ordered[0].mean["adapters.hit_rate"] - ordered[-1].mean["adapters.hit_rate"] < 0.0005
    shown = [ordered[0]] if alike else [ordered[0], ordered[-1]]
    parts = [
        f"{p.name} finds the adapter on the GPU for {percent(p.get('adapters.hit_rate'))} of adapter requests "
        f"({count(p.get('adapters.loads'))} loads, {count(p.get('adapters.evictions'))} evictions, "
        f"{percent(_load_share(p))} of end-to-end time spent waiting for loads)"
        for p in shown
    ]
    text = "; ".join(parts) + (". The other policies find it as often." if alike and len(ordered) > 1 else ".")
    return [Verdict("Adapter cache", "note", text)]


def _load_share(policy: PolicyRuns) -> float | None:
    wait, total = policy.get("waits_s.load_wait_s"), policy.get("e2e_s.mean")
    return None if wait is None or not total else wait / total


def _fairness(policies: list[PolicyRuns]) -> list[Verdict]:
    if max(len(run["per_tenant"]) for p in policies for run in p.runs) < 2:
        return [Verdict("Fairness", "note", "There is one tenant, so there is no fairness between tenants to measure.")]
    found = []
    reference = next((p for p in policies if p.name == "fifo"), policies[0])
    fairest = min(policies, key=_gap)
    if fairest is not reference and differ(reference, fairest, "fairness.max_service_gap"):
        text = (
            f"{fairest.name} has the smallest service gap between backlogged tenants: {count(_gap(fairest))} weighted "
            f"tokens against {count(_gap(reference))} under {reference.name}. Against {reference.name}: "
            f"{', '.join(costs(reference, fairest, _COSTS))}."
        )
        found.append(Verdict("Fairness", "note", text))
    elif len(policies) > 1 and max(map(_gap, policies)) < one_request(reference):
        text = "Service gaps between backlogged tenants stay below the service of one request under every policy."
        found.append(Verdict("Fairness", "note", text))
    elif len(policies) > 1:
        gap = f"{count(_gap(reference))} weighted tokens"
        text = f"No policy clearly narrows the service gap of {reference.name}, {gap}."
        found.append(Verdict("Fairness", "note", text))
    for policy in policies:
        bound = policy.get("fairness.bound")
        if bound is not None:
            worst = max(run["fairness"]["max_service_gap"] for run in policy.runs)
            kept = worst <= bound
            text = (
                f"{policy.name} promises a service gap of at most {count(bound)} weighted tokens; the largest measured "
                f"is {count(worst)}."
            )
            calm = not policy.missed and (policy.get("ttft_s.p99") or 0.0) <= LONG_S
            mood: Mood = "bad" if not kept else "good" if calm else "note"
            found.append(Verdict("Fairness", mood, text))
    return found


def _gap(policy: PolicyRuns) -> float:
    return policy.mean["fairness.max_service_gap"]


def _cautions(policies: list[PolicyRuns]) -> list[Verdict]:
    found = []
    oracles = [p.name for p in policies if any(run["oracle"] for run in p.runs)]
    if oracles:
        verb = "was" if len(oracles) == 1 else "were"
        text = f"{listed(oracles)} {verb} given true output lengths (an oracle), which no policy knows in production."
        found.append(Verdict("Caution", "bad", text))
    found += [Verdict("Warm-up", "note", text) for text in warmup_notes([r for p in policies for r in p.runs])]
    found += [Verdict("Seeds", "note", text) for text in seed_notes([r for p in policies for r in p.runs])]
    warnings: dict[str, list[str]] = {}
    named_runs = [(policy.name, run) for policy in policies for run in policy.runs]
    for (name, _), texts in zip(named_runs, warnings_of([run for _, run in named_runs]), strict=True):
        for warning in texts:
            names = warnings.setdefault(warning, [])
            if name not in names:
                names.append(name)
    for warning, names in warnings.items():
        named = len(names) == len(policies) or warning.startswith(f"{names[0]}: ")
        found.append(Verdict("Caution", "note", warning if named else f"{warning} ({listed(names)})"))
    return found


def _lowest(policies: list[PolicyRuns], metric: str) -> PolicyRuns | None:
    known = [p for p in policies if p.get(metric) is not None]
    return min(known, key=lambda p: p.mean[metric]) if known else None
