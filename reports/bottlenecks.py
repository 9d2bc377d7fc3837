"""Bottlenecks: sentences on what limited each policy, how much of the GPU it used, and what to try next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loratory.reports.number_text import count, listed, percent, plural
from loratory.reports.number_text import seconds as seconds_of
from loratory.reports.outcomes import reason_of
from loratory.reports.verdict_types import Mood, PolicyRuns, Verdict

NAMES: Mapping[str, str] = {
    "slots": "adapter slots (max_loras)",
    "seqs": "running requests (max_num_seqs)",
    "kv_blocks": "KV blocks",
    "tokens": "tokens per step (max_num_batched_tokens)",
    "loads": "adapter loads",
    "compute": "the GPU's compute",
    "policy": "the policy itself",
    "context": "the context limit (max_model_len)",
    "rejected": "rejected requests",
    "replicas": "replicas that are open",
    "none": "nothing",
}
"""The results of `bottleneck` in words."""

_HELD: Mapping[str, str] = {
    "slots": "each of the {limit} slots held an adapter that was in the batch or being loaded",
    "seqs": "{limit} requests were running",
    "kv_blocks": "too few of the {limit} KV blocks were free for a prompt",
    "tokens": "steps computed {limit} tokens",
    "loads": "an adapter was being loaded to the GPU",
    "policy": "there was room in slots, KV blocks, running requests and tokens",
}
_UNITS = {"slots": "slots", "seqs": "running requests", "kv_blocks": "KV blocks", "tokens": "tokens per step"}
_UNEVEN = 1.25
_PARTS = {
    "queue_s": "in the queue",
    "load_wait_s": "waiting for its adapter",
    "prefill_s": "prefill",
    "decode_s": "decode",
    "preempted_s": "preempted",
}


def advice_of(runs: Sequence[Mapping[str, Any]]) -> list[tuple[list[str], str]]:
    """(policies, advice) of these runs (as in summary.json): advice on the same change appears once."""
    found: dict[str, tuple[list[str], str]] = {}
    for run in runs:
        for text in run["advice"]:
            names, _ = found.setdefault(text.partition(":")[0], ([], text))
            if run["policy"] not in names:
                names.append(run["policy"])
    return list(found.values())


def bottlenecks(policies: list[PolicyRuns]) -> list[Verdict]:
    """The limits of the policies, each once, with the figures of the policy whose requests wait most for it."""
    mine: dict[str, list[PolicyRuns]] = {}
    for policy in policies:
        mine.setdefault(limit_of(policy.runs), []).append(policy)
    found = []
    for limit, those in mine.items():
        worst = max(those, key=lambda p: p.get("waiting.share") or 0.0)
        whose = "" if len(mine) == 1 else f" under {listed([p.name for p in those])}"
        mood: Mood = "bad" if all(p.missed for p in those) else "note"
        if limit == "none":
            text = f"Nothing holds requests back{whose}: {_waits(worst)}. {_time(worst)} {_nearest(worst)}"
        else:
            text = f"The first limit{whose} is {NAMES[limit]}: {_evidence(worst, limit, len(those) > 1)}"
        uneven = worst.get("engine.imbalance") or 1.0
        if uneven >= _UNEVEN:
            text += f" Replicas are uneven: the busiest has {uneven:.1f} times the mean load"
            text += "." if worst.mixed else ", so try another router."
        found.append(Verdict("Bottleneck", mood, text))
    return found


def limit_of(runs: Sequence[Mapping[str, Any]]) -> str:
    """The bottleneck that most of a policy's runs have."""
    limits = [str(run["bottleneck"]) for run in runs]
    return max(dict.fromkeys(limits), key=limits.count)


def utilisation(policies: list[PolicyRuns]) -> list[Verdict]:
    """Tokens/s per GPU against the cost model's ceiling, for each policy, and what else was in use."""
    known = [p for p in policies if p.get("throughput.output_tokens_per_s_per_gpu") is not None]
    if not known:
        return []
    rates = [p.mean["throughput.output_tokens_per_s_per_gpu"] for p in known]
    best = known[rates.index(max(rates))]
    alike = max(rates) - min(rates) <= 0.01 * max(rates)
    ceiling = best.get("throughput.ceiling_tokens_per_s_per_gpu")
    full = f", and their share of the {count(ceiling)} that the cost model gives with a full batch"
    of = "" if ceiling is None else full
    names = ["" if len(known) == 1 else f"{p.name} " for p in known]
    each = [f"{name}{count(rate)}{_share(p)}" for name, rate, p in zip(names, rates, known, strict=True)]
    shown = f"{count(max(rates))}{_share(best)} under every policy" if alike and len(known) > 1 else listed(each)
    whose = "" if alike else f" under {best.name}"
    busy = percent(best.get("engine.busy_share"))
    text = f"Output tokens/s per GPU{of}: {shown}. Steps ran {busy} of the time{whose}; in use at the median: "
    text += f"{', '.join(_in_use(best))}."
    return [Verdict("Utilisation", "note", text)]


def advice(policies: list[PolicyRuns]) -> list[Verdict]:
    """What to try next: a verdict for each change, with its policies."""
    found = []
    for names, text in advice_of([run for p in policies for run in p.runs]):
        whose = "" if len(names) == len(policies) else f" ({listed(names)})"
        found.append(Verdict("Next", "note", f"{text.removesuffix('.')}{whose}."))
    return found


def _waits(policy: PolicyRuns) -> str:
    return f"they wait for {percent(policy.get('waiting.share'))} of their time in the system"


def _time(policy: PolicyRuns) -> str:
    """The two largest parts of a completed request's time."""
    parts = sorted(((policy.get(f"waits_s.{part}") or 0.0, name) for part, name in _PARTS.items()), reverse=True)
    total = sum(seconds for seconds, _ in parts)
    if not total:
        return ""
    shares = [f"{percent(seconds / total)} of it {name}" for seconds, name in parts[:2] if seconds]
    return f"A request takes {seconds_of(total)} on average, {listed(shares)}."


def _evidence(policy: PolicyRuns, limit: str, named: bool) -> str:
    """The figures that show a limit."""
    of_whom = f" ({policy.name})" if named else ""
    if limit in ("context", "rejected"):
        lost = sum(run["rejected"]["count"] for run in policy.runs)
        sent = sum(run["requests"]["submitted"] for run in policy.runs)
        why = reason_of(policy.runs, "rejected")
        return f"{count(lost)} of {plural(sent, 'request')} {'was' if lost == 1 else 'were'} rejected{of_whom}: {why}."
    if limit == "replicas":
        lost = sum(run["never_served"]["count"] for run in policy.runs)
        sent = sum(run["requests"]["submitted"] for run in policy.runs)
        why = reason_of(policy.runs, "never_served")
        return (
            f"{count(lost)} of {plural(sent, 'request')} {'was' if lost == 1 else 'were'} never served{of_whom}: {why}."
        )
    share, stall = policy.get("waiting.share") or 0.0, policy.get("adapters.stall_share") or 0.0
    if limit == "compute":
        return (
            f"{count(policy.get('throughput.output_tokens_per_s_per_gpu'))} output tokens/s per GPU are "
            f"{percent(policy.get('throughput.ceiling_share'))} of what the cost model gives with a full batch, and "
            f"requests wait for {percent(share)} of their time{of_whom}."
        )
    if limit == "loads" and stall >= 0.01:
        return f"steps waited for them {percent(stall)} of the time{of_whom}."
    by = policy.get(f"waiting.by.{limit}") or 0.0
    limits = [_of(count(use.limit), use.kind) for use in _uses(policy, limit)] if limit in _UNITS else []
    held = _HELD[limit].format(limit=" or ".join(limits)) + _where(policy)
    others = [text for text in _in_use(policy) if limit in _UNITS and not text.endswith(_UNITS[limit])]
    beside = f" In use at the median: {', '.join(others)}." if others else ""
    return f"requests wait for {percent(share)} of their time; for {percent(by)} of that, {held}{of_whom}.{beside}"


def _nearest(policy: PolicyRuns) -> str:
    """The limit that was approached most closely."""
    uses = [(use.most / use.limit, name, use) for name in _UNITS for use in _uses(policy, name) if use.limit]
    reached = [_of(_UNITS[name], use.kind) for share, name, use in uses if share >= 1]
    if reached:
        return f"At times all were in use: {listed(reached)}."
    if not uses:
        return ""
    _, name, use = max(uses, key=lambda item: item[0])
    unit = _of(_UNITS[name], use.kind)
    return f"The closest to a limit are {unit}: at most {count(use.most)} of {count(use.limit)} in use."


def _in_use(policy: PolicyRuns) -> list[str]:
    """``8 of 8 slots`` for each resource, medians over step time, in the order of `_UNITS`."""
    found = []
    for name, unit in _UNITS.items():
        if name == "slots" and not policy.get("adapters.seen"):
            continue
        each = [
            _of(f"{count(round(use.median))}{'' if use.limit is None else f' of {count(use.limit)}'}", use.kind)
            for use in _uses(policy, name)
        ]
        found.append(f"{listed(each)} {unit}")
    return found


@dataclass(frozen=True, slots=True)
class _Use:
    """How much of one limit of a replica was in use: of replicas of a ``kind``, or of all of them ("")."""

    kind: str
    limit: float | None
    median: float
    most: float


def _uses(policy: PolicyRuns, name: str) -> list[_Use]:
    """One for each kind of replica where their limits differ, else one for all; means over seeds."""
    kinds = policy.runs[0]["usage"][name].get("kinds", {})
    places = {kind: f"usage.{name}.kinds.{kind}" for kind in kinds} or {"": f"usage.{name}"}
    return [
        _Use(kind, policy.get(f"{at}.limit"), policy.get(f"{at}.p50") or 0.0, policy.get(f"{at}.max") or 0.0)
        for kind, at in places.items()
    ]


def _of(text: str, kind: str) -> str:
    """``8 of 16 (h100-80gb)``."""
    return f"{text} ({kind})" if kind else text


def _where(policy: PolicyRuns) -> str:
    """In a fleet of several kinds, where requests wait most: ``; 80 % of it on a100-80gb``."""
    shares = {kind: policy.get(f"waiting.kinds.{kind}") or 0.0 for kind in policy.runs[0]["waiting"].get("kinds", {})}
    if not any(shares.values()):
        return ""
    most = max(shares, key=lambda kind: shares[kind])
    return f"; {percent(shares[most])} of all waiting is on {most}"


def _share(policy: PolicyRuns) -> str:
    share = policy.get("throughput.ceiling_share")
    return "" if share is None else f" ({percent(share)})"
