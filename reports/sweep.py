"""Sweep: the results of a scenario's variants side by side, one row for each variant and policy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from loratory.errors import several
from loratory.reports.bottlenecks import limit_of
from loratory.reports.number_text import count, listed, percent, plural, seconds
from loratory.reports.outcomes import unserved_runs
from loratory.reports.run_notes import run_notes
from loratory.reports.stats import half_width
from loratory.reports.summary import FORMAT, over_seeds, scalars
from loratory.reports.verdict_types import Verdict

_TEXTS, _LONGEST = 3, 80
"""Most texts that are shown of a fact that differs between variants, and the most characters of each."""


_Row = tuple[Mapping[str, Any], Mapping[str, Any]]
"""A variant and one of its policies, as in the summary."""


@dataclass(frozen=True, slots=True)
class VariantResult:
    """One variant that ran. ``folder``: its name inside the result; ``settings``: the swept keys with its values.

    ``setup`` and ``runs`` are those of its summary.json.
    """

    name: str
    folder: str
    settings: Mapping[str, Any]
    setup: Mapping[str, str]
    runs: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """One combination of the swept values that cannot run, and why."""

    name: str
    settings: Mapping[str, Any]
    why: str


def sweep_summary(
    swept: Mapping[str, Sequence[Any]], variants: Sequence[VariantResult], left_out: Sequence[LeftOut] = ()
) -> dict[str, Any]:
    """The content of a sweep's summary.json (docs/reports.md). ``swept``: the values of each swept key.

    ``setup`` has what is the same in all variants, and otherwise what there is in them.
    """
    labels = dict.fromkeys(label for variant in variants for label in variant.setup)
    summary = {
        "format": FORMAT,
        "setup": {label: _shared([variant.setup.get(label, "none") for variant in variants]) for label in labels},
        "sweep": {key: list(values) for key, values in swept.items()},
        "variants": [
            {
                "name": variant.name,
                "folder": variant.folder,
                "settings": dict(variant.settings),
                "policies": [_policy(each, variant.runs) for each in over_seeds(variant.runs)],
                "unserved": unserved_runs(variant.runs),
                "notes": run_notes(variant.runs),
            }
            for variant in variants
        ],
        "left_out": [asdict(each) for each in left_out],
    }
    summary["verdicts"] = [asdict(verdict) for verdict in sweep_verdicts(summary, variants)]
    return summary


def is_sweep_summary(summary: Mapping[str, Any]) -> bool:
    """Whether this is the content of a sweep's summary.json."""
    return {"sweep", "variants", "left_out"} <= set(summary)


def sweep_json(summary: Mapping[str, Any]) -> str:
    """JSON text of a sweep's summary: a line for each policy of each variant."""
    lines = ["{", f'"format": {summary["format"]},']
    lines += [f'"{key}": {json.dumps(summary[key])},' for key in ("setup", "sweep")]
    variants = []
    for variant in summary["variants"]:
        members = [f'  "{key}": {json.dumps(value)}' for key, value in variant.items() if key != "policies"]
        policies = ",\n".join(f"    {json.dumps(policy, allow_nan=False)}" for policy in variant["policies"])
        variants.append("{\n" + ",\n".join([*members, f'  "policies": [\n{policies}\n  ]']) + "\n}")
    lines += ['"variants": [', ",\n".join(variants), "],"]
    lines += [f'"left_out": {json.dumps(summary["left_out"])},', f'"verdicts": {json.dumps(summary["verdicts"])}', "}"]
    return "\n".join(lines) + "\n"


def _shared(texts: Sequence[str]) -> str:
    """The text of a fact in all variants: a few short ones, else the parts between commas that they share."""
    different = list(dict.fromkeys(texts))
    if len(different) == 1 or (len(different) <= _TEXTS and max(map(len, different)) <= _LONGEST):
        return " / ".join(different)
    every = [text.split(", ") for text in different]
    parts = [part for part in every[0] if all(part in other for other in every[1:])]
    return ", ".join([*parts, "the rest varies"])


def _policy(means: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    mine = [run for run in runs if run["policy"] == means["policy"]]
    verdicts = [run["slo"]["met"] for run in mine]
    return {
        "policy": means["policy"],
        "backend": means["backend"],
        "seeds": means["seeds"],
        "slo": {
            "met": False if False in verdicts else None if None in verdicts else True,
            "missed_seeds": [run["seed"] for run in mine if run["slo"]["met"] is False],
        },
        "bottleneck": limit_of(mine),
        "metrics": means["metrics"],
    }


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Each dotted key by its last part, or by as many parts as tell it from the others.

    >>> short_keys(["engine.max_loras", "cluster.router"])
    {'engine.max_loras': 'max_loras', 'cluster.router': 'router'}
    """
    short = {}
    for key in keys:
        parts = key.split(".")
        others = [other.split(".") for other in keys if other != key]
        number = 1
        while number < len(parts) and (
            parts[-number].isdigit() or any(other[-number:] == parts[-number:] for other in others)
        ):
            number += 1
        short[key] = ".".join(parts[-number:])
    return short


def variant_name(settings: Mapping[str, Any]) -> str:
    """``max_loras=8,router=round_robin``."""
    short = short_keys(list(settings))
    return ",".join(f"{short[key]}={value}" for key, value in settings.items())


def value_text(value: Any) -> str:
    """A swept value in a table: as JSON has it, without quotes around words."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def rows_of(summary: Mapping[str, Any]) -> list[_Row]:
    """(variant, policy) of each row of a sweep's tables, in the order of its summary."""
    return [(variant, policy) for variant in summary["variants"] for policy in variant["policies"]]


def policies_of(summary: Mapping[str, Any]) -> list[str]:
    """The policies of a sweep; each variant has them all."""
    return [policy["policy"] for policy in summary["variants"][0]["policies"]]


def row_name(summary: Mapping[str, Any], variant: Mapping[str, Any], policy: Mapping[str, Any]) -> str:
    """``max_loras=8 under fifo``; without the policy where there is one."""
    alone = len(policies_of(summary)) == 1
    return str(variant["name"]) if alone else f"{variant['name']} under {policy['policy']}"


def shared_notes(summary: Mapping[str, Any]) -> list[tuple[list[str], str]]:
    """(variants, sentence) for each note on the runs of a sweep; no names where it is on all variants."""
    found: dict[str, list[str]] = {}
    for variant in summary["variants"]:
        for text in variant["notes"]:
            found.setdefault(text, []).append(variant["name"])
    every = len(summary["variants"])
    return [([] if len(names) == every else names, text) for text, names in found.items()]


def slo_text(policy: Mapping[str, Any]) -> str:
    """``met``, ``missed``, or in how many of the seeds it was missed; ``-`` without an SLO."""
    missed, seeds = len(policy["slo"]["missed_seeds"]), len(policy["seeds"])
    if policy["slo"]["met"] is None:
        return "-"
    return "met" if not missed else "missed" if missed == seeds else f"missed by {missed} of {plural(seeds, 'seed')}"


_BEST: tuple[tuple[str, str, int], ...] = (
    ("TTFT p99", "ttft_s.p99", 1),
    ("TPOT p99", "tpot_s.p99", 1),
    ("Output tokens/s", "throughput.output_tokens_per_s", -1),
)
"""(topic, metric, 1 where less is better or -1) of the sentences on what is best."""


def sweep_verdicts(summary: Mapping[str, Any], variants: Sequence[VariantResult]) -> list[Verdict]:
    """What meets the SLO, and which row is best at each main metric, with its lead over the next."""
    return [*_slo_verdict(summary, variants), *(_best(summary, variants, *each) for each in _BEST)]


def _slo_verdict(summary: Mapping[str, Any], variants: Sequence[VariantResult]) -> list[Verdict]:
    rows = [row for row in rows_of(summary) if row[1]["slo"]["met"] is not None]
    if not rows:
        return []
    good = [row_name(summary, *row) for row in rows if row[1]["slo"]["met"]]
    limits = {listed([one["words"] for one in run["slo"]["targets"]]) for variant in variants for run in variant.runs}
    what = f" ({limits.pop()})" if len(limits) == 1 else ""
    of = f"{len(good)} of {len(rows)} combinations of settings and policy" if good else "No combination"
    verb = "meets" if len(good) < 2 else "meet"
    if good:
        every = "" if len(good) == len(rows) else f": {'; '.join(good[:8])}"
        more = f" and {len(good) - 8} more" if every and len(good) > 8 else ""
        return [Verdict("SLO", "good", f"{of} {verb} it{what} under every seed{every}{more}.")]
    nearest = max(rows, key=lambda row: _mean(row[1], "slo.attainment") or 0.0)
    share = percent(_mean(nearest[1], "slo.attainment"))
    name = row_name(summary, *nearest)
    return [Verdict("SLO", "bad", f"{of} {verb} it{what} under every seed; most requests within it: {share}, {name}.")]


def _best(summary: Mapping[str, Any], variants: Sequence[VariantResult], topic: str, metric: str, sign: int) -> Verdict:
    rows = [row for row in rows_of(summary) if _mean(row[1], metric) is not None]
    rows.sort(key=lambda row: sign * (_mean(row[1], metric) or 0.0))
    if not rows:
        return Verdict(topic, "note", "no run has it.")
    form = count if metric.startswith("throughput") else seconds
    best = rows[0]
    served = (_mean(best[1], "requests.completed") or 0.0) / max(_mean(best[1], "requests.submitted") or 0.0, 1.0)
    lost = f", where {percent(served)} of the requests complete" if served < 1 else ""
    text = f"{'least' if sign > 0 else 'most'} with {row_name(summary, *best)}: {form(_mean(best[1], metric))}{lost}"
    others = [(row, _apart(variants, best, row, metric)) for row in rows[1:]]
    same = [row_name(summary, *row) for row, apart in others if not any(apart)]
    if same:
        text += f", the same with {several(same, 2)}"
    following = next(((row, apart) for row, apart in others if any(apart)), None)
    if following is not None:
        row, apart = following
        text += f"; next {row_name(summary, *row)}: {form(_mean(row[1], metric))}{_clear(apart)}"
    return Verdict(topic, "note", f"{text}.")


def _apart(variants: Sequence[VariantResult], best: _Row, other: _Row, metric: str) -> list[float]:
    """How far two rows are apart under each seed that both have."""
    mine, theirs = _by_seed(variants, *best, metric), _by_seed(variants, *other, metric)
    return [theirs[seed] - value for seed, value in mine.items() if seed in theirs]


def _clear(apart: Sequence[float]) -> str:
    """Whether a difference is clear: the interval of the differences of equal seeds."""
    half = half_width(apart)
    if half is None:
        return ", of one seed"
    clear = abs(sum(apart) / len(apart)) > half
    return ", a clear difference over these seeds" if clear else ", too close to call over these seeds"


def _by_seed(
    variants: Sequence[VariantResult], variant: Mapping[str, Any], policy: Mapping[str, Any], metric: str
) -> dict[int, float]:
    runs = next(each.runs for each in variants if each.name == variant["name"])
    values = {run["seed"]: scalars(run).get(metric) for run in runs if run["policy"] == policy["policy"]}
    return {seed: value for seed, value in values.items() if value is not None}


def _mean(policy: Mapping[str, Any], metric: str) -> float | None:
    found = policy["metrics"].get(metric)
    return None if found is None else found["mean"]
