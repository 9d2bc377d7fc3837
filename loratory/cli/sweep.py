"""sweep: ``loratory run`` with several values of a key: every combination, one table and one report over all."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from loratory.cli.run_words import MISSED_SLO, default_target, need_slo, tell_setup
from loratory.cli.tables import LIMITS, metric_cell
from loratory.cli.terminal import complain, dump, progress, say, show, text_table, width
from loratory.errors import LoratoryError, several, shortened
from loratory.reports.number_text import percent, plural
from loratory.reports.sweep import policies_of, row_name, rows_of, shared_notes, short_keys, slo_text, value_text

_COLUMNS: tuple[tuple[str, str, str, int], ...] = (
    ("within limits", "slo.attainment", "{:.1%}", 4),
    ("requests/s", "throughput.requests_per_s", "{:,.2f}", 7),
    ("tokens/s", "throughput.output_tokens_per_s", "{:,.0f}", 2),
    ("TTFT p50, s", "ttft_s.p50", "{:.3f}", 5),
    ("TTFT p99, s", "ttft_s.p99", "{:.3f}", 1),
    ("TPOT p99, ms", "tpot_s.p99", "{:.1f}", 3),
    ("E2E mean, s", "e2e_s.mean", "{:.2f}", 8),
    ("hit rate", "adapters.hit_rate", "{:.1%}", 6),
)
"""(head, metric, form, rank) of the columns of numbers; those of the lowest ranks are shown where not all fit."""

_LONGEST_VALUE = 20
_NOTES = 12
"""Most notes that are printed; the report has all."""


def sweep_command(
    scenario: str,
    settings: Sequence[str],
    policies: Sequence[str] | None,
    out: Path | None,
    *,
    on: str,
    jobs: int | None,
    decisions: bool,
    policy_timeout_s: float,
    unbounded: bool,
    regret: bool,
    require_slo: bool,
    as_json: bool,
) -> int:
    """Run every combination of the values in ``settings``; returns the exit code."""
    from loratory.experiment.sweep import execute_sweep, read_sweep, run_sweep
    from loratory.reports.folder import check_target

    with redirect_stdout(sys.stderr):  # stdout is for results, not for what a policy prints
        sweep = read_sweep(scenario, settings, policies, unbounded=unbounded, policy_timeout_s=policy_timeout_s)
    first = sweep.variants[0].scenario
    if require_slo:
        for variant in sweep.variants:
            need_slo(variant.scenario.slo)
    target = out or default_target(first.name)
    check_target(target)
    with progress("simulating" if on == "sim" else "running") as tell, redirect_stdout(sys.stderr):
        if on == "sim":
            summary = run_sweep(sweep, target, jobs=jobs, decisions=decisions, progress=tell, regret=regret)
        else:
            summary = execute_sweep(sweep, target, decisions=decisions, progress=tell, source=scenario)
    if as_json:
        dump(summary)
    else:
        _tell(summary, f"{first.name}: {first.description}" if first.description else "", target, require_slo)
    unserved = [f"{variant['name']}: {variant['unserved']}" for variant in summary["variants"] if variant["unserved"]]
    if unserved:
        complain(several(unserved, 1))
        return LoratoryError.exit_code
    missed = [row_name(summary, *row) for row in rows_of(summary) if row[1]["slo"]["met"] is not True]
    if require_slo and missed:
        complain(f"these missed the SLO: {several(missed)}")
        return MISSED_SLO
    return 0


def _tell(summary: Mapping[str, Any], description: str, target: Path, required: bool) -> None:
    facts, rows = summary["setup"], rows_of(summary)
    if description:
        say(description)
    tell_setup(facts)
    policies = policies_of(summary)
    seeds = rows[0][1]["seeds"]
    alone = f" under {policies[0]}" if len(policies) == 1 else ""
    every = "; ".join(f"{key} {', '.join(map(value_text, values))}" for key, values in summary["sweep"].items())
    say(f"sweep: {every}: {plural(len(summary['variants']), 'variant')}{alone}")
    show(_table(summary, width()))
    if len(seeds) > 1:
        say(f"Metrics are means over seeds {', '.join(map(str, seeds))}; ± is half their 95 % interval.")
    for verdict in summary["verdicts"]:
        say(f"{verdict['topic']}: {verdict['text']}")
    notes = [f"{each['name']} was left out, as it cannot run: {each['why']}" for each in summary["left_out"]]
    notes += [f"{several(names, 3)}: {text}" if names else text for names, text in shared_notes(summary)]
    for text in notes[:_NOTES]:
        say(f"note: {text}")
    if len(notes) > _NOTES:
        say(f"note: the report has {len(notes) - _NOTES} more notes")
    if not required and any(policy["slo"]["met"] is False for _, policy in rows):
        say("note: the SLO was missed; with --require-slo the exit code is then 3")
    print(f"report: {target / 'report.html'}")


def _table(summary: Mapping[str, Any], columns: int) -> Any:
    """A row for each variant and policy, the swept keys in front; as many columns of numbers as there is room for."""
    rows = rows_of(summary)
    short = short_keys(list(summary["sweep"]))
    left = {
        head: [shortened(value_text(variant["settings"][key]), _LONGEST_VALUE) for variant, _ in rows]
        for key, head in short.items()
    }
    if len(policies_of(summary)) > 1:
        left["policy"] = [shortened(policy["policy"], _LONGEST_VALUE) for _, policy in rows]
    if any(policy["slo"]["met"] is not None for _, policy in rows):
        left["SLO"] = [slo_text(policy) for _, policy in rows]
    if any(_lost(policy) for _, policy in rows):
        left["completed"] = [percent(1 - _lost(policy)) for _, policy in rows]
    left["limited by"] = [LIMITS.get(limit := str(policy["bottleneck"]), limit) for _, policy in rows]
    numbers = {
        (head, rank): [metric_cell(policy["metrics"].get(metric), metric, form) for _, policy in rows]
        for head, metric, form, rank in _COLUMNS
    }
    numbers = {key: cells for key, cells in numbers.items() if any(cell != "-" for cell in cells)}
    ranked = sorted(numbers, key=lambda key: key[1])
    for gap in (3, 1):
        room = columns - sum(max(map(len, (head, *cells))) + gap for head, cells in left.items()) + gap
        shown = []
        for key in ranked:
            room -= max(map(len, (key[0], *numbers[key]))) + gap
            if room < 0:
                break
            shown.append(key)
        if len(shown) > 1:
            break
    shown = [key for key in numbers if key in (shown or ranked[:1])]
    heads = [*left, *(head for head, _ in shown)]
    cells = zip(*left.values(), *(numbers[key] for key in shown), strict=True)
    return text_table(heads, cells, len(left), tight=gap == 1)


def _lost(policy: Mapping[str, Any]) -> float:
    """The share of the requests that did not complete."""
    done, sent = (policy["metrics"][f"requests.{name}"]["mean"] for name in ("completed", "submitted"))
    return 1 - done / sent if sent else 0.0
