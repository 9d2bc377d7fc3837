"""page: plan.html, one self-contained file that opens offline: the verdict, commands to paste, figures, tables."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from loratory.plan.figures import by_room, currency, draw_plan
from loratory.plan.objectives import Objective, objectives
from loratory.plan.page_tables import (
    candidate_table,
    curve_tables,
    discarded_tables,
    heat_table,
    regret_table,
    sensitivity_table,
    slo_table,
    what_if_table,
)
from loratory.reports.number_text import count, listed, percent, plural, seconds
from loratory.reports.panels import Figure

_MOODS: Mapping[str, str] = {"met": "good", "too_close": "close", "missed": "bad"}
_VERDICTS: Mapping[str, str] = {"met": "✓ SLO met", "too_close": "≈ Too close to call", "missed": "✗ SLO missed"}
_SERVERS: Mapping[str, str] = {
    "vllm": "vLLM",
    "sglang": "SGLang",
    "loratory": "Loratory",
    "kubernetes": "Kubernetes autoscaler",
}
_TERMS = (
    ("TTFT", "time to first token: from a request's arrival to its first output token."),
    ("TPOT", "time per output token: from first token to finish, over (output tokens - 1)."),
    ("attainment", "share of all requests that completed within every limit of the SLO."),
    ("p50, p99", "half, 99 % of the values are at or below."),
    ("[low, high]", "95 % Student-t interval of the mean over seeds; without one, a single seed ran."),
    ("too close to call", "the interval includes the limit: more seeds, or another limit, would decide."),
    ("at least", "the run was stopped early, as it had missed the SLO by then; its value could only grow."),
    ("discarded", "ruled out by a bound, without a simulation."),
)


def page(plan: Mapping[str, Any]) -> str:
    """The page of a plan, as plan.json holds it. Every text of it is escaped; the same plan gives the same bytes."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_resource("loratory.plan", "plan.html"))
    targets = objectives(plan)
    near = None if plan["best"] else nearest(plan, targets)
    subject = "the answer" if plan["best"] else "the nearest candidate" if near else "its limits"
    figures = {figure.name: _picture(figure) for figure in draw_plan(plan)}
    return template.render(
        plan=plan,
        css=Markup(_resource("loratory.reports", "report.css") + _resource("loratory.plan", "plan.css")),
        mood=_MOODS[plan["verdict"]],
        verdict=_VERDICTS[plan["verdict"]],
        nearest=_nearest_text(near),
        facts=_facts(plan),
        slo=slo_table(targets, plan["best"] or near, subject) if targets else None,
        workload=_workload(plan["workload"]),
        commands=[(title, plan["flags"][key]) for key, title in _SERVERS.items() if plan["flags"].get(key)],
        flag_notes=plan["flags"].get("notes", []),
        pareto=figures.get("pareto"),
        capacity=[picture for name, picture in figures.items() if name.startswith("capacity_")],
        curves=curve_tables(plan, targets),
        heat=figures.get("heat"),
        heat_table=heat_table(plan, targets),
        breaks=_breaks(plan, targets),
        tornado=figures.get("sensitivity"),
        sensitivity=sensitivity_table(plan, targets),
        what_if=what_if_table(plan, targets),
        regret=regret_table(plan),
        candidates=candidate_table(plan, targets, f"{currency(plan) or 'price'} an hour"),
        discarded=discarded_tables(plan),
        effort=_effort(plan),
        terms=_TERMS,
    )


def nearest(plan: Mapping[str, Any], targets: Sequence[Objective]) -> Mapping[str, Any] | None:
    """The candidate that comes nearest to the SLO: the one whose worst target is the least over its limit.

    Only candidates at the scenario's own load count; None where none has a value for every target.
    """
    found: list[tuple[float, int, Mapping[str, Any]]] = []
    for row in plan["candidates"]:
        distances = [target.distance(row["metrics"].get(target.name)) for target in targets]
        worst = max((d for d in distances if d is not None), default=None)
        if row["load"] == 1.0 and worst is not None and None not in distances:
            found.append((worst, row["id"], row))
    return min(found, key=lambda item: item[:2])[2] if found else None


def _nearest_text(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    return f"{row['label']}{': ' if row['reason'] else ''}{row['reason']}"


def _facts(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The answer part by part; empty where nothing meets the SLO."""
    best = plan["best"]
    if best is None:
        return []
    fleet = f"{plural(best['replicas'], 'replica')} on {plural(best['gpus'], 'GPU')}"
    fleet += f": {best['hardware']}" if " + " in best["hardware"] else f" of type {best['gpu']}"
    if (mean := best["gpus_mean"]) is not None and mean != best["gpus"]:
        fleet = f"at most {fleet}, {count(mean)} GPUs on average"
    price = best["price_per_hour"]
    cost = f"{price:,.2f} {currency(plan)} an hour" if price is not None else "no prices are given (plan.prices)"
    facts = [("fleet", fleet), ("price", cost), ("policy", best["policy"])]
    if best["replicas"] > 1:
        facts.append(("router", best["router"]))
    if best["placement"]:
        facts.append(("placement", best["placement"]))
    if scaled := plan["autoscale"]:
        facts += _scaling(scaled)
    settings = [f"{key} {_setting(value)}" for key, value in best["engine"].items() if value is not None]
    return [*facts, ("engine", ", ".join(settings))] if settings else facts


def _scaling(scaled: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the autoscaler is set to, and what it saves."""
    fixed, saved = scaled["fixed"], scaled["saved"]
    hours = f"{count(scaled['gpu_hours'])} in a run; {count(fixed['gpu_hours'])} with {fixed['label']}, which stays"
    if scaled["least"] is None:
        return [("GPU hours", hours)]
    rule = f"{scaled['least']} to {scaled['most']} replicas by {scaled['by']}, target {count(scaled['target'])}"
    return [("autoscaler", rule), ("GPU hours", hours), ("saved", percent(saved["mean"]))]


def _setting(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _workload(workload: Mapping[str, Any]) -> str:
    parts = [
        f"{count(workload['requests_per_s'])} requests/s",
        plural(workload["adapters"], "adapter"),
        f"{plural(workload['requests'], 'request')} over {seconds(workload['duration_s'])} in each run",
    ]
    return f"Traffic: {', '.join(parts)}."


def _breaks(plan: Mapping[str, Any], targets: Sequence[Objective]) -> str:
    """What breaks first, in a sentence."""
    factors = [item for item in by_room(plan["sensitivity"]) if item["breaks_at"] is not None]
    if not plan["sensitivity"]:
        return ""
    if not factors:
        return "Nothing broke as far as the factors were tried."
    first = factors[0]
    labels = {target.name: target.label for target in targets}
    what = labels.get(first["breaks_first"] or "", first["breaks_first"] or "the SLO")
    to = (
        f"{count(first['breaks_at'])} times"
        if first["unit"] == "times"
        else f"{count(first['breaks_at'])} ({first['unit']})"
    )
    return f"{first['factor'][:1].upper()}{first['factor'][1:]} breaks the SLO first: at {to}, by {what}."


def _effort(plan: Mapping[str, Any]) -> str:
    seeds = [str(seed) for seed in plan["seeds"]]
    return (
        f"{plural(plan['runs'], 'run')} of {plural(plan['requests_simulated'], 'request')} in all, in "
        f"{count(plan['cpu_s'])} CPU seconds; seeds {listed(seeds) if seeds else 'none'}. Loratory {plan['loratory']}."
    )


def _picture(figure: Figure) -> dict[str, str]:
    data = base64.b64encode(figure.svg.encode()).decode("ascii")
    return {"name": figure.name, "title": figure.title, "caption": figure.caption, "data": data}


def _resource(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text(encoding="utf-8")
