"""dlora: credit moves from those that overtake to those that are overtaken, adds up to 0, and ends starvation."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import examples

from loratory.errors import InputError
from loratory.policies.dlora import DLora
from loratory.policies.fifo import Fifo
from loratory.policy import Schedule, View
from loratory.testing import EngineConfig, Run, ToyCost, World, adapter, run, workload, worlds
from loratory.testing.check_policy import check_policy


class Watched(DLora):
    """dlora, with a look at its accounts in each call."""

    seen: list[dict[str | None, float]]

    def schedule(self, view: View) -> Schedule:
        yield from super().schedule(view)
        assert abs(sum(self._flow.values())) < 1e-9 and abs(sum(self.credits.values())) < 1e-6
        overtaken = {request.adapter for request in view.waiting}
        assert all(name in overtaken for name, gained in self._flow.items() if gained > 0)
        assert sum(gained for gained in self._flow.values() if gained > 0) <= 1.0 + 1e-9
        if not view.waiting:
            assert not self._flow
        self.seen.append(dict(self.credits))


def watch(world: World, **parameters: Any) -> tuple[list[dict[str | None, float]], Run]:
    made: list[Watched] = []

    def policy() -> Watched:
        made.append(Watched(**parameters))
        made[-1].seen = []
        return made[-1]

    result = run(world, policy, check_books=False)
    return made[0].seen, result


@given(world=worlds(), credit=st.sampled_from([0.5, 3.0, 100.0]), stay=st.sampled_from([0.1, 1.0]))
@examples(40)
def test_credits_add_up_to_nothing_and_only_who_waits_gains(world: World, credit: float, stay: float) -> None:
    watch(world, credit=credit, stay=stay)


def slots_of_one(count: int = 80) -> World:
    """Two adapters and one slot. Requests for the first keep it busy; the second is asked for once."""
    adapters = (adapter(1), adapter(2))
    rows = [{"at": 0.01 * number, "adapter": 1 if number != 1 else 2, "out": 9} for number in range(count)]
    config = EngineConfig(num_gpu_blocks=64, max_loras=1, max_num_seqs=4, max_num_batched_tokens=64)
    return World(workload(rows, adapters), adapters, config, ToyCost())


def place(world: World, policy: Any) -> int:
    return [event[2] for event in run(world, policy).of("Admitted")].index("1")


def test_credit_ends_the_wait_of_an_adapter_without_a_slot_the_sooner_the_less_is_asked() -> None:
    world = slots_of_one()
    places = [place(world, lambda credit=credit: DLora(credit=credit, batch=False)) for credit in (1.0, 8.0, 1e6)]  # type: ignore[misc]
    assert places[0] < places[1] < places[2] == place(world, Fifo) == 79


def test_credit_grows_with_each_step_of_being_overtaken_by_the_places_that_were_taken() -> None:
    """The second adapter is overtaken by up to four of four places: up to one credit a step in all, here for one."""
    seen, result = watch(slots_of_one(), credit=1e6, batch=False)
    earned = [credits.get("a2", 0.0) for credits in seen]
    assert all(later >= sooner for sooner, later in pairwise(earned))
    steps = result.engines[0].view.decode_steps if result.engines else None
    assert earned[-1] > 5 and (steps is None or earned[-1] <= steps / 4)


def test_arrival_order_moves_no_credit() -> None:
    rows = [{"at": 0.001 * number, "adapter": number % 2 + 1, "out": 9} for number in range(40)]
    adapters = (adapter(1), adapter(2))
    config = EngineConfig(num_gpu_blocks=64, max_loras=2, max_num_seqs=4, max_num_batched_tokens=64)
    world = World(workload(rows, adapters), adapters, config, ToyCost())
    seen, result = watch(world, batch=False)
    assert not any(seen)
    assert result.decisions == run(world, Fifo).decisions


def test_one_adapter_is_admitted_alone_while_that_promises_more() -> None:
    """Most requests want one adapter, and each adapter more in the batch is dear: the others wait, and are paid for."""
    adapters = tuple(adapter(number) for number in range(1, 9))
    rows = [{"at": 0.0, "adapter": 1 if number % 3 else number % 8 + 1, "out": 20} for number in range(60)]
    config = EngineConfig(num_gpu_blocks=256, max_loras=8, max_num_seqs=8, max_num_batched_tokens=256)

    class Dear(ToyCost):
        def _line(self, shape: Any) -> Any:
            line = super()._line(shape)
            line.intercept_s += 0.01 * shape.distinct_adapters
            return line

    world = World(workload(rows, adapters), adapters, config, Dear())
    wants = {str(number): row["adapter"] for number, row in enumerate(rows)}
    firsts = {}
    for batch in (True, False):
        seen, result = watch(world, batch=batch, credit=1e6)
        order = [wants[event[2]] for event in result.of("Admitted")]
        firsts[batch] = order[:30].count(1)
        assert {end.status for end in result.ended.values()} == {"completed"} and len(order) == 60
        if batch:
            assert min(credits.get("a1", 0.0) for credits in seen) < -10
    assert firsts[True] == 30 > firsts[False] + 5


@pytest.mark.parametrize("parameters", [{"credit": 0.0}, {"keep": 1.5}, {"keep": -0.1}, {"stay": 0.0}, {"stay": 2.0}])
def test_odd_parameters_are_refused(parameters: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"dlora: .*: give a credit above 0"):
        DLora(**parameters)


@pytest.mark.parametrize(
    "parameters", ["", ":prefetch=2", ":credit=0.5,keep=0,stay=0.1", ":batch=false,credit=2,keep=1"]
)
def test_it_passes_check_policy(parameters: str) -> None:
    check = check_policy("dlora" + parameters, examples=15)
    assert check.passed, check.findings
