"""plan: the ``loratory plan`` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from loratory.cli.terminal import Json, dump, kept_when_interrupted, progress, say, show, table_width, text_table
from loratory.serving.policy_watch import POLICY_TIMEOUT_S

MISSED = 3
"""Exit code where the SLO cannot be met, and it was required."""

_ROWS = 12
"""Candidates that the terminal shows."""

_LEAST = 28
"""Columns that a candidate's name has at least in a narrow terminal, where it is folded."""

Column = tuple[str, list[str]]
"""The head of a column of the table of candidates, and its cells."""


def plan_command(
    scenario: Annotated[str, typer.Argument(help="a scenario file, or the name of a library scenario")],
    override: Annotated[
        list[str] | None,
        typer.Option("--set", help="set a key of the scenario, such as plan.ask=capacity; may be repeated"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="folder; by default results/NAME-plan, or results/NAME-plan-QUESTION"),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="number of processes; by default the machine's cores")
    ] = None,
    ray: Annotated[
        str | None, typer.Option("--ray", help="run on Ray: auto, or the address of a cluster's head node")
    ] = None,
    policy_timeout: Annotated[
        float, typer.Option("--policy-timeout", help="seconds that a policy may take to decide or to be imported")
    ] = POLICY_TIMEOUT_S,
    unbounded: Annotated[
        bool, typer.Option("--unbounded", help="lift the limits on sizes, which catch typing errors")
    ] = False,
    require_slo: Annotated[
        bool, typer.Option("--require-slo", help="exit with code 3 if no candidate meets the SLO")
    ] = False,
    as_json: Json = False,
) -> int:
    """Find how many GPUs, which settings, policy and router meet the SLO of a scenario.

    The scenario's plan section says what to ask (fleet, autoscale, capacity, settings, sensitivity), what to try,
    and prices; each key has a default. The folder gets plan.html, plan.json and best.yaml. A plan that was interrupted
    goes on.
    """
    from loratory.errors import InputError
    from loratory.executor.usable_cores import usable_cores
    from loratory.plan.run import PAGE, plan_scenario
    from loratory.plan.space import Base
    from loratory.scenarios.load import find, load_scenario

    if ray is not None and jobs is not None:
        raise InputError("--jobs is for processes of this machine, but --ray is given: remove one of them")
    loaded = load_scenario(scenario, override or (), unbounded=unbounded)
    path = find(scenario)
    text = path.read_text(encoding="utf-8")
    base = Base(loaded, text, scenario, path.parent, tuple(override or ()), unbounded, policy_timeout)
    question = "" if loaded.plan.ask == "fleet" else f"-{loaded.plan.ask}"
    target = out or Path("results") / f"{_slug(loaded.name)}-plan{question}"
    kept_when_interrupted.append(f"the results so far are in {target}, and the same command goes on from there")
    with progress("planning") as tell, redirect_stdout(sys.stderr):
        found = plan_scenario(base, target, jobs=jobs or usable_cores(), ray=ray, progress=tell)
    if as_json:
        dump(found)
    else:
        _tell(found)
        print(f"report: {target / PAGE}")
    return MISSED if require_slo and found["verdict"] != "met" else 0


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip(".-") or "scenario"


def _tell(found: dict[str, Any]) -> None:
    """The verdict first, then the candidates, what was discarded, and the flags."""
    say(found["answer"])
    say(f"{found['question']}")
    if found["ask"] == "capacity" and found["curves"]:
        _tell_loads(found)
    elif found["ask"] != "sensitivity":
        _tell_candidates(found)
    by: dict[str, int] = {}
    for each in found["discarded"]:
        by[each["by"]] = by.get(each["by"], 0) + 1
    if by:
        counts = ", ".join(f"{count} by {what}" for what, count in by.items())
        say(f"not simulated: {counts}; such as {found['discarded'][0]['label']}: {found['discarded'][0]['reason']}")
    for each in found["sensitivity"]:
        say(f"{each['factor']}: {_growth(each)}")
    for each in found["regret"] or ():
        times = [
            f"{name} {ratio:.2f}" for name, ratio in each["ratio"].items() if ratio is not None and name != "loads"
        ]
        say(f"{each['policy']}, times a policy that knows the future: {', '.join(times)}")
    for name in ("vllm", "sglang", "loratory", "kubernetes"):
        if text := found["flags"].get(name):
            print(f"{name}:\n{text}" if name == "kubernetes" else f"{name}: {text}")
    for note in (*found["notes"], *found["flags"].get("notes", ())):
        say(f"note: {note}")
    say(
        f"{found['runs']:,} runs, {found['requests_simulated']:,} requests, {found['cpu_s']:.1f} CPU seconds; "
        f"known error: {found['setup'].get('known error', 'none')}"
    )


def _tell_loads(found: dict[str, Any]) -> None:
    """The largest load of each combination of settings."""
    from loratory.reports.number_text import count

    curves: dict[str, dict[str, Any]] = {}
    for each in found["curves"]:
        curves.setdefault(each["label"], each)  # the searches come first; a curve of details has the label of one
    ordered = sorted(curves.values(), key=lambda each: -(each["largest"] or 0.0))
    heads = ["candidate", f"meets the SLO to, {ordered[0]['x']}", "not met at"]
    rows = [
        [each["label"], *("-" if each[key] is None else count(each[key]) for key in ("largest", "missed_at"))]
        for each in ordered[:_ROWS]
    ]
    show(text_table(heads, rows, tight=table_width() <= 100))
    if (more := len(ordered) - len(rows)) > 0:
        say(f"{more} more combinations are in plan.json")


def _tell_candidates(found: dict[str, Any]) -> None:
    names = [target["name"] for target in found["slo"]] or ["ttft_p99_s"]
    if found["goal"]:
        names = [found["goal"], *(name for name in names if name != found["goal"])]
    best = None if found["best"] is None else found["best"]["candidate"]
    rank = {"met": 0, "too_close": 1, "missed": 2}
    ordered = sorted(
        found["candidates"],
        key=lambda each: (
            each["id"] != best,
            rank[each["verdict"]],
            -each["load"],
            _cost(each),
            each["margin"] is None,
            each["margin"],
        ),
    )
    if not ordered:
        return
    shown = ordered[:_ROWS]
    priced = any(each["price_per_hour"] is not None for each in ordered)
    scaled = any(each["gpus_mean"] != each["gpus"] for each in ordered)
    columns = [(_head(name), [_value(each["metrics"].get(name), name) for each in shown]) for name in names]
    told = [("SLO", [each["verdict"].replace("_", " ") for each in shown])] if found["slo"] else []
    hours = [("GPU hours", [_value(each["metrics"].get("gpu_hours"), "gpu_hours") for each in shown])] if scaled else []
    if priced:
        prices = ["" if each["price_per_hour"] is None else f"{each['price_per_hour']:.2f}" for each in shown]
        told.append(("an hour", prices))
    kept = _fitting([*told, *columns, *hours])
    left_out = [name for name, column in zip(names, columns, strict=True) if column not in kept]
    left_out += [column[0] for column in (*hours, *told) if column not in kept]
    # shown in the order of the page, whatever was kept first
    told[1 if found["slo"] else 0 : 0] = hours
    order = [column for column in (*columns, *told) if column in kept]
    rows = zip([each["label"] for each in shown], *(cells for _, cells in order), strict=True)
    show(text_table(["candidate", *(head for head, _ in order)], rows, tight=table_width() <= 100))
    if left_out:
        say(f"more columns in plan.html: {', '.join(left_out)}")
    if (more := len(ordered) - len(shown)) > 0:
        say(f"{more} more candidates are in plan.json")


def _fitting(columns: Sequence[Column]) -> list[Column]:
    """Those of the columns, the first ones first, that leave the candidates half of the width, or `_LEAST` columns."""
    room = table_width() - 2 - (_LEAST if table_width() <= 100 else table_width() // 2)
    kept = []
    for column in columns:
        if (room := room - _wide(column)) >= 0:
            kept.append(column)
    return kept


def _wide(column: Column) -> int:
    """Characters of a column, with the space beside it."""
    return max(map(len, (column[0], *column[1]))) + (1 if table_width() <= 100 else 3)


def _head(name: str) -> str:
    """A target's name in at most 14 characters."""
    return name if len(name) <= 14 else f"{name[:13]}…"


def _cost(each: dict[str, Any]) -> float:
    known = (each["price_per_hour"], each["gpus_mean"], each["gpus"])
    return float(next(value for value in known if value is not None))


def _value(metric: dict[str, Any] | None, name: str) -> str:
    from loratory.reports.number_text import count, percent, seconds

    if metric is None:
        return "-"
    if metric["mean"] is None:
        return f"> {seconds(metric['at_least'])}" if "at_least" in metric and "attainment" not in name else "-"
    if "attainment" in name or "share" in name or "rate" in name:
        return percent(metric["mean"])
    return seconds(metric["mean"]) if "_s" in name and "per_s" not in name else count(metric["mean"])


def _growth(each: dict[str, Any]) -> str:
    """``holds to 1.5 times, breaks at 2 times: ttft_p99_s``."""
    if not each["points"]:
        return f"not varied: {each['note']}"
    parts = []
    if each["holds_to"] is not None:
        parts.append(f"holds to {each['holds_to']:.3g}")
    if each["breaks_at"] is not None:
        parts.append(f"breaks at {each['breaks_at']:.3g}")
    said = f"{', '.join(parts)} ({each['unit']}; now {each['now']:.3g})"
    return said + (f": {each['breaks_first']}" if each["breaks_first"] else f"; {each['note']}" if each["note"] else "")
