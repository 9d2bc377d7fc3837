"""Sweep: a scenario under every combination of several values of its keys, with one report over all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from loratory.errors import InputError, several, shortened
from loratory.experiment.backend import Simulation
from loratory.experiment.cores import sensible_jobs
from loratory.experiment.interruption import interruptible
from loratory.experiment.notes.run_description import errors_together
from loratory.experiment.prepare import Prepared, prepare
from loratory.experiment.run import Progress, conclude, shares_of
from loratory.experiment.runner import Runner, reports_of
from loratory.experiment.swept_values import Axis, axes_of, plain
from loratory.reports.folder import ResultFolder
from loratory.reports.number_text import plural
from loratory.reports.summary import RunReport
from loratory.reports.sweep import LeftOut, VariantResult, sweep_summary, variant_name
from loratory.scenarios.load import load_scenario
from loratory.scenarios.schema import Scenario
from loratory.scenarios.size_limits import LIFT, MOST_RUNS
from loratory.serving.policy_watch import POLICY_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class Variant:
    """One combination of the swept values. ``name``: ``max_loras=8,router=round_robin``; ``settings``: by full key."""

    name: str
    settings: Mapping[str, str]
    prepared: Prepared

    @property
    def scenario(self) -> Scenario:
        """The scenario with these settings."""
        return self.prepared.scenario


@dataclass(frozen=True, slots=True)
class Sweep:
    """Variants that can run, in the order of the values: the last key changes fastest.

    ``left_out``: combinations that cannot run, each of whose values can in another one.
    """

    axes: tuple[Axis, ...]
    variants: tuple[Variant, ...]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def runs(self) -> int:
        """The number of runs of all variants."""
        return sum(len(each.scenario.policies) * len(each.scenario.seeds) for each in self.variants)


def read_sweep(
    reference: str | Path,
    settings: Sequence[str],
    policies: Sequence[str] | None = None,
    *,
    unbounded: bool = False,
    policy_timeout_s: float = POLICY_TIMEOUT_S,
) -> Sweep:
    """Load and prepare the scenario with every combination of the values in ``settings`` (``key=a,b,c``).

    A combination that cannot run is left out if each of its values occurs in one that can; so a value with a mistake
    is refused. Raises `InputError`, with the variant, for such a value, for two variants that are the same scenario,
    and unless ``unbounded`` for more runs than `loratory.scenarios.size_limits` allows; otherwise as `load_scenario`
    and `prepare` do.
    """
    read = axes_of(settings)
    axes = tuple(each for each in read if isinstance(each, Axis))
    combinations = prod(len(axis.values) for axis in axes)
    if not unbounded:
        _refuse_many(axes, combinations, combinations, "variants")
    variants: list[Variant] = []
    refused: list[tuple[LeftOut, InputError]] = []
    last: Prepared | None = None
    for values in product(*(axis.values for axis in axes)):
        chosen = dict(zip((axis.key for axis in axes), values, strict=True))
        name = variant_name(chosen)
        given = [f"{each.key}={chosen[each.key]}" if isinstance(each, Axis) else each for each in read]
        try:
            scenario = load_scenario(reference, given, policies, unbounded=unbounded)
            prepared = prepare(scenario, policy_timeout_s, str(reference), None if last is None else last.policies)
        except InputError as error:
            refused.append((LeftOut(name, _plain(chosen), str(error)), error))
            continue
        if last is not None and last.built.adapters == prepared.built.adapters:  # then they are kept once
            prepared = replace(prepared, built=replace(prepared.built, adapters=last.built.adapters))
        last = prepared
        variants.append(Variant(name, chosen, prepared))
        if len(variants) == 1 and not unbounded:
            runs = combinations * len(scenario.policies) * len(scenario.seeds)
            _refuse_many(axes, runs, combinations, "runs")
    _refuse_values(variants, refused)
    _refuse_same(variants)
    return Sweep(axes, tuple(variants), tuple(left_out for left_out, _ in refused))


def run_sweep(
    sweep: Sweep,
    out: Path,
    *,
    jobs: int | None = 1,
    decisions: bool = True,
    progress: Progress | None = None,
    regret: bool = False,
) -> dict[str, Any]:
    """Simulate every variant with all its policies and seeds; returns the summary over all (docs/reports.md).

    ``out`` is written whole or not at all: the report over all, and in a folder for each variant what a run of it alone
    leaves, byte for byte. ``jobs`` processes share the runs of all variants, None for as many as save time. Seeds are
    the same in each variant, and equal workloads are built once in each process. ``regret``, and what is raised: as in
    `loratory.experiment.run.run_scenario`.
    """
    backend = Simulation()

    def results(folder: ResultFolder) -> Iterator[VariantResult]:
        parts = [folder.part(variant.name) for variant in sweep.variants]
        expected: list[int] = []
        owners, shares = [], []
        for place, (variant, part) in enumerate(zip(sweep.variants, parts, strict=True)):
            mine = shares_of(variant.prepared, part, decisions, regret)
            expected.append(len(mine))
            owners += [(place, number) for number in range(len(mine))]
            shares += mine
        reports: list[dict[int, RunReport]] = [{} for _ in sweep.variants]
        runner = Runner(sweep.variants[0].prepared.policies, backend, folder.leavings)
        chosen = sensible_jobs([variant.scenario for variant in sweep.variants]) if jobs is None else jobs
        for done, (place, report) in enumerate(reports_of(shares, runner, chosen), 1):
            owner, number = owners[place]
            variant = sweep.variants[owner]
            reports[owner][number] = report
            if progress is not None:
                progress(f"{variant.name}, {report.info.policy}", done, len(shares))
            if len(reports[owner]) == expected[owner]:
                own = [reports[owner][number] for number in range(len(reports[owner]))]
                summary = conclude(variant.prepared, own, parts[owner], backend)
                reports[owner].clear()  # curves and trace events are written, and would only take memory
                yield _result(variant, parts[owner], summary)

    return _whole(sweep, out, results)


def execute_sweep(
    sweep: Sweep, out: Path, *, decisions: bool = True, progress: Progress | None = None, source: str | None = None
) -> dict[str, Any]:
    """Run every variant on this machine, one after another, as `loratory.experiment.execute` runs one.

    Writes and returns what `run_sweep` does. Raises as `execute_scenario` does, and nothing is left over.
    """
    from loratory.experiment.execute import execute_scenario, refuse_unmeasurable

    for variant in sweep.variants:
        try:
            refuse_unmeasurable(variant.scenario)
        except InputError as error:
            raise InputError(f"variant {shortened(variant.name, 100)}: {error}") from error

    def results(folder: ResultFolder) -> Iterator[VariantResult]:
        before = 0
        for variant in sweep.variants:
            part = folder.part(variant.name)
            summary = execute_scenario(
                variant.scenario,
                part,
                decisions=decisions,
                progress=_shifted(progress, variant.name, before, sweep.runs),
                policy_timeout_s=variant.prepared.policy_timeout_s,
                source=source,
            )
            before += len(summary["runs"])
            yield _result(variant, part, summary)

    return _whole(sweep, out, results)


def _whole(sweep: Sweep, out: Path, results: Callable[[ResultFolder], Iterator[VariantResult]]) -> dict[str, Any]:
    """The folder of a sweep around the variants' own, with the report over all."""
    from loratory.reports.sweep_page import sweep_page

    with ExitStack() as stack:
        stack.enter_context(interruptible())
        folder = stack.enter_context(ResultFolder(out))
        found = {result.name: result for result in results(folder)}
        inside = [found[variant.name] for variant in sweep.variants]
        scenario = sweep.variants[0].scenario
        values = {axis.key: [plain(value) for value in axis.values] for axis in sweep.axes}
        summary = sweep_summary(values, inside, sweep.left_out)
        if errors := [text for result in inside if (text := result.setup.get("known error"))]:
            summary["setup"]["known error"] = errors_together(errors)
        page = sweep_page(scenario.name, scenario.description, summary)
        folder.write_sweep(summary, page)
        return summary


def _result(variant: Variant, part: ResultFolder, summary: Mapping[str, Any]) -> VariantResult:
    return VariantResult(variant.name, part.target.name, _plain(variant.settings), summary["setup"], summary["runs"])


def _plain(settings: Mapping[str, str]) -> dict[str, Any]:
    return {key: plain(value) for key, value in settings.items()}


def _shifted(progress: Progress | None, name: str, before: int, total: int) -> Progress | None:
    """The progress of one variant as a part of all runs."""
    if progress is None:
        return None
    return lambda policy, done, _: progress(f"{name}, {policy}", before + done, total)


def _refuse_many(axes: Sequence[Axis], number: int, variants: int, what: str) -> None:
    if number > MOST_RUNS:
        of = "" if what == "variants" else f"{plural(variants, 'variant')} with "
        raise InputError(
            f"{several([axis.setting for axis in axes], 3)} gives {of}{number:,} {what}, above {MOST_RUNS:,}, the most "
            f"expected: give fewer values, or {LIFT}"
        )


def _refuse_values(variants: Sequence[Variant], refused: Sequence[tuple[LeftOut, InputError]]) -> None:
    """Raise the error of the first variant that has a value with which no variant can run."""
    if not variants and len({str(error) for _, error in refused}) == 1:
        raise refused[0][1]  # it has nothing to do with the values
    accepted = {item for variant in variants for item in _items(_plain(variant.settings))}
    for left_out, error in refused:
        if not _items(left_out.settings) <= accepted:
            raise InputError(f"variant {shortened(left_out.name, 100)}: {error}") from error


def _items(settings: Mapping[str, Any]) -> set[tuple[str, str]]:
    return {(key, repr(value)) for key, value in settings.items()}


def _refuse_same(variants: Sequence[Variant]) -> None:
    """Two variants with the same scenario: another setting overrides a swept one, or two values mean the same."""
    seen: dict[str, str] = {}
    for variant in variants:
        text = variant.scenario.model_dump_json()
        if text in seen:
            raise InputError(
                f"variants {shortened(seen[text], 100)} and {shortened(variant.name, 100)} are the same scenario: drop "
                "one of the values, or the setting that replaces them"
            )
        seen[text] = variant.name
