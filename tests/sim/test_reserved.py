"""WithReservation: any policy behind LightLLM's router; it admits as S-LoRA's own does, and no request is preempted."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from lab import examples, run

from loratory.policies.fair_share import FairShare
from loratory.policies.fifo import Fifo
from loratory.policies.slora import SLora
from loratory.serving.config import EngineConfig
from loratory.serving.reservation import Reservation
from loratory.serving.reserved import WithReservation
from loratory.testing import ToyCost as Cost
from loratory.testing import World, workload

CONFIG = EngineConfig(
    max_num_seqs=50, num_gpu_blocks=160, block_size=1, max_num_batched_tokens=4096, batching="separate"
)


def _world(seed: int, rows: int = 60) -> World:
    """Base-model requests whose lengths are known, and an idle stretch now and then."""
    draw = random.Random(seed)
    at, made = 0.0, []
    for _ in range(rows):
        at += draw.choice([0.0, 0.0, 0.01, 0.05, 0.9])
        out = draw.randint(2, 30)
        prompt = draw.randint(1, 40)
        made.append({"at": at, "tenant": draw.randint(0, 2), "prompt": prompt, "out": out, "cap": out})
    return World(workload(made), (), CONFIG, Cost())


@examples(20)
@given(seed=st.integers(0, 10**6), decode_steps=st.integers(1, 12), least=st.sampled_from([30, 60, 3072]))
def test_fifo_behind_the_router_is_s_lora_s_router(seed: int, decode_steps: int, least: int) -> None:
    """Without adapters the `slora` policy is first come, first served behind the same admission, written otherwise."""
    world = _world(seed)

    def behind() -> Any:
        return WithReservation(Fifo(), Reservation(decode_steps, min_prefill_tokens=least))

    ours, theirs = run(world, behind), run(world, lambda: SLora(decode_steps, min_prefill_tokens=least))
    assert ours.of("Admitted") == theirs.of("Admitted")
    assert sorted(ours.of("Ended")) == sorted(theirs.of("Ended"))


@examples(15)
@given(seed=st.integers(0, 10**6))
def test_who_is_let_in_fits_to_the_end(seed: int) -> None:
    world = _world(seed)
    on_demand, behind = run(world, FairShare), run(world, lambda: WithReservation(FairShare()))
    assert not behind.of("Preempted")
    assert len(behind.of("Ended")) == len(on_demand.of("Ended")) == len(world.workload)


def test_on_demand_preempts_where_the_router_does_not() -> None:
    """The law above can fail."""
    assert any(run(_world(seed), FairShare).of("Preempted") for seed in range(10))


def test_admissions_are_ten_decode_steps_apart_while_anything_runs() -> None:
    rows = [{"at": 0.02 * place, "prompt": 4, "out": 100, "cap": 100} for place in range(8)]
    config = CONFIG.model_copy(update={"num_gpu_blocks": 4000})
    result = run(World(workload(rows), (), config, Cost()), lambda: WithReservation(Fifo()), jump=False)
    looks = sorted({event[1] for event in result.of("Admitted")})
    shortest_step_s = 0.0031
    assert 1 < len(looks) < len(rows)
    assert min(later - sooner for sooner, later in pairwise(looks)) > 10 * shortest_step_s


def test_what_the_policy_is_told_and_promises_is_its_own() -> None:
    policy = FairShare()
    reserved = WithReservation(policy)
    assert reserved.observes is policy.observes and reserved.only_waiting and reserved.bound == policy.bound
