"""Outcomes: requests that were rejected, truncated or never served: how many, why and whose; sentences on them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loratory.errors import several, shortened
from loratory.reports.arrow_arrays import numeric
from loratory.reports.number_text import listed, plural
from loratory.reports.run_columns import Flags, RunColumns

OUTCOMES = ("rejected", "truncated", "never_served")
"""The keys that `outcomes` adds to a ``run`` object."""

LEFT_OVER = "never served"
"""The beginning of a backend's reason for a request that was left at the end."""

LEFT_WAITING = f"{LEFT_OVER}: the policy"
"""The same where its policy left it waiting."""

NO_REPLICA = "no replica was open"
"""What the reason says where none of a fleet was there for it."""

_NAMED = 20
"""Most request ids, adapters and reasons that are kept of each outcome."""

_VARIES = re.compile(r"'[^']*'|\"[^\"]*\"|(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w])")
"""The parts in which two texts with the same reason may differ: names in quotes, and numbers."""

_REFUSED = {
    "slots": "no GPU slot is free",
    "kv": "too few KV blocks are free",
    "seqs": "max_num_seqs requests are running",
    "budget": "the step's tokens are spent",
    "adapter": "the adapter is not on the GPU",
    "pinned": "the adapter is pinned",
    "in_use": "it is in use",
    "unknown": "there is no such request or adapter, or it is not in a state for that",
}
"""The meaning of the ledger's words of refusal (`loratory.serving.actions.Outcome`)."""


def outcomes(run: RunColumns) -> dict[str, dict[str, Any]]:
    """``rejected``, ``truncated`` and ``never_served`` of one run, each ``{count, why, adapters, first}``.

    ``why`` counts the requests of each reason, the most frequent first; texts that differ only in numbers or quoted
    names are one reason. ``never_served`` are requests without a token that were not rejected; it also has a ``cause``:
    the probable mistake of the policy, or None.
    """
    rejected = run.has_status("rejected")
    never = np.isnan(run.first) & ~rejected
    truncated = run.number("truncated") > 0
    found = {
        "rejected": _outcome(run, rejected, _whys(run, rejected)),
        "truncated": _outcome(run, truncated, _limits(run, truncated)),
        "never_served": _outcome(run, never, _whys(run, never)),
    }
    reasons = list(found["never_served"]["why"])
    left = bool(reasons) and reasons[0].startswith(LEFT_WAITING)
    found["never_served"]["cause"] = _cause(run) if left else None
    return found


def outcome_notes(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, float]]:
    """(outcome, sentence, share of the requests) for each policy of these runs (as in summary.json) and outcome.

    Policies with the same outcome share a sentence.

    >>> outcome_notes(summary["runs"])  # doctest: +SKIP
    [("rejected", "fifo: 12 of 12 requests were rejected: ...", 1.0)]
    """
    found: dict[tuple[str, str, float], list[str]] = {}
    for policy in dict.fromkeys(run["policy"] for run in runs):
        mine = [run for run in runs if run["policy"] == policy]
        sent = sum(run["requests"]["submitted"] for run in mine)
        for kind, verb in zip(OUTCOMES, ("rejected", "truncated", "never served"), strict=True):
            number = sum(run[kind]["count"] for run in mine)
            if number:
                was = "was" if number == 1 else "were"
                text = f"{number:,} of {plural(sent, 'request')} {was} {verb}: {reason_of(mine, kind)}"
                found.setdefault((kind, text, number / sent), []).append(shortened(policy, 80))
    return [
        (kind, f"{shortened(several(names, 4) if len(names) > 4 else listed(names), 160)}: {text}", share)
        for (kind, text, share), names in found.items()
    ]


def reason_of(runs: Sequence[Mapping[str, Any]], kind: str) -> str:
    """Why requests of these runs had this outcome: the most frequent reason, an example, and the probable cause."""
    why: Counter[str] = Counter()
    for run in runs:
        why.update(run[kind]["why"])
    found = grouped(why)
    reason, number = next(iter(found.items()))
    first = next(run[kind]["first"][0] for run in runs if run[kind]["first"])
    parts = [shortened(reason.removeprefix(f"{LEFT_OVER}: ") or "no reason given", 160)]
    if len(found) > 1:
        parts[0] += f" ({number:,} of them; {plural(len(found) - 1, 'other reason')})"
    parts[0] += f", such as request {shortened(first, 40)}"
    cause = next((run[kind]["cause"] for run in runs if run[kind].get("cause")), None)
    return "; ".join([*parts, cause] if cause else parts)


def unserved_runs(runs: Sequence[Mapping[str, Any]]) -> str | None:
    """One sentence on the runs in which no request completed, or None without such a run."""
    empty = [run for run in runs if not run["requests"]["completed"]]
    if not empty:
        return None
    names = [
        f"{shortened(run['policy'], 60)} (seed {run['seed']})" if len(runs) > 1 else shortened(run["policy"], 80)
        for run in empty
    ]
    counts = {status: sum(run["requests"][status] for run in empty) for status in ("rejected", "aborted", "failed")}
    parts = [f"{number:,} {status}" for status, number in counts.items() if number]
    kind = "rejected" if counts["rejected"] >= counts["aborted"] + counts["failed"] else "never_served"
    why = [run for run in empty if run[kind]["count"]]
    reason = f": {reason_of(why, kind)}" if why else ""
    sent = sum(run["requests"]["submitted"] for run in empty)
    what = f"{listed(parts)} of {sent:,}" if parts else "none arrived before the run ended"
    return f"no request completed under {several(names, 3)} ({what}){reason}"


def grouped(why: Mapping[str, int]) -> dict[str, int]:
    """Counts reasons, the most frequent first; texts that differ only in numbers or quoted names are one reason.

    >>> grouped({"prompt of 7 tokens": 2, "prompt of 12 tokens": 1})
    {'prompt of 7 to 12 tokens': 3}
    """
    shapes: dict[str, list[str]] = {}
    for text in why:
        shapes.setdefault(_VARIES.sub("\0", text), []).append(text)
    found: Counter[str] = Counter()
    for shape, texts in shapes.items():
        found[_merged(shape, texts)] += sum(why[text] for text in texts)
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _merged(shape: str, texts: list[str]) -> str:
    """One text for several of the same shape: ``12 to 40`` for numbers that differ, ``'a' and 2 more`` for names."""
    if len(texts) == 1:
        return texts[0]
    parts = iter([_together(values) for values in zip(*(_VARIES.findall(text) for text in texts), strict=True)])
    return re.sub("\0", lambda _: next(parts), shape)


def _together(values: Sequence[str]) -> str:
    different = list(dict.fromkeys(values))
    if len(different) == 1:
        return different[0]
    if any(value[0] in "'\"" for value in different):
        return several(different, 1)
    return f"{min(different, key=float)} to {max(different, key=float)}"


def _outcome(run: RunColumns, chosen: Flags, why: Mapping[str, int]) -> dict[str, Any]:
    places = np.flatnonzero(chosen)
    ids = run.records.requests.read(["request_id"]).column("request_id").take(numeric(places[:_NAMED])).to_pylist()
    code, names = run.named("adapter")
    adapters = Counter("base model" if code[i] < 0 else names[code[i]] for i in places)
    return {
        "count": len(places),
        "why": dict(list(grouped(why).items())[:_NAMED]),
        "adapters": dict(sorted(adapters.items(), key=lambda item: (-item[1], item[0]))[:_NAMED]),
        "first": ids,
    }


def _whys(run: RunColumns, chosen: Flags) -> dict[str, int]:
    """How many of the chosen requests ended with each text."""
    code, texts = run.named("why")
    found = np.bincount(code[chosen & (code >= 0)], minlength=len(texts))
    return {text: int(number) for text, number in zip(texts, found, strict=True) if number}


def _limits(run: RunColumns, chosen: Flags) -> dict[str, int]:
    """What ended the outputs of truncated requests, whose prompt and output together are as long as the limit."""
    total = (run.number("prompt_tokens") + run.output)[chosen].astype(np.int64)
    found: Counter[str] = Counter()
    for limit, number in zip(*(values.tolist() for values in np.unique(total, return_counts=True)), strict=True):
        if limit == run.info.max_model_len:
            found[f"max_model_len {limit} ended the output"] += number
        else:
            found[f"the KV cache, which holds {limit - 1} tokens of one request, ended the output"] += number
    return found


def _cause(run: RunColumns) -> str | None:
    """The probable mistake of a run's policy."""
    return probable_cause(run.info.refusals, len(run.event_times("load")), bool(np.isnan(run.number("admitted")).all()))


def probable_cause(refusals: Mapping[str, Mapping[str, int]], loads: int, never_admitted: bool) -> str | None:
    """The probable mistake of a policy that left requests waiting, if the ledger's refusals show it.

    ``refusals``: see `loratory.serving.engine.Engine.refusals`. ``loads``: adapter loads that began.
    """
    admits, failed = Counter(refusals.get("admit", {})), Counter(refusals.get("load", {}))
    if admits["adapter"] and not loads and not failed:
        return f"{_times('admit', admits)}: the policy admits without loading: yield Load first, or use want"
    if failed and failed.total() >= admits.total() - admits["adapter"]:
        hint = ": yield Evict first, or use want" if failed.most_common(1)[0][0] == "slots" else ""
        return _times("load", failed) + hint
    if admits:
        return _times("admit", admits)
    return "the policy admitted no request: yield Admit, or use want" if never_admitted else None


def _times(action: str, refusals: Counter[str]) -> str:
    word, number = refusals.most_common(1)[0]
    return f"{action} was refused {plural(number, 'time')} ({_REFUSED.get(word, word)})"
