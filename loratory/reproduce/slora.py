"""slora: S-LoRA (MLSys 2024) on an A10G and an A100, its published synthetic runs simulated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from loratory.errors import InputError, several, shortened
from loratory.reproduce.cases import Case, mean_note, refuse_policies, run_cases
from loratory.reproduce.comparison import Check, Reproduction, Row, mean_error
from loratory.reproduce.rows import GivenRow, RowOrigin, read_rows
from loratory.scenarios.library_index import published_folder
from loratory.scenarios.load import load_scenario

THROUGHPUT, LATENCY, FIRST, ATTAINMENT = "throughput, req/s", "mean latency, s", "mean TTFT, s", "attainment"
METRICS = {THROUGHPUT: "throughput", LATENCY: "latency_s", FIRST: "first_token_s", ATTAINMENT: "attainment"}

SCENARIOS = {
    "a10g_slora": "published/slora-a10g",
    "a10g_dm": "published/slora-a10g",
    "a10g_no_mem": "published/slora-a10g-separate",
    "a10g_abort": "published/slora-a10g-abort",
    "a100-80_slora": "published/slora-a100",
}
"""The scenario of each suite, by GPU and what its name ends with. ``dm``: a rerun with one pool (ablation_mem)."""

GPUS = {"a10g": ("a10g",), "a100-80": ("a100-80gb", "a100-80", "a100")}
"""What the gpu column may hold, in any case, by the GPU in the name of a suite."""

RANKS = {"S1": (8,), "S2": (64, 32, 16, 8), "S4": (64, 32, 16)}
"""Ranks of the adapters of each setting, repeating."""

COLUMNS = (
    *("suite", "setting", "num_adapters", "alpha", "req_rate", "cv", "duration_s"),
    *("input_lo", "input_hi", "output_lo", "output_hi"),
    *("throughput_req_s", "avg_latency_s", "avg_first_token_latency_s", "avg_attainment", "num_abort"),
)

FITTED = frozenset(
    {
        "num_adapters_a10g_S1_slora: 1 adapters, 2 req/s, cv 1",
        "req_rate_a10g_S1_slora: 200 adapters, 1 req/s, cv 1",
        "req_rate_a10g_S1_slora: 200 adapters, 2 req/s, cv 1",
        "num_adapters_a10g_S2_slora: 50 adapters, 2 req/s, cv 1",
        "ablation_mem_a10g_S2_dm: 200 adapters, 2.5 req/s, cv 1",
        "num_adapters_a100-80_S4_slora: 0 adapters, 6 req/s, cv 1",
        "num_adapters_a100-80_S4_slora: 1 adapters, 6 req/s, cv 1",
        "num_adapters_a100-80_S4_slora: 400 adapters, 6 req/s, cv 1",
        "req_rate_a100-80_S4_slora: 400 adapters, 1 req/s, cv 1",
    }
)
"""The rows that set constants: three of S1, two of S2 and four of S4 (loratory/reproduce/fit/slora.py)."""

CONTRADICTED = "num_adapters_a10g_S2_slora: 1 adapters, 2 req/s"
"""The row that other published rows contradict; `NOT_MODELLED` says how."""


@dataclass(frozen=True, slots=True)
class BenchmarkFigures:
    """What S-LoRA's benchmark reports of a run: req/s up to the last finish, means over finished requests in s, share
    of all requests whose first token came within 6 s, and how many were aborted (the mean, of several seeds)."""

    throughput: float
    latency_s: float
    first_token_s: float
    attainment: float
    aborted: float


@dataclass(frozen=True, slots=True)
class PublishedRun:
    """One published run: which, how to simulate it, and what was measured."""

    suite: str
    case: str
    simulation: Case
    measured: BenchmarkFigures

    @property
    def fitted(self) -> bool:
        """Whether it was used to fit a constant."""
        return self.case in FITTED


def published() -> list[PublishedRun]:
    """Every run of the two measured files, in their order."""
    folder = published_folder() / "measured"
    return [run for name in ("slora_mlsys24", "slora_mlsys24_more") for run in runs_of(folder / f"{name}.csv")]


def runs_of(path: Path, settings: Sequence[str] = ()) -> list[PublishedRun]:
    """The runs in a file of the same columns, with changed keys. Raises `InputError` for a bad file.

    The same setting may be there again with other figures, as it was measured again; the same row may not.
    """
    runs = read_rows(path, COLUMNS, lambda row: _run(row, settings))
    seen: dict[tuple[str, Case, BenchmarkFigures], str] = {}
    for run in runs:
        key, place = (
            (run.suite, run.simulation, run.measured),
            run.simulation.origin.place if run.simulation.origin else "",
        )
        if key in seen:
            raise InputError(f"{place} is the same as {seen[key]}: leave one of the two rows out")
        seen[key] = place
    return runs


def _run(row: GivenRow, settings: Sequence[str]) -> PublishedRun:
    suite = row.text("suite").removeprefix("synthetic_")
    setting = row.text("setting")
    if setting not in RANKS:
        raise InputError(f"{row.place}: setting {setting!r} is unknown: the settings are {several(RANKS)}")
    columns = (
        (f"adapters.count={row.whole('num_adapters')}", "num_adapters"),
        (f"adapters.ranks={list(RANKS[setting])}", "setting"),
        (f"adapters.popularity.power={row.number('alpha'):g}", "alpha"),
        (f"workload.arrivals.gamma.rate={row.number('req_rate'):g}", "req_rate"),
        (f"workload.arrivals.gamma.cv={row.number('cv'):g}", "cv"),
        (f"workload.duration_s={row.number('duration_s'):g}", "duration_s"),
        (f"workload.input_tokens.uniform={_lengths(row, 'input')}", "input_lo, input_hi"),
        (f"workload.output_tokens.uniform={_lengths(row, 'output')}", "output_lo, output_hi"),
    )
    for column in ("throughput_req_s", "avg_latency_s", "avg_first_token_latency_s"):
        if not row.number(column):
            raise InputError(f"{row.place}: {column} should be above 0: correct it")
    if row.number("avg_attainment") > 1:
        raise InputError(f"{row.place}: avg_attainment is a share and should be at most 1: correct it")
    changes = tuple(change for change, _ in columns)
    origin = RowOrigin(row.place, columns)
    return PublishedRun(
        suite,
        f"{suite}: {row.text('num_adapters')} adapters, {row.text('req_rate')} req/s, cv {row.text('cv')}",
        Case(_scenario(suite, setting, row), (*changes, *settings), origin=origin),
        BenchmarkFigures(
            row.number("throughput_req_s"),
            row.number("avg_latency_s"),
            row.number("avg_first_token_latency_s"),
            row.number("avg_attainment"),
            row.whole("num_abort"),
        ),
    )


def _lengths(row: GivenRow, which: str) -> str:
    """The range of S-LoRA's columns, whose upper end is excluded, as a scenario has it."""
    lo, hi = row.whole(f"{which}_lo"), row.whole(f"{which}_hi")
    if not 0 < lo < hi:
        raise InputError(
            f"{row.place}: {which}_lo is {lo} and {which}_hi is {hi}: the first should be at least 1, and the second, "
            "which is excluded, above it"
        )
    return f"[{lo},{hi - 1}]"


def _scenario(suite: str, setting: str, row: GivenRow) -> str:
    """The scenario of ``ablation_mem_a10g_S2_dm``: that of its GPU, before the setting, and of what follows it."""
    before, _, mode = suite.partition(f"_{setting}_")
    gpu = before.rpartition("_")[2]
    key = f"{gpu}_{mode}"
    if key not in SCENARIOS:
        known = [f"..._{name.replace('_', '_SETTING_', 1)}" for name in SCENARIOS]
        raise InputError(f"{row.place}: suite {suite!r} is unknown: names of suites are {several(known)}")
    said = row.values.get("gpu", "").strip()
    if said and said.lower() not in GPUS[gpu]:
        raise InputError(
            f"{row.place}: gpu is {shortened(said, 60)!r}, but suite {suite!r} was run on {GPUS[gpu][0].upper()}: "
            "correct one of them"
        )
    return SCENARIOS[key]


def figures(run: dict[str, Any]) -> BenchmarkFigures:
    """The same of a simulated run (a ``run`` object of summary.json). Raises `InputError` where it has none of one."""
    latency, first, attainment = run["e2e_s"]["mean"], run["ttft_s"]["mean"], run["slo"]["attainment"]
    if latency is None or first is None:
        raise InputError("no request of the simulation ends, so there is nothing to compare: change its settings")
    if attainment is None:
        raise InputError("slo has no limit, so there is no attainment to compare: leave slo as it is")
    throughput = run["requests"]["completed"] / run["duration_s"]
    return BenchmarkFigures(throughput, latency, first, attainment, run["requests"]["rejected"])


def simulate(runs: Sequence[PublishedRun]) -> list[BenchmarkFigures]:
    """Each run's simulation, the mean over its seeds. One takes a tenth of a second, so they run in one process."""
    found = run_cases([run.simulation for run in runs], jobs=1)
    return [_mean(run.simulation.origin, each) for run, each in zip(runs, found, strict=True)]


def _mean(origin: RowOrigin | None, seeds: Sequence[dict[str, Any]]) -> BenchmarkFigures:
    try:
        each = [figures(run) for run in seeds]
    except InputError as error:
        raise error if origin is None else origin.told(error) from error
    return each[0] if len(each) == 1 else BenchmarkFigures(*map(fmean, zip(*map(astuple, each), strict=True)))


def reproduce(rows: Path | None = None, settings: Sequence[str] = ()) -> Reproduction:
    """All published runs against their simulations; or the runs in the file ``rows``, and with changed keys."""
    if rows is not None or settings:
        path = published_folder() / "measured" / "slora_mlsys24.csv" if rows is None else rows
        return given(runs_of(path, settings), "published runs" if rows is None else str(rows), settings)
    runs = published()
    found = list(zip(runs, simulate(runs), strict=True))
    compared = [row for run, simulated in found for row in _rows(run, simulated, run.measured)]
    return Reproduction(
        name="slora",
        title="S-LoRA (MLSys 2024): synthetic workloads on an A10G (Llama-7B) and an A100 (Llama-13B)",
        source="S-LoRA's repository, result files of benchmarks/paper/synthetic",
        scenarios=tuple(dict.fromkeys(SCENARIOS.values())),
        fitted=(
            "Decode and prefill steps without LoRA come from VTC's A10G profile. On the A10G, KV time in batches of "
            "mixed lengths, LoRA time per token and per rank in the step, and the least time of a step with adapters "
            "were fitted to three S1 rows (1 adapter at 2 req/s, 200 adapters at 1 and at 2 req/s) and two S2 rows "
            "(50 adapters at 2 req/s, 200 adapters at 2.5 req/s). The load time, 0.56 ms times rank, is S-LoRA's. On "
            "the A100, KV time was scaled by bytes over bandwidth, linear layers come from kernel times measured on an "
            "A100, and the least step times without and with adapters, LoRA time per token, and the load time were "
            "fitted to four S4 rows (0, 1 and 400 adapters at 6 req/s, 400 adapters at 1 req/s). All rows were known "
            "when the form of the cost model was chosen."
        ),
        rows=tuple(compared),
        checks=tuple(_checks(found, compared)),
        not_modelled=NOT_MODELLED,
    )


def given(runs: Sequence[PublishedRun], source: str, settings: Sequence[str]) -> Reproduction:
    """Runs of a user's, under a user's settings; of several seeds, the mean."""
    refuse_policies(settings)
    theirs = {(run.suite, run.simulation): run.measured for run in published()}
    pairs = zip(runs, simulate(runs), strict=True)
    rows = [row for run, ours in pairs for row in _rows(run, ours, theirs.get((run.suite, run.simulation)))]
    tested = [replace(row, use="test") for row in rows]
    scenarios = tuple(dict.fromkeys(run.simulation.scenario for run in runs))
    return Reproduction(
        name="slora",
        title=f"S-LoRA (MLSys 2024): {len(runs)} runs",
        source=source,
        scenarios=scenarios,
        fitted="See docs/fidelity.md for what the constants of the cost model were fitted to.",
        rows=tuple(tested if settings else rows),
        checks=(
            Check("mean error of throughput", mean_error(tested, THROUGHPUT), 0.02),
            Check("mean error of mean latency", mean_error(tested, LATENCY), 0.06),
        ),
        not_modelled=NOT_MODELLED,
        notes=mean_note(len(load_scenario(runs[0].simulation.scenario, runs[0].simulation.changes).seeds)),
    )


def _rows(run: PublishedRun, simulated: BenchmarkFigures, theirs: BenchmarkFigures | None) -> list[Row]:
    """``theirs``: the published figures of the same settings; only those figures can have set a constant."""
    rows = []
    for metric, field in METRICS.items():
        measured = getattr(run.measured, field)
        fitted = run.fitted and theirs is not None and getattr(theirs, field) == measured
        rows.append(Row(run.case, metric, measured, getattr(simulated, field), "fit" if fitted else "test"))
    return rows


def _checks(found: Iterable[tuple[PublishedRun, BenchmarkFigures]], rows: Sequence[Row]) -> list[Check]:
    def of(*suites: str) -> list[Row]:
        return [row for row in rows if row.case.split(":")[0].endswith(suites)]

    s1, s2, s4, abort = of("S1_slora", "S1_no_mem"), of("S2_slora", "S2_dm"), of("S4_slora"), of("abort")
    alone = [row for row in s2 if "S2_dm: 1 adapters" in row.case]
    others = [row for row in s2 if CONTRADICTED not in row.case]
    low = [row for row in s1 if "1.5 req/s" in row.case]
    return [
        Check("S1, unified and separate memory: mean error of throughput", mean_error(s1, THROUGHPUT), 0.01),
        Check("S1: mean error of mean latency", mean_error(s1, LATENCY), 0.05),
        Check("S1: mean difference of attainment", mean_difference(s1, ATTAINMENT), 0.03),
        Check("S1 at low load, 1.5 req/s: error of mean latency", mean_error(low, LATENCY), 0.05),
        Check("S2: mean error of throughput", mean_error(s2, THROUGHPUT), 0.02),
        Check("S2 but for one adapter at 2 req/s: mean error of mean latency", mean_error(others, LATENCY), 0.06),
        Check("S2, one adapter of rank 64 at 2.5 req/s: error of throughput", mean_error(alone, THROUGHPUT), 0.02),
        Check("S2, one adapter of rank 64 at 2.5 req/s: error of mean latency", mean_error(alone, LATENCY), 0.06),
        Check("S4 on the A100: mean error of throughput", mean_error(s4, THROUGHPUT), 0.03),
        Check("S4 on the A100: mean error of mean latency", mean_error(s4, LATENCY), 0.08),
        *(
            Check(f"early abort, cv {row.case.split('cv ')[1]}: difference of attainment", _apart(row), 0.05)
            for row in abort
            if row.metric == ATTAINMENT
        ),
    ]


def mean_difference(rows: Iterable[Row], metric: str) -> float:
    """Mean of |simulated - published| over the test rows of a metric."""
    apart = [_apart(row) for row in rows if row.metric == metric and row.use == "test"]
    return sum(apart) / len(apart)


def _apart(row: Row) -> float:
    return abs(float(row.simulated) - float(row.published))


NOT_MODELLED = (
    "HTTP, tokenising and detokenising: measured first tokens are about 0.1 s later.",
    "The effect of the longest request on a decode step: one constant per KV token stands for batches of mixed "
    "lengths, which take twice the time of a batch of equal lengths.",
    "S2 with one adapter at 2 req/s: measured 4 % fewer requests and 34 % longer latency than the same run with an "
    "adapter of rank 8, but at 2.5 req/s the two are equal within 1 %. The simulation has them equal at both. The "
    "authors' reruns of one setting differ by 2 % in throughput and 10 % in latency.",
    "The copies by which separate memory grows and shrinks its adapter buffer.",
)
