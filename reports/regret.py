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
_SAID = ("ttft_s.mean", "e2e_s.mean")


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


def regret_table(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of a table: the clairvoyant, the lower bound, then each policy's value with its ratio."""
    regret = summary["regret"]
    best = regret["clairvoyant"]
    shown = [m for m in MEASURES if m[1] in best["metrics"]]
    rows = [
        [best["policy"], *(form(best["metrics"][path]["mean"]) for _, path, form in shown)],
        ["lower bound", *(_or_dash(form, regret["lower_bound"].get(path)) for _, path, form in shown)],
    ]
    for policy, other in zip(summary["policies"], regret["policies"], strict=True):
        cells = []
        for _, path, form in shown:
            metric, ratio = policy["metrics"].get(path), other["ratio"].get(path)
            text = _or_dash(form, None if metric is None else metric["mean"])
            cells.append(text if ratio is None else f"{text} ({_times(ratio)}×)")
        rows.append([policy["policy"], *cells])
    return ["", *(label for label, _, _ in shown)], rows


def regret_sentences(summary: Mapping[str, Any]) -> list[str]:
    """What the table does not say: what it is a comparison with, each policy in words, and unequal requests."""
    best = summary["regret"]["clairvoyant"]
    found = [
        f"{best['policy']}: shortest remaining work on true output lengths, and Belady's rule with cost for evictions. "
        "It cannot be deployed, and a policy may beat it in one metric; nothing can beat the lower bound."
    ]
    labels = {path: label for label, path, _ in MEASURES}
    for policy in summary["regret"]["policies"]:
        said = [f"{labels[path]} {_times(ratio)}" for path in _SAID if (ratio := policy["ratio"].get(path)) is not None]
        if said:
            found.append(f"{policy['policy']}: {listed(said)} times the clairvoyant's.")
    completed = best["metrics"]["requests.completed"]["mean"]
    for policy in summary["policies"]:
        mine = policy["metrics"]["requests.completed"]["mean"]
        if mine != completed:
            found.append(
                f"{policy['policy']} completed {count(mine)} requests and the clairvoyant {count(completed)}: the means "
                "of E2E are over those alone, so they do not compare exactly."
            )
    return found


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}" if ratio >= 10 else f"{ratio:.2f}"


def _or_dash(form: _Form, value: float | None) -> str:
    return "–" if value is None else form(value)
