"""Roll-outs: what new versions of adapters cost while they took over: loads, TTFT before, during and after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loratory.reports.number_text import count, plural, seconds
from loratory.reports.run_columns import Flags, RunColumns
from loratory.serving.run_end import RollOutRecord
from loratory.serving.workload import Floats

PHASES = ("before", "during", "after")
_BELOW_HOST = ("disk", "remote")


@dataclass(frozen=True, slots=True)
class _Measured:
    """One roll-out: its object of summary.json, and which requests belong to each phase."""

    row: dict[str, Any]
    phases: dict[str, Flags]


def roll_outs_object(run: RunColumns) -> dict[str, Any]:
    """``roll_outs``, one object for each roll-out, in order of time, and ``rolled``, all of them together; nothing
    where there are none. Times are seconds from the run's start.

    ``during``: from ``began_s`` until ``settled_s``, when all requests go to the new version, the last one of the old
    version has ended, and a replica has loaded the new version. ``before`` and ``after`` begin and end where another
    roll-out of the same adapter settles and begins.
    """
    fleet = run.info.fleet
    rolled = () if fleet is None else fleet.roll_outs
    if not rolled:
        return {}
    measured = _measure(run, rolled)
    rows = [each.row for each in measured]
    phases = {phase: np.logical_or.reduce([each.phases[phase] for each in measured]) for phase in PHASES}
    total = {key: sum(row[key] for row in rows) for key in ("requests_new", "loads", "cold_loads", "misses")}
    ended = [row["freed_s"] for row in rows]
    together = {
        "adapters": len({row["adapter"] for row in rows}),
        "unfinished": ended.count(None),
        **total,
        "began_s": min((row["began_s"] for row in rows if row["began_s"] is not None), default=None),
        "settled_s": None if None in [row["settled_s"] for row in rows] else max(row["settled_s"] for row in rows),
        "freed_s": None if None in ended else max(ended),
        **_marks(run, phases),
    }
    return {"roll_outs": rows, "rolled": together}


def _measure(run: RunColumns, rolled: Sequence[RollOutRecord]) -> list[_Measured]:
    code, names = run.named("adapter")
    codes = {name: place for place, name in enumerate(names)}
    of = {name: code == codes.get(name, -2) for each in rolled for name in (each.old, each.new)}
    spans = [_span(run, each, of[each.old]) for each in rolled]
    found, last = [], dict[str, int]()
    following = dict.fromkeys(range(len(rolled)), np.inf)
    for place, each in enumerate(rolled):
        if each.adapter in last:
            following[last[each.adapter]] = spans[place][0]
        last[each.adapter] = place
    settled_of: dict[str, float] = {}
    for place, each in enumerate(rolled):
        began, settled = spans[place]
        both, arrival = of[each.old] | of[each.new], run.arrival
        phases = {
            "before": both & (arrival >= settled_of.get(each.adapter, 0.0)) & (arrival < began),
            "during": both & (arrival >= began) & (arrival < settled),
            "after": both & (arrival >= settled) & (arrival < following[place]),
        }
        settled_of[each.adapter] = settled
        found.append(_Measured(_row(run, each, spans[place], of, phases), phases))
    return found


def _span(run: RunColumns, each: RollOutRecord, old: Flags) -> tuple[float, float]:
    """When a roll-out began and had settled; infinity where the run was over before."""
    start = run.info.start_s
    if each.began_s is None:
        return np.inf, np.inf
    if each.moved_s is None:
        return each.began_s - start, np.inf
    loaded = run.adapter_events("loaded", each.new)[0]
    last = max(each.moved_s - start, float(run.finish[old].max(initial=0.0)), float(min(loaded, default=0.0)))
    return each.began_s - start, last


def _row(
    run: RunColumns,
    each: RollOutRecord,
    span: tuple[float, float],
    of: Mapping[str, Flags],
    phases: Mapping[str, Flags],
) -> dict[str, Any]:
    start, (began, settled), old, new = run.info.start_s, span, of[each.old], of[each.new]
    tiers = run.adapter_events("load", each.new)[1]
    return {
        "adapter": each.adapter,
        "old": each.old,
        "new": each.new,
        "at_s": each.at_s - start,
        "began_s": began if np.isfinite(began) else None,
        "shares": [{"at_s": share.at_s - start, "share": share.share} for share in each.shares],
        "moved_s": None if each.moved_s is None else each.moved_s - start,
        "old_ended_s": float(run.finish[old].max()) if each.moved_s is not None and old.any() else None,
        "freed_s": None if each.freed_s is None else each.freed_s - start,
        "settled_s": settled if np.isfinite(settled) else None,
        "requests_old": int((old & (run.arrival >= began)).sum()),
        "requests_new": int(new.sum()),
        "loads": len(tiers),
        "cold_loads": sum(tier in _BELOW_HOST for tier in tiers),
        "misses": int((new & (run.number("hit") == 0)).sum()),
        **{f"requests_{phase}": int(phases[phase].sum()) for phase in PHASES},
        **_marks(run, phases),
    }


def _marks(run: RunColumns, phases: Mapping[str, Flags]) -> dict[str, float | None]:
    return {f"ttft_p99_{phase}_s": _p99(run.ttft[phases[phase] & run.counted]) for phase in PHASES}


def _p99(values: Floats) -> float | None:
    known = values[~np.isnan(values)]
    return float(np.percentile(known, 99)) if len(known) else None


# -- for those who read it ---------------------------------------------------------------------------------------------


def roll_outs_over_seeds(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each roll-out of a policy's runs, one run per seed: means over the seeds in which it has a value."""
    each_seed = [run.get("fleet", {}).get("roll_outs", []) for run in runs]
    return [_mean(same) for same in zip(*each_seed, strict=True)]


def roll_out_sentences(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(policy, what its roll-outs cost), means over seeds; nothing for runs without."""
    policies: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        if "rolled" in run.get("fleet", {}):
            policies.setdefault(run["policy"], []).append(run["fleet"]["rolled"])
    return [(policy, _sentence(_mean(same))) for policy, same in policies.items()]


def _mean(same: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    rows = list(same)
    found: dict[str, Any] = {}
    for key, first in rows[0].items():
        values = [row[key] for row in rows if isinstance(row[key], int | float)]
        found[key] = first if not values else sum(values) / len(values)
    return found


def _sentence(total: Mapping[str, Any]) -> str:
    if total["began_s"] is None:
        return f"new versions of {plural(round(total['adapters']), 'adapter')} came after the end of the run"
    parts = [
        f"{count(total['requests_new'])} requests went to new versions of "
        f"{plural(round(total['adapters']), 'adapter')}, which were loaded {count(total['loads'])} times, "
        f"{count(total['cold_loads'])} of them from disk or farther"
    ]
    marks = [f"{seconds(value)} {phase}" for phase in PHASES if (value := total[f"ttft_p99_{phase}_s"]) is not None]
    if marks:
        until = "the end" if total["settled_s"] is None else seconds(total["settled_s"])
        parts.append(f"their TTFT p99: {', '.join(marks)} (from {seconds(total['began_s'])} to {until})")
    if total["freed_s"] is not None:
        parts.append(f"the old versions were gone at {seconds(total['freed_s'])}")
    else:
        parts.append(f"{count(total['unfinished'])} of the roll-outs did not end")
    return "; ".join(parts)
