"""slora: S-LoRA (MLSys 2024) on an A10G and an A100, its published synthetic runs simulated."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from loratory.reproduce.cases import Case, run_cases
from loratory.reproduce.comparison import Check, Reproduction, Row, mean_error
from loratory.scenarios.library_index import published_folder

THROUGHPUT, LATENCY, FIRST, ATTAINMENT = "throughput, req/s", "mean latency, s", "mean TTFT, s", "attainment"

SCENARIOS = {
    "a10g_S1_slora": "published/slora-a10g",
    "a10g_S1_no_mem": "published/slora-a10g-separate",
    "a10g_S1_abort": "published/slora-a10g-abort",
    "a100-80_S4_slora": "published/slora-a100",
}
"""The scenario of each suite, by how the suite's name ends."""

FITTED = frozenset(
    {
        "num_adapters_a10g_S1_slora: 1 adapters, 2 req/s, cv 1",
        "req_rate_a10g_S1_slora: 200 adapters, 1 req/s, cv 1",
        "req_rate_a10g_S1_slora: 200 adapters, 2 req/s, cv 1",
        "num_adapters_a100-80_S4_slora: 0 adapters, 6 req/s, cv 1",
        "num_adapters_a100-80_S4_slora: 400 adapters, 6 req/s, cv 1",
    }
)
"""The rows that set constants: three of S1 and two of S4 (loratory/reproduce/fit/slora.py)."""


@dataclass(frozen=True, slots=True)
class BenchmarkFigures:
    """What S-LoRA's benchmark reports of a run: req/s up to the last finish, means over finished requests in s, share
    of all requests whose first token came within 6 s, and how many were aborted."""

    throughput: float
    latency_s: float
    first_token_s: float
    attainment: float
    aborted: int


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
    """Every run of the measured file, in its order."""
    with (published_folder() / "measured" / "slora_mlsys24.csv").open(encoding="utf-8", newline="") as file:
        return [_run(row) for row in csv.DictReader(file)]


def _run(row: dict[str, str]) -> PublishedRun:
    suite = row["suite"].removeprefix("synthetic_")
    changes = (
        f"adapters.count={row['num_adapters']}",
        f"adapters.popularity.power={row['alpha']}",
        f"workload.arrivals.gamma.rate={row['req_rate']}",
        f"workload.arrivals.gamma.cv={row['cv']}",
        f"workload.duration_s={row['duration_s']}",
        f"workload.input_tokens.uniform=[{row['input_lo']},{int(row['input_hi']) - 1}]",
        f"workload.output_tokens.uniform=[{row['output_lo']},{int(row['output_hi']) - 1}]",
    )
    return PublishedRun(
        suite,
        f"{suite}: {row['num_adapters']} adapters, {row['req_rate']} req/s, cv {row['cv']}",
        Case(next(name for end, name in SCENARIOS.items() if suite.endswith(end)), changes),
        BenchmarkFigures(
            float(row["throughput_req_s"]),
            float(row["avg_latency_s"]),
            float(row["avg_first_token_latency_s"]),
            float(row["avg_attainment"]),
            int(row["num_abort"]),
        ),
    )


def figures(run: dict[str, Any]) -> BenchmarkFigures:
    """The same of a simulated run (a ``run`` object of summary.json)."""
    return BenchmarkFigures(
        run["requests"]["completed"] / run["duration_s"],
        run["e2e_s"]["mean"],
        run["ttft_s"]["mean"],
        run["slo"]["attainment"],
        run["requests"]["rejected"],
    )


def simulate(runs: Sequence[PublishedRun]) -> list[BenchmarkFigures]:
    """Each run's simulation. One takes a tenth of a second, so they run in one process."""
    return [figures(found[0]) for found in run_cases([run.simulation for run in runs], jobs=1)]


def reproduce() -> Reproduction:
    """All published runs against their simulations."""
    runs = published()
    found = list(zip(runs, simulate(runs), strict=True))
    rows = [row for run, simulated in found for row in _rows(run, simulated)]
    return Reproduction(
        name="slora",
        title="S-LoRA (MLSys 2024): synthetic workloads on an A10G (Llama-7B) and an A100 (Llama-13B)",
        source="S-LoRA's repository, result files of benchmarks/paper/synthetic",
        scenarios=tuple(SCENARIOS.values()),
        fitted=(
            "Decode and prefill steps without LoRA come from VTC's A10G profile. KV time in batches of mixed lengths, "
            "and LoRA time per token and per adapter, were fitted to three S1 rows (1 adapter at 2 req/s, 200 adapters "
            "at 1 and at 2 req/s). The load time, 0.56 ms times rank, is S-LoRA's. On the A100, LoRA and KV times were "
            "scaled by bytes over bandwidth, linear layers come from kernel times measured on an A100, and the least "
            "step time and the load time were fitted to the S4 rows with 0 and 400 adapters. All S1 and S4 rows were "
            "known when the form of the cost model was chosen."
        ),
        rows=tuple(rows),
        checks=tuple(_checks(found, rows)),
        not_modelled=(
            "HTTP, tokenising and detokenising: measured first tokens are about 0.1 s later.",
            "The effect of the longest request on a decode step: one constant per KV token stands for batches of mixed "
            "lengths, which take twice the time of a batch of equal lengths.",
            "The copies by which separate memory grows and shrinks its adapter buffer.",
        ),
    )


def _rows(run: PublishedRun, simulated: BenchmarkFigures) -> list[Row]:
    use: Any = "fit" if run.fitted else "test"
    pairs = (
        (THROUGHPUT, run.measured.throughput, simulated.throughput),
        (LATENCY, run.measured.latency_s, simulated.latency_s),
        (FIRST, run.measured.first_token_s, simulated.first_token_s),
        (ATTAINMENT, run.measured.attainment, simulated.attainment),
    )
    return [Row(run.case, metric, published, value, use) for metric, published, value in pairs]


def _checks(found: Iterable[tuple[PublishedRun, BenchmarkFigures]], rows: Sequence[Row]) -> list[Check]:
    def of(*suites: str) -> list[Row]:
        return [row for row in rows if row.case.split(":")[0].endswith(suites)]

    s1, s4, abort = of("S1_slora", "S1_no_mem"), of("S4_slora"), of("abort")
    low = [row for row in s1 if "1.5 req/s" in row.case]
    return [
        Check("S1, unified and separate memory: mean error of throughput", mean_error(s1, THROUGHPUT), 0.01),
        Check("S1: mean error of mean latency", mean_error(s1, LATENCY), 0.05),
        Check("S1: mean difference of attainment", mean_difference(s1, ATTAINMENT), 0.03),
        Check("S1 at low load, 1.5 req/s: error of mean latency", mean_error(low, LATENCY), 0.05),
        Check("S4 on the A100: mean error of throughput", mean_error(s4, THROUGHPUT), 0.03),
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
