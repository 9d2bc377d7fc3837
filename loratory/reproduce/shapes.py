"""shapes: two SGLang issues, a vLLM queue, its LoRA throughput and Punica's: the shape of results, not their digits."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from loratory.experiment.policy_spec import policy_factory
from loratory.experiment.resolve import build
from loratory.reproduce.cases import Case, run_case
from loratory.reproduce.comparison import Check, Reproduction, Row
from loratory.reproduce.fit.punica import IDENTICAL, TOKENS_PER_S, tokens_per_s
from loratory.scenarios.build import build_workload
from loratory.scenarios.load import load_scenario
from loratory.serving.events import Admitted, Event
from loratory.sim.cluster import simulate

STARVED = {"mean": 12.06, "p50": 7.05, "p90": 32.93}
"""End-to-end seconds before draining; SGLang pull request 17913."""

CACHED_S, EVICTING_S = 0.03965, 6.278
"""Median TTFT with 8 and with 16 adapters on 8 slots; SGLang pull request 13349."""

QUEUE = {
    "fifo": "R1 R2 R3 R4 R5 R6 R7 R12 R13 R14 R15 R16",
    "fifo:strict=true": "R1 R2 R3 R4 R5 R6 R7",
}
"""Which requests are scheduled first; vLLM pull request 15422."""

OFFLINE_REQ_S = {"base model": (11.45, "adapters.count=0"), "one adapter of rank 8": (10.96, "adapters.count=1")}
"""Requests/s of 1,000 prompts on an A100, and the change that gives each; vLLM pull requests 11267 and 11613."""

_SCENARIOS = ("sglang-17913", "sglang-13349", "vllm-15422", "vllm-11267", "punica-a100")

PUNICA_13B_TOKENS_PER_S = 693.0
PUNICA_LOAD_S = 0.002
"""Punica (MLSys 2024), sections 5.2 and 7.2."""


def reproduce() -> Reproduction:
    """All five."""
    parts = (_starvation(), _eviction(), _queue(), _offline(), _punica())
    return Reproduction(
        name="shapes",
        title="Starvation, eviction, a queue, and throughput with LoRA",
        source="SGLang pull requests 17913 and 13349, vLLM pull requests 15422 and 11267, Punica (MLSys 2024)",
        scenarios=tuple(f"published/{n}" for n in _SCENARIOS),
        fitted="Only cost.host_layer_s of punica-a100, to its `identical` case (python -m "
        "loratory.reproduce.fit.punica). The others run on the uncalibrated roofline.",
        rows=tuple(row for rows, _ in parts for row in rows),
        checks=tuple(check for _, checks in parts for check in checks),
        not_modelled=(
            "SGLang 17913 measured one draw of 200 requests. The simulation draws twenty, whose means differ by up to "
            "a factor of two. The step time of that SGLang version is not known; with the roofline's, the P50 agrees.",
            "SGLang 13349 does not state the rank, the lengths that were drawn, or when outputs ended. With a "
            "scheduler that stops at the first request without a slot, the median is 3 times the published one. With "
            "one that skips such requests, half of the requests starve, and the median is below or above, depending "
            "on the seed.",
            "vLLM 11267's base model ran on V0, and the simulated one is V1's. The kernels of V0, with which LoRA "
            "served 7.6 requests/s, are not modelled.",
            "Punica's kernels: the fitted host time grows with the number of layers. This makes the 13B model too "
            "fast, so part of that time must grow with the model's width. An adapter load takes its bytes over the "
            "host link.",
        ),
    )


def _over_seeds(runs: list[dict[str, Any]], policy: str, metric: str, statistic: str) -> list[float]:
    return [float(run[metric][statistic]) for run in runs if run["policy"] == policy]


def _starvation() -> tuple[list[Row], list[Check]]:
    """SGLang 17913: greedy skip starves requests, drain bounds the wait."""
    runs = run_case(Case("published/sglang-17913"))
    found = {statistic: _over_seeds(runs, "fifo", "e2e_s", statistic) for statistic in STARVED}
    case = "SGLang 17913, greedy skip, mean of 20 seeds"
    rows = [Row(case, f"end to end {name}, s", STARVED[name], fmean(values)) for name, values in found.items()]
    ratio = fmean(found["p90"]) / fmean(found["p50"])
    rows.append(Row(case, "end to end P90 / P50", STARVED["p90"] / STARVED["p50"], ratio))
    drained, greedy = (fmean(_over_seeds(runs, policy, "queue_s", "p99")) for policy in ("drain", "fifo"))
    rows.append(Row("SGLang 17913, drain against greedy skip", "P99 wait, ratio", 0.5, drained / greedy))
    checks = [
        Check("SGLang 17913: P90 / P50 under greedy skip", ratio, 3.0, at_least=True),
        Check("SGLang 17913: P99 wait of drain / greedy skip", drained / greedy, 0.6),
        Check("SGLang 17913: P99 wait of drain / greedy skip, from below", drained / greedy, 0.4, at_least=True),
    ]
    for name, values in found.items():
        outside = max(min(values) - STARVED[name], STARVED[name] - max(values), 0.0)
        checks.append(Check(f"SGLang 17913: seconds the published {name} lies outside the seeds' range", outside, 0.0))
    return rows, checks


def _eviction() -> tuple[list[Row], list[Check]]:
    """SGLang 13349: twice as many adapters as slots."""
    found: dict[int, float] = {}
    for adapters in (8, 16):
        runs = run_case(Case("published/sglang-13349", (f"adapters.count={adapters}",)))
        found[adapters] = fmean(_over_seeds(runs, "fifo:strict=true", "ttft_s", "p50"))
    greedy = fmean(_over_seeds(run_case(Case("published/sglang-13349", policies=("fifo",))), "fifo", "ttft_s", "p50"))
    rows = [
        Row("SGLang 13349, 8 slots, 8 adapters", "TTFT P50, s", CACHED_S, found[8]),
        Row("SGLang 13349, 8 slots, 16 adapters", "TTFT P50, s", EVICTING_S, found[16]),
        Row("SGLang 13349, 16 adapters, skipping instead", "TTFT P50, s", EVICTING_S, greedy),
        Row("SGLang 13349, 16 against 8 adapters", "TTFT P50, ratio", EVICTING_S / CACHED_S, found[16] / found[8]),
    ]
    return rows, [
        Check("SGLang 13349: median TTFT grows from 8 to 16 adapters by", found[16] / found[8], 100, at_least=True),
        Check("SGLang 13349: the same, and not by three orders of magnitude", found[16] / found[8], 1000),
        Check("SGLang 13349: error of the median TTFT with 8 adapters", abs(found[8] / CACHED_S - 1), 0.25),
    ]


def first_scheduled(policy: str, scenario: str = "published/vllm-15422") -> str:
    """The requests of the queue that the first step admits, R1 being the first in it."""
    loaded = load_scenario(scenario)
    built = build(loaded)
    events: list[Event] = []
    simulate(
        build_workload(loaded, 0, built.adapters),
        adapters=built.adapters,
        config=built.engine,
        policy=policy_factory(policy),
        cost=built.cost,
        sink=lambda index: events.append,
    )
    first = [int(event.request.request_id) for event in events if isinstance(event, Admitted) and event.now == 0.0]
    return " ".join(f"R{place + 1}" for place in sorted(first))


def _queue() -> tuple[list[Row], list[Check]]:
    """vLLM 15422: the exact set."""
    rows, checks = [], []
    for policy, wanted in QUEUE.items():
        word = "BREAK" if "strict" in policy else "SKIP"
        found = first_scheduled(policy)
        rows.append(Row(f"vLLM 15422, {word}", "scheduled first", wanted, found))
        wrong = {*wanted.split()} ^ {*found.split()}
        checks.append(Check(f"vLLM 15422, {word}: requests scheduled wrongly", len(wrong), 0))
    return rows, checks


def _offline() -> tuple[list[Row], list[Check]]:
    """vLLM 11267: what LoRA costs on a GPU that gave no LoRA constant."""
    rows = []
    for name, (published, change) in OFFLINE_REQ_S.items():
        (run,) = run_case(Case("published/vllm-11267", (change,)))
        served = run["requests"]["completed"] / run["duration_s"]
        rows.append(Row(f"vLLM 11267, {name}", "throughput, req/s", published, served))
    base, lora = rows
    share = (float(lora.simulated) / float(base.simulated)) / (float(lora.published) / float(base.published))
    return rows, [
        Check("vLLM 11267: largest error of a throughput", max(abs(row.error or 0.0) for row in rows), 0.10),
        Check("vLLM 11267: error of throughput with LoRA over that without", abs(share - 1.0), 0.05),
    ]


def popularities() -> dict[str, tuple[str, ...]]:
    """Punica's four, as changes of the scenario.

    Distinct draws from 1,000; in skewed, each of 15 is requested 1.5 times as often as the next; uniform has the root
    of 1,000.
    """
    skewed = ", ".join(f"{1.5**-place:.6g}" for place in range(15))
    return {
        "identical": (IDENTICAL,),
        "skewed": ("adapters.count=15", f"adapters.popularity={{weights: [{skewed}]}}"),
        "uniform": ("adapters.count=32",),
        "distinct": ("adapters.count=1000",),
    }


def _punica() -> tuple[list[Row], list[Check]]:
    """Punica: tokens/s over popularities, a larger model, and a load."""
    found = {name: tokens_per_s(*changes) for name, changes in popularities().items()}
    metric = "throughput, tokens/s"
    rows = [
        Row(f"Punica, 7B, {name}", metric, TOKENS_PER_S, value, "fit" if name == "identical" else "test")
        for name, value in found.items()
    ]
    larger = tokens_per_s(IDENTICAL, "model=llama-2-13b")
    rows.append(Row("Punica, 13B, identical", metric, PUNICA_13B_TOKENS_PER_S, larger))
    built = build(load_scenario("published/punica-a100"))
    load_s = built.cost.load_seconds(built.adapters[0], "host")
    rows.append(Row("Punica, 7B, rank 16", "adapter load, s", PUNICA_LOAD_S, load_s))
    spread = max(found.values()) / min(found.values()) - 1
    worst = max(abs(value / TOKENS_PER_S - 1) for value in found.values())
    return rows, [
        Check("Punica: throughput of the best popularity above the worst", spread, 0.05),
        Check("Punica: largest error of a 7B throughput", worst, 0.05),
    ]
