"""toppings: ranks that slow others come together, wait no longer than patience_s, and cost nothing where none does."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import examples
from roster import Padded

from loratory import load_scenario
from loratory.errors import InputError
from loratory.experiment.resolve import build
from loratory.policies.fifo import Fifo
from loratory.policies.toppings import Toppings
from loratory.policy import BatchShape
from loratory.scenarios.build import build_workload
from loratory.serving.sequence import sequence_of
from loratory.testing import EngineConfig, Run, ToyCost, World, adapter, run, workload, worlds
from loratory.testing.check_policy import check_policy

LOW, HIGH = adapter(1, rank=8), adapter(2, rank=64)
CONFIG = EngineConfig(num_gpu_blocks=256, max_loras=2, max_lora_rank=64, max_num_seqs=16, max_num_batched_tokens=256)


@dataclass
class PaddedCost(ToyCost):
    """Every decoding request pays for the largest rank of the batch."""

    padding_s: float = 0.0001

    def _line(self, shape: BatchShape) -> Any:
        line = super()._line(shape)
        line.intercept_s += self.padding_s * shape.max_rank * shape.decode_seqs
        return line


def admissions(result: Run) -> dict[str, float]:
    return {event[2]: event[1] for event in result.of("Admitted")}


def serve(rows: list[dict[str, Any]], cost: ToyCost | None = None, **parameters: Any) -> dict[str, float]:
    """Seconds of admission by request, of rows in order of arrival: low ranks for adapter 1, high ones for 2."""
    world = World(workload(rows, (LOW, HIGH)), (LOW, HIGH), CONFIG, cost or PaddedCost())
    return admissions(run(world, lambda: Toppings(**parameters)))


LONG = [{"at": 0.0, "adapter": 1, "out": 200}] * 4


def test_a_large_rank_waits_while_it_would_slow_others_and_no_longer_than_its_patience() -> None:
    rows = [*LONG, {"at": 0.1, "adapter": 2, "out": 100}]
    assert serve(rows, patience_s=0.5)["4"] == pytest.approx(0.6, abs=0.1)
    assert serve(rows, patience_s=1.0)["4"] == pytest.approx(1.1, abs=0.1)
    assert serve(rows, patience_s=0.0)["4"] == pytest.approx(0.1, abs=0.1)


def test_requests_that_wait_together_come_together_and_sooner_than_one() -> None:
    one = serve([*LONG, {"at": 0.1, "adapter": 2, "out": 20}], patience_s=9.0)
    four = serve([*LONG, *({"at": 0.1 + 0.01 * each, "adapter": 2, "out": 20} for each in range(4))], patience_s=9.0)
    times = [four[str(number)] for number in range(4, 8)]
    assert len(set(times)) == 1 and 0.5 < times[0] < 0.6 * one["4"]


def test_a_request_soon_after_another_of_its_rank_joins_it() -> None:
    """It prolongs the time in which the others are slowed by as much as the other one is ahead."""
    rows = [*LONG[:2], {"at": 0.1, "adapter": 2, "out": 200}]
    waits = []
    for at in (0.8, 1.6):
        found = serve([*rows, {"at": at, "adapter": 2, "out": 200}], PaddedCost(padding_s=0.00001), patience_s=0.9)
        assert found["2"] == pytest.approx(0.78, abs=0.01)
        waits.append(found["3"] - at)
    assert waits[0] < 0.08 < 0.15 < waits[1]


def test_small_ranks_pass_a_large_one_that_waits() -> None:
    rows = [
        *LONG,
        {"at": 0.1, "adapter": 2, "out": 100},
        *({"at": 0.2, "adapter": each, "out": 100} for each in (1, None)),
    ]
    found = serve(rows, patience_s=1.0)
    assert max(found["5"], found["6"]) < 0.35 < found["4"]


@pytest.mark.parametrize(
    ("rows", "cost"),
    [
        ([*LONG, {"at": 0.1, "adapter": 2, "out": 99}], ToyCost()),  # no rank slows another
        (
            [{"at": 0.0, "adapter": 2, "out": 200}] * 4 + [{"at": 0.1, "adapter": 2, "out": 99}],
            PaddedCost(),
        ),  # nothing lower runs
        ([{"at": 0.0, "adapter": None, "out": 200}] * 5, PaddedCost()),
        ([*LONG, {"at": 0.1, "adapter": 2, "out": 99}], PaddedCost(padding_s=1e-9)),  # by less than slowdown
    ],
)
def test_what_slows_nobody_never_waits(rows: list[dict[str, Any]], cost: ToyCost) -> None:
    assert serve(rows, cost)["4"] < 0.15


@given(world=worlds())
@examples(30)
def test_where_no_rank_slows_another_it_is_fifo(world: World) -> None:
    assert run(world, Toppings, check_books=False).decisions == run(world, Fifo, check_books=False).decisions


@given(world=worlds(fits=True, deadlines=False), patience_s=st.sampled_from([0.0, 0.05, 0.4]))
@examples(30)
def test_books_hold_the_waiting_requests_and_nothing_else(world: World, patience_s: float) -> None:
    made: list[Padded] = []

    def policy() -> Padded:
        made.append(Padded(patience_s=patience_s))
        return made[-1]

    result = run(world, policy, check_books=False)
    assert {end.status for end in result.ended.values()} <= {"completed"}
    for each in made:
        assert not each._new and not each._rank_of
        for queue in each._ranks.values():
            assert not queue.waiting and not queue.names and not queue.preempted and queue.arrivals == 0.0


def test_in_the_library_scenario_small_ranks_decode_faster_and_large_ones_wait() -> None:
    scenario = load_scenario("rank-padding", ["workload.duration_s=120"])
    built = build(scenario)
    ranks = {each.name: each.rank for each in built.adapters}
    world = World(build_workload(scenario, 0, built.adapters), built.adapters, built.engine, built.cost)
    tpot: list[dict[int, float]] = []
    ttft: list[dict[int, float]] = []
    for policy in (Fifo, Toppings):
        times: dict[int, list[tuple[float, float]]] = {8: [], 64: []}
        for end in run(world, policy, check_books=False).ended.values():
            sequence = sequence_of(end.request)
            if sequence.generated > 1:
                first = sequence.first_token_at
                assert first is not None
                each = (first - end.request.arrival, (end.now - first) / (sequence.generated - 1))
                times[ranks[end.request.adapter or ""]].append(each)
        ttft.append({rank: mean(each[0] for each in found) for rank, found in times.items()})
        tpot.append({rank: mean(each[1] for each in found) for rank, found in times.items()})
    assert tpot[1][8] < 0.95 * tpot[0][8]
    assert ttft[1][8] <= 1.05 * ttft[0][8] and ttft[0][64] + 1.0 < ttft[1][64] < ttft[0][64] + 10.0


@pytest.mark.parametrize("parameters", [{"patience_s": -1.0}, {"weight": -0.1}, {"slowdown": -1.0}])
def test_odd_parameters_are_refused(parameters: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"toppings: .*: give 0 or more"):
        Toppings(**parameters)


@pytest.mark.parametrize("parameters", ["", ":patience_s=0.1,slowdown=0,weight=5"])
def test_it_passes_check_policy(parameters: str) -> None:
    check = check_policy("toppings" + parameters, examples=15)
    assert check.passed, check.findings
