"""Regret: how far policies are from a clairvoyant's run of the same scenario, and from what no policy can beat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loratory.reports.number_text import count, listed, percent, seconds
from loratory.reports.stats import cleaned
from loratory.reports.summary import over_seeds

_Form = Callable[[float | None], str]

MEASURES: tuple[tuple[str, str, _Form], ...] = (
    ("TTFT mean", "ttft_s.mean", seconds),
    ("E2E mean", "e2e_s.mean", seconds),
    ("TTFT p99", "ttft_s.p99", seconds),
    ("loads", "adapters.loads", count),
    ("hit rate", "adapters.hit_rate", percent),
    ("within the SLO", "slo.attainment", percent),
)
"""(label, metric, form) of what is compared with the clairvoyant."""

_BOUND = "lower_bound."
_SAID = (("mean TTFT", "ttft_s.mean"), ("mean E2E", "e2e_s.mean"))


def regret_of(runs: Sequence[Mapping[str, Any]], clairvoyant: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The ``regret`` object of a summary: the clairvoyant's metrics, and of each policy what it is to them.

    ``runs`` and ``clairvoyant`` are run objects of the same scenario and seeds. ``ratio``: a policy's mean over seeds
    over the clairvoyant's, below 1 where the policy has less of it; None where the clairvoyant has 0 or no value.
    ``lower_bound``: what no policy can go below on the requests that this policy served, means over seeds.
    """
    (best,) = over_seeds(clairvoyant)
    policies = []
    for policy in over_seeds(runs):
        metrics = policy["metrics"]
        known = [path for _, path, _ in MEASURES if path in metrics]
        policies.append(
            {
                "policy": policy["policy"],
                "ratio": cleaned({path: _ratio(metrics[path], best["metrics"].get(path)) for path in known}),
                "lower_bound": _bounds(metrics),
            }
        )
    return {"clairvoyant": best, "lower_bound": _bounds(best["metrics"]), "policies": policies}


def _ratio(mine: Mapping[str, float], best: Mapping[str, float] | None) -> float | None:
    return mine["mean"] / best["mean"] if best is not None and best["mean"] else None


def _bounds(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {path.removeprefix(_BOUND): metrics[path]["mean"] for path in metrics if path.startswith(_BOUND)}


def regret_table(policies: Sequence[Mapping[str, Any]], regret: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of a table: the clairvoyant, the lower bound, then each policy's value with its ratio.

    ``policies`` are those of the summary, in the same order as those of its ``regret``.
    """
    best = regret["clairvoyant"]
    shown = [m for m in MEASURES if m[1] in best["metrics"]]
    rows = [
        [best["policy"], *(form(best["metrics"][path]["mean"]) for _, path, form in shown)],
        ["lower bound", *(_or_dash(form, regret["lower_bound"].get(path)) for _, path, form in shown)],
    ]
    for policy, other in zip(policies, regret["policies"], strict=True):
        cells = []
        for _, path, form in shown:
            metric, ratio = policy["metrics"].get(path), other["ratio"].get(path)
            text = _or_dash(form, None if metric is None else metric["mean"])
            cells.append(text if ratio is None else f"{text} ({_times(ratio)}×)")
        rows.append([policy["policy"], *cells])
    return ["policy", *(label for label, _, _ in shown)], rows


def regret_sentences(regret: Mapping[str, Any]) -> list[str]:
    """Each policy in words: ``fifo: mean TTFT 1.17 and mean E2E 1.01 times the clairvoyant's.``"""
    found = []
    for policy in regret["policies"]:
        said = [f"{words} {_times(r)}" for words, path in _SAID if (r := policy["ratio"].get(path)) is not None]
        if said:
            found.append(f"{policy['policy']}: {listed(said)} times the clairvoyant's.")
    return found


def regret_notes(policies: Sequence[Mapping[str, Any]], regret: Mapping[str, Any]) -> list[str]:
    """What the clairvoyant is, and where its means are over other requests than a policy's."""
    best = regret["clairvoyant"]
    found = [
        "The clairvoyant knows the future: it goes by true output lengths, and evicts by Belady's rule with cost. It "
        "cannot be deployed. A policy may beat it; nothing can beat the lower bound."
    ]
    if not regret["lower_bound"]:
        found.append("There is no lower bound, because step times have noise.")
    completed = best["metrics"]["requests.completed"]["mean"]
    for policy in policies:
        mine = policy["metrics"]["requests.completed"]["mean"]
        if mine != completed:
            found.append(
                f"{policy['policy']} completed {count(mine)} requests, and the clairvoyant {count(completed)}: their "
                "means are over different requests."
            )
    return found


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}" if ratio >= 10 else f"{ratio:.2f}"


def _or_dash(form: _Form, value: float | None) -> str:
    return "–" if value is None else form(value)
