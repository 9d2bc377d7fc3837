"""Compare: result folders side by side, policies or simulation against measurement, with 95 % intervals over seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loratory.errors import InputError, shortened
from loratory.git_lfs import refuse_pointer
from loratory.reports.fleets_compared import FleetFact, fleet_facts
from loratory.reports.folder import SUMMARY
from loratory.reports.setting_differences import Setting, differing
from loratory.reports.stats import cleaned, half_width, student_t
from loratory.reports.summary import FORMAT, TARGET, scalars
from loratory.reports.sweep import is_sweep_summary

METRICS = (
    "ttft_s.mean", "ttft_s.p50", "ttft_s.p99", "tpot_s.mean", "tpot_s.p99", "itl_s.p99", "e2e_s.mean", "e2e_s.p99",
    "queue_s.mean", "queue_s.p99", "throughput.requests_per_s", "throughput.output_tokens_per_s", "requests.completed",
    "adapters.hit_rate", "adapters.loads", "adapters.evictions", "fairness.jain", "fairness.max_service_gap",
    "engine.mean_batch", "engine.preemptions", "fleet.open.mean", "fleet.gpu_hours", "fleet.cost", "fleet.resent",
    "fleet.rolled.cold_loads", "fleet.rolled.ttft_p99_during_s", "slo.attainment",
)  # fmt: skip
"""The metrics `Comparison.tables` shows, in this order, then targets; `as_dict` has every scalar both sides have."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric of one policy: mean over seeds in two folders, and their difference.

    ``reference`` is the mean in the folder ``base``, ``value`` that in the other. The base is the first folder, unless
    the first is simulated and the other measured: errors are relative to the measurement.
    ``folder`` is the one compared with the first. ``difference`` is value minus reference; ``relative`` is that over
    the reference (None for a reference of 0); ``low`` and ``high`` bound the difference at 95 %: ``method`` is "paired"
    if both have the same seeds, "welch" otherwise, None (with no interval) for a single seed. ``clear``: the
    interval excludes 0; None without an interval.
    """

    folder: str
    base: str
    policy: str
    metric: str
    reference: float
    value: float
    difference: float
    relative: float | None
    low: float | None
    high: float | None
    method: str | None
    clear: bool | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Folders against the first of them. ``unmatched``: sentences on what only one side has, and other warnings.

    ``settings``: those in which the folders differ. ``fleets``: by policy, what to know of the fleets; none where each
    result is of one replica.
    """

    folders: tuple[str, ...]
    backends: tuple[str, ...]
    differences: tuple[Difference, ...]
    unmatched: tuple[str, ...]
    settings: tuple[Setting, ...] = ()
    fleets: tuple[tuple[str, tuple[FleetFact, ...]], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        rows = [cleaned(asdict(difference)) for difference in self.differences]
        return {
            "folders": list(self.folders),
            "backends": list(self.backends),
            "settings": {setting.key: list(setting.values) for setting in self.settings},
            **(
                {"fleets": {p: {f.name: list(f.values) for f in facts} for p, facts in self.fleets}}
                if self.fleets
                else {}
            ),
            "differences": rows,
            "notes": list(self.unmatched),
        }

    def tables(self, metrics: Sequence[str] = METRICS) -> list[tuple[str, str, list[list[str]]]]:
        """For each folder and policy (folder, policy, rows): metric, both means, relative difference and its interval.

        Only the named metrics, in their order; by default `METRICS` and the values of the SLO's targets.
        The first folder's mean comes first, whichever of the two is the base.
        """
        every = dict.fromkeys(metrics)
        if metrics is METRICS:
            every |= dict.fromkeys(d.metric for d in self.differences if d.metric.startswith(TARGET))
        place = {metric: number for number, metric in enumerate(every)}
        shown = sorted((d for d in self.differences if d.metric in place), key=lambda d: place[d.metric])
        groups: dict[tuple[str, str], list[list[str]]] = {(d.folder, d.policy): [] for d in self.differences}
        for d in shown:
            means = (d.reference, d.value) if d.base == self.folders[0] else (d.value, d.reference)
            groups[d.folder, d.policy].append([d.metric.removeprefix(TARGET), *map(number, means), *_relative(d)])
        return [(folder, policy, rows) for (folder, policy), rows in groups.items() if rows]


def number(value: float) -> str:
    """A number with four digits, or with all digits before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _relative(d: Difference) -> list[str]:
    """The difference in percent of the base, and its 95 % interval; plain numbers if the base is 0."""
    if d.reference and abs(d.difference) >= 10 * abs(d.reference) and d.low is None:
        return [f"{d.value / d.reference:,.0f} times", ""]
    scale, unit, form = (100 / abs(d.reference), " %", "+,.1f") if d.reference else (1.0, "", "+,.4g")
    interval = ""
    if d.low is not None and d.high is not None:
        interval = f"{d.low * scale:{form}} to {d.high * scale:{form}}{unit}"
    return [f"{d.difference * scale:{form}}{unit}", interval]


def compare(folders: Sequence[Path]) -> Comparison:
    """Compare result folders with the first, policy by policy.

    Policies are matched by their spec; if each side has a single policy, those two are compared whatever their names.
    Raises `InputError` for fewer than two folders, a folder without a readable summary, or nothing in common.
    """
    if len(folders) < 2:
        raise InputError("compare has fewer than two result folders: write loratory compare DIR DIR")
    names = tuple(str(folder) for folder in folders)
    loaded = [load_runs(folder) for folder in folders]
    reference = loaded[0]
    differences: list[Difference] = []
    notes: list[str] = []
    for name, other in zip(names[1:], loaded[1:], strict=True):
        pairs = [(policy, policy) for policy in reference if policy in other]
        if not pairs and len(reference) == len(other) == 1:
            pairs = [(next(iter(reference)), next(iter(other)))]
        paired = {policy for pair in pairs for policy in pair}
        for owner, policies in ((names[0], reference), (name, other)):
            notes += [f"{policy} is only in {owner}" for policy in policies if policy not in paired]
        for ours, theirs in pairs:
            label = ours if ours == theirs else f"{ours} / {theirs}"
            if _backends(reference) == "sim" and _backends(other) == "executor":
                differences += _differences(name, name, label, other[theirs], reference[ours])
            else:
                differences += _differences(name, names[0], label, reference[ours], other[theirs])
        if not pairs:
            raise InputError(f"{names[0]} and {name} have no policy in common: run the same policy in both")
    notes += _scenario_notes(names, loaded)
    backends = tuple(_backends(runs) for runs in loaded)
    settings, fleets = differing(folders), _fleets(folders, loaded)
    return Comparison(names, backends, tuple(differences), tuple(dict.fromkeys(notes)), settings, fleets)


def _fleets(
    folders: Sequence[Path], loaded: Sequence[Mapping[str, list[Mapping[str, Any]]]]
) -> tuple[tuple[str, tuple[FleetFact, ...]], ...]:
    """The fleets under each policy that all folders have; under the only ones where each has one."""
    if all(len(policies) == 1 for policies in loaded):
        names = dict.fromkeys(next(iter(policies)) for policies in loaded)
        groups = [(" / ".join(names), [next(iter(policies.values())) for policies in loaded])]
    else:
        common = [policy for policy in loaded[0] if all(policy in policies for policies in loaded)]
        groups = [(policy, [policies[policy] for policies in loaded]) for policy in common]
    found = [(policy, fleet_facts(folders, runs)) for policy, runs in groups]
    return tuple((policy, facts) for policy, facts in found if facts)


def load_runs(folder: Path) -> dict[str, list[Mapping[str, Any]]]:
    """The runs of a result folder, by policy. Raises `InputError` if it has no summary."""
    path = folder / SUMMARY
    refuse_pointer(path)
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(summary, dict) and is_sweep_summary(summary):
            raise InputError(_of_sweep(folder, summary))
        policies: dict[str, list[Mapping[str, Any]]] = {}
        for run in summary["runs"]:
            if not isinstance(run["policy"], str) or not isinstance(run["seed"], int) or summary["format"] != FORMAT:
                raise TypeError
            policies.setdefault(run["policy"], []).append(run)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): name a folder that `loratory run` wrote"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is not a Loratory summary: name a folder that `loratory run` wrote") from error
    if not policies:
        raise InputError(f"{path} has no runs: run the scenario again")
    return policies


def _of_sweep(folder: Path, summary: Mapping[str, Any]) -> str:
    names = [shortened(str(folder / variant["folder"]), 100) for variant in summary["variants"][:2]]
    return f"{shortened(str(folder), 100)} is of a sweep: name the folders of variants in it, such as {' '.join(names)}"


def _differences(
    folder: str, base: str, policy: str, reference: list[Mapping[str, Any]], other: list[Mapping[str, Any]]
) -> list[Difference]:
    before, after = [scalars(run) for run in reference], [scalars(run) for run in other]
    seeds = [run["seed"] for run in reference], [run["seed"] for run in other]
    if sorted(seeds[0]) == sorted(seeds[1]) and len(set(seeds[0])) == len(seeds[0]):
        before = [values for _, values in sorted(zip(seeds[0], before, strict=True), key=lambda item: item[0])]
        after = [values for _, values in sorted(zip(seeds[1], after, strict=True), key=lambda item: item[0])]
        same_seeds = True
    else:
        same_seeds = False
    found = []
    for metric in before[0]:
        a = [values[metric] for values in before if metric in values]
        b = [values[metric] for values in after if metric in values]
        if a and b:
            paired = same_seeds and len(a) == len(before) and len(b) == len(after)
            found.append(_difference(folder, base, policy, metric, a, b, paired))
    return found


def _difference(
    folder: str, base: str, policy: str, metric: str, a: list[float], b: list[float], paired: bool
) -> Difference:
    reference, value = sum(a) / len(a), sum(b) / len(b)
    difference = value - reference
    half: float | None = None
    if paired:
        half, method = half_width([y - x for x, y in zip(a, b, strict=True)]), "paired"
    else:
        half, method = _welch(a, b), "welch"
    low, high = (None, None) if half is None else (difference - half, difference + half)
    return Difference(
        folder,
        base,
        policy,
        metric,
        reference,
        value,
        difference,
        difference / abs(reference) if reference else None,
        low,
        high,
        None if half is None else method,
        None if half is None else abs(difference) > half,
    )


def _welch(a: list[float], b: list[float]) -> float | None:
    """Half of Welch's 95 % interval for the difference of two means (Biometrika 34, 1947)."""
    if len(a) < 2 or len(b) < 2:
        return None
    x, y = float(np.var(a, ddof=1)) / len(a), float(np.var(b, ddof=1)) / len(b)
    if x + y == 0:
        return 0.0
    df = (x + y) ** 2 / (x**2 / (len(a) - 1) + y**2 / (len(b) - 1))
    return student_t(max(df, 1.0)) * math.sqrt(x + y)


def _scenario_notes(names: Sequence[str], loaded: Sequence[Mapping[str, list[Mapping[str, Any]]]]) -> list[str]:
    scenarios = [sorted({run["scenario"] for runs in policies.values() for run in runs}) for policies in loaded]
    return [
        f"{name} ran scenario {', '.join(scenario)}, but {names[0]} ran {', '.join(scenarios[0])}"
        for name, scenario in zip(names[1:], scenarios[1:], strict=True)
        if scenario != scenarios[0]
    ]


def _backends(policies: Mapping[str, list[Mapping[str, Any]]]) -> str:
    return "+".join(sorted({run["backend"] for runs in policies.values() for run in runs}))
