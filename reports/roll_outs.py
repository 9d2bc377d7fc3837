"""Roll-outs: what new versions of adapters cost while they took over: loads, TTFT before, during and after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from loratory.reports.number_text import count, plural, seconds
from loratory.reports.run_columns import RunColumns
from loratory.serving.run_end import RollOutRecord
from loratory.serving.workload import Floats

PHASES = ("before", "during", "after")
_BELOW_HOST = ("disk", "remote")


Places = npt.NDArray[np.int64]
"""Numbers of requests in the records."""


class _Versions:
    """The requests and the loads of every version."""

    def __init__(self, run: RunColumns) -> None:
        code, names = run.named("adapter")
        order = np.argsort(code, kind="stable")
        edges = np.searchsorted(code[order], np.arange(len(names) + 1))
        self._requests = {name: order[edges[place] : edges[place + 1]] for place, name in enumerate(names)}
        self._loads = run.events_by_adapter("load")
        self._loaded = run.events_by_adapter("loaded")

    def requests(self, version: str) -> Places:
        """Those that a version got."""
        return self._requests.get(version, np.zeros(0, dtype=np.int64))

    def tiers(self, version: str) -> list[str]:
        """Where each of its loads to the GPU began."""
        return [tier for _, tier in self._loads.get(version, ())]

    def first_loaded_s(self, version: str) -> float:
        """When it was on a GPU first; 0 where it never was."""
        return min((at for at, _ in self._loaded.get(version, ())), default=0.0)


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
    versions = _Versions(run)
    spans = [_span(run, each, versions) for each in rolled]
    rows, every = [], {phase: list[Places]() for phase in PHASES}
    since, until = [0.0] * len(rolled), [np.inf] * len(rolled)
    latest: dict[str, int] = {}
    for place, each in enumerate(rolled):
        if (before := latest.get(each.adapter)) is not None:
            since[place], until[before] = spans[before][1], spans[place][0]
        latest[each.adapter] = place
    for place, each in enumerate(rolled):
        phases = _phases(run, each, (since[place], *spans[place], until[place]), versions)
        rows.append(_row(run, each, spans[place], versions, phases))
        for phase in PHASES:
            every[phase].append(phases[phase])
    settled, freed = [row["settled_s"] for row in rows], [row["freed_s"] for row in rows]
    together = {
        "adapters": len({row["adapter"] for row in rows}),
        "unfinished": freed.count(None),
        **{key: sum(row[key] for row in rows) for key in ("requests_new", "loads", "cold_loads", "misses")},
        "began_s": min((row["began_s"] for row in rows if row["began_s"] is not None), default=None),
        "settled_s": None if None in settled else max(settled),
        "freed_s": None if None in freed else max(freed),
        **_marks(run, {phase: np.unique(np.concatenate(places)) for phase, places in every.items()}),
    }
    return {"roll_outs": rows, "rolled": together}


def _span(run: RunColumns, each: RollOutRecord, versions: _Versions) -> tuple[float, float]:
    """When a roll-out began and had settled; infinity where the run was over before."""
    start = run.info.start_s
    if each.began_s is None:
        return np.inf, np.inf
    if each.moved_s is None:
        return each.began_s - start, np.inf
    last = float(run.finish[versions.requests(each.old)].max(initial=0.0))
    return each.began_s - start, max(each.moved_s - start, last, versions.first_loaded_s(each.new))


def _phases(
    run: RunColumns, each: RollOutRecord, edges: tuple[float, float, float, float], versions: _Versions
) -> dict[str, Places]:
    """The requests of both versions of a roll-out by phase; ``edges`` are the seconds that phases lie between."""
    since, began, settled, until = edges
    both = np.concatenate((versions.requests(each.old), versions.requests(each.new)))
    arrival = run.arrival[both]
    return {
        "before": both[(arrival >= since) & (arrival < began)],
        "during": both[(arrival >= began) & (arrival < settled)],
        "after": both[(arrival >= settled) & (arrival < until)],
    }


def _row(
    run: RunColumns,
    each: RollOutRecord,
    span: tuple[float, float],
    versions: _Versions,
    phases: Mapping[str, Places],
) -> dict[str, Any]:
    start, (began, settled) = run.info.start_s, span
    old, new, tiers = versions.requests(each.old), versions.requests(each.new), versions.tiers(each.new)
    return {
        "adapter": each.adapter,
        "old": each.old,
        "new": each.new,
        "at_s": each.at_s - start,
        "began_s": began if np.isfinite(began) else None,
        "shares": [{"at_s": share.at_s - start, "share": share.share} for share in each.shares],
        "moved_s": None if each.moved_s is None else each.moved_s - start,
        "old_ended_s": float(run.finish[old].max()) if each.moved_s is not None and len(old) else None,
        "freed_s": None if each.freed_s is None else each.freed_s - start,
        "settled_s": settled if np.isfinite(settled) else None,
        "requests_old": int((run.arrival[old] >= began).sum()),
        "requests_new": len(new),
        "loads": len(tiers),
        "cold_loads": sum(tier in _BELOW_HOST for tier in tiers),
        "misses": int((run.number("hit")[new] == 0).sum()),
        **{f"requests_{phase}": len(phases[phase]) for phase in PHASES},
        **_marks(run, phases),
    }


def _marks(run: RunColumns, phases: Mapping[str, Places]) -> dict[str, float | None]:
    return {f"ttft_p99_{phase}_s": _p99(run.ttft[places[run.counted[places]]]) for phase, places in phases.items()}


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
