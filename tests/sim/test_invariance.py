"""Laws that compare two runs: determinism, unseen truth, relabelling, scaling of time, one adapter, more slots."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import examples, run
from roster import POLICIES, TIMED

from loratory.policies.affine_deficit import AffineDeficit
from loratory.policies.deficit import Deficit
from loratory.policies.fair_share import FairShare
from loratory.policies.fifo import Fifo
from loratory.policies.priority import Priority
from loratory.serving.config import EngineConfig
from loratory.serving.lora import LoRARequest
from loratory.serving.sequence import sequence_of
from loratory.testing import ToyCost, World, adapter, assert_run, workload, worlds

EVERY = pytest.mark.parametrize("policy", POLICIES)
ROOT = Path(__file__).parents[2]


@EVERY
@examples(25)
@given(world=worlds())
def test_the_same_run_twice_gives_the_same_events(policy: str, world: World) -> None:
    first, second = run(world, policy, check_books=False), run(world, policy, check_books=False)
    assert first.flat == second.flat and first.outcome == second.outcome


@EVERY
@examples(30)
@given(world=worlds(), data=st.data())
def test_an_output_length_changes_nothing_before_its_first_token(
    policy: str, world: World, data: st.DataObject
) -> None:
    """The truth of a request that has not got a token yet cannot have moved a decision."""
    seen = run(world, policy, check_books=False)
    index = data.draw(st.integers(0, len(world.workload) - 1), label="whose truth changes")
    event = seen.ended[str(index)]
    first = sequence_of(event.request).first_token_at
    until = first if first is not None else float("inf")
    truth = world.workload.output_tokens.copy()
    truth[index] = data.draw(st.sampled_from([1, 2, 5, 30]), label="the other truth")
    other = run(replace(world, workload=replace(world.workload, output_tokens=truth)), policy, check_books=False)
    before = [[d for d in ds if d[1] < until] for ds in seen.decisions]
    after = [[d for d in ds if d[1] < until] for ds in other.decisions]
    assert before == after


def _relabelled(world: World, order: list[int]) -> World:
    """Adapters and tenants under other names, whose alphabetical order is another one."""
    names = {a.name: f"{order[i % len(order)]:02d}-other-{a.lora.lora_int_id}" for i, a in enumerate(world.adapters)}
    adapters = tuple(
        replace(a, lora=LoRARequest(names[a.name], a.lora.lora_int_id, a.lora.lora_path)) for a in world.adapters
    )
    tenants = tuple(f"{order[-1 - i]}-tenant-{i}" for i in range(len(world.workload.tenants)))
    work = replace(world.workload, adapters=tuple(names[n] for n in world.workload.adapters), tenants=tenants)
    return replace(world, workload=work, adapters=adapters)


@EVERY
@examples(25)
@given(world=worlds(), order=st.permutations(list(range(6))))
def test_names_do_not_matter(policy: str, world: World, order: list[int]) -> None:
    other = _relabelled(world, order)
    back = dict(zip(other.workload.adapters, world.workload.adapters, strict=True))
    named, renamed = run(world, policy, check_books=False), run(other, policy, check_books=False)

    def original(decision: tuple) -> tuple:  # type: ignore[type-arg]
        kind, *rest = decision[2]
        return (*decision[:2], (kind, *(back.get(item, item) for item in rest)), *decision[3:])

    assert named.decisions == [[original(d) for d in ds] for ds in renamed.decisions]
    assert named.of("Ended") == renamed.of("Ended")


@pytest.mark.parametrize("policy", [name for name in POLICIES if name not in TIMED])
@examples(25)
@given(world=worlds(deadlines=False, eviction="lru"), power=st.sampled_from([-3, 1, 5]))
def test_the_unit_of_time_does_not_matter(policy: str, world: World, power: int) -> None:
    """All times and costs by 2^k: the same decisions at 2^k times the second, for policies without a time parameter."""
    scale = 2.0**power
    delay_s = None if world.workload.delay_s is None else world.workload.delay_s * scale
    work = replace(world.workload, arrival=world.workload.arrival * scale, delay_s=delay_s)
    other = replace(world, workload=work, cost=replace(world.cost, scale=scale))
    one, two = run(world, policy, check_books=False), run(other, policy, check_books=False)
    scaled = [[(kind, now * scale, *rest) for kind, now, *rest in ds] for ds in one.decisions]
    assert scaled == two.decisions
    assert [(e[1] * scale, e[2:4]) for e in one.of("Ended")] == [(e[1], e[2:4]) for e in two.of("Ended")]


LIKE_FIFO = {
    **{n: POLICIES[n] for n in ("affinity", "affinity-soft-1", "affinity-hard-1", "drain", "drain-0", "rotation")},
    "affine_deficit": lambda: AffineDeficit(quantum=20.0),
    "affine_deficit-adapter": lambda: AffineDeficit(quantum=20.0, by="adapter"),
    "deficit": lambda: Deficit(quantum=20.0),
    "fair_share": FairShare,
    "fair_share-adapter": lambda: FairShare(by="adapter"),
    "fifo-strict": lambda: Fifo(strict=True),
}


@pytest.mark.parametrize("policy", LIKE_FIFO)
@pytest.mark.parametrize("adapters", [0, 1])
@examples(25)
@given(data=st.data())
def test_with_one_adapter_or_none_it_is_fifo(policy: str, adapters: int, data: st.DataObject) -> None:
    world = data.draw(worlds(adapters=adapters, base=not adapters, tenants=1, deadlines=False))
    theirs, fifo = run(world, LIKE_FIFO[policy], check_books=False), run(world, Fifo, check_books=False)
    assert theirs.of("Ended") == fifo.of("Ended")


@examples(30)
@given(world=worlds(deadlines=False, num_gpu_blocks=3000, memory="slots"))
def test_equal_priorities_are_fifo(world: World) -> None:
    work = replace(world.workload, priority=np.zeros(len(world.workload), dtype=np.int64))
    world = replace(world, workload=work)
    assert run(world, Priority, check_books=False).of("Ended") == run(world, Fifo, check_books=False).of("Ended")


@examples(40)
@given(
    uses=st.lists(st.integers(1, 6), min_size=1, max_size=60),
    loading=st.sampled_from(["sync", "async"]),
    gap=st.sampled_from([0.0, 0.02]),
)
def test_lru_hits_do_not_fall_with_slots(uses: list[int], loading: str, gap: float) -> None:
    """LRU has the inclusion property (Mattson 1970): for one reference string, one at a time, hits never fall."""
    adapters = tuple(adapter(number) for number in range(1, 7))
    rows = [{"at": gap * i, "adapter": use, "prompt": 3, "out": 2, "tenant": 0} for i, use in enumerate(uses)]
    hits = []
    for slots in range(1, 8):
        config = EngineConfig(
            max_loras=slots, max_cpu_loras=10, max_num_seqs=1, num_gpu_blocks=100, adapter_loading=loading
        )
        result = run(World(workload(rows, adapters), adapters, config, ToyCost()), "fifo-strict", check_books=False)
        hits.append(sum(bool(sequence_of(event.request).hit) for event in result.ended.values()))
    assert hits == sorted(hits)
    assert hits[-1] == len(uses) - len(set(uses))


PROMISE_ORDER = [n for n in POLICIES if not n.startswith(("deadline", "priority", "slora-abort", "chameleon"))]


@pytest.mark.parametrize("policy", PROMISE_ORDER)
@examples(25)
@given(world=worlds(deadlines=False, turns=False))
def test_first_come_first_served_within_a_tenant_and_adapter(policy: str, world: World) -> None:
    """First admissions of one tenant's requests for one adapter come in order of arrival."""
    result = run(world, policy, check_books=False)
    last: dict[tuple[str, str | None], int] = {}
    for _, _, request_id, _ in [e for e in result.of("Admitted") if sequence_of(result.ended[e[2]].request).admissions]:
        sequence = sequence_of(result.ended[request_id].request)
        lane = (sequence.request.tenant, sequence.request.adapter)
        if sequence.preemptions:
            continue  # it may be admitted again, in front
        assert int(request_id) > last.get(lane, -1)
        last[lane] = int(request_id)


@examples(30)
@given(world=worlds(deadlines=False, turns=False))
def test_strict_fifo_never_lets_anybody_overtake(world: World) -> None:
    """Its starvation bound: before a request is first admitted, only those that arrived before it have been."""
    seen: list[int] = []
    for event in run(world, "fifo-strict", check_books=False).of("Admitted"):
        if int(event[2]) not in seen:
            seen.append(int(event[2]))
    assert seen == sorted(seen)


HASHED = """
import sys
sys.path[:0] = ["tests/support"]
from lab import run
from loratory.testing import ToyCost, World, adapter, workload
from roster import POLICIES
from loratory.serving.config import EngineConfig
import random
draw = random.Random(5)
adapters = tuple(adapter(n, rank=draw.choice([4, 8]), tier=draw.choice(["host", "disk"])) for n in range(1, 9))
rows, at = [], 0.0
for _ in range(60):
    at += draw.choice([0, 0, 0.004, 0.02])
    row = dict(at=at, adapter=draw.choice([None, *range(1, 9)]), tenant=draw.randrange(4), prompt=draw.randrange(1, 40))
    rows.append(row | dict(out=draw.randrange(1, 20), cap=30, priority=draw.randrange(3), slack=draw.choice([0.2, 9])))
for name in POLICIES:
    config = EngineConfig(max_loras=3, max_cpu_loras=5, max_num_seqs=6, num_gpu_blocks=40, block_size=4,
                          max_num_batched_tokens=32, adapter_loading=draw.choice(["sync", "async"]))
    print(name, run(World(workload(rows, adapters), adapters, config, ToyCost()), name, check_books=False).flat)
"""


def test_the_order_of_hashes_does_not_matter() -> None:
    """Sets and dicts of names are iterated nowhere that counts: two processes with other hash seeds agree."""

    def process(seed: str) -> bytes:
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [sys.executable, "-c", HASHED], cwd=ROOT, env=environment, check=True, capture_output=True
        ).stdout

    first = process("1")
    assert first.count(b"Ended") > 1000
    assert first == process("2")


ROUTERS = ["round_robin", "least_loaded", "lora_affinity", "rendezvous"]


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("replicas", [2, 4])
@examples(30)
@given(world=worlds(most=30), policy=st.sampled_from(sorted(POLICIES)))
def test_replicas_conserve_requests_and_jump_as_they_step(
    router: str, replicas: int, world: World, policy: str
) -> None:
    jumped = run(world, policy, replicas=replicas, router=router)
    assert_run(jumped)
    stepped = run(world, policy, replicas=replicas, router=router, jump=False, check_books=False)
    assert jumped.decisions == stepped.decisions
    assert [sorted(e for e in f if e[0] == "Ended") for f in jumped.flat] == [
        sorted(e for e in f if e[0] == "Ended") for f in stepped.flat
    ]


@pytest.mark.parametrize("concurrency", [1, 2, 5])
@examples(25)
@given(data=st.data(), policy=st.sampled_from(sorted(POLICIES)), replicas=st.sampled_from([1, 1, 2]))
def test_a_closed_loop_jumps_as_it_steps(concurrency: int, data: st.DataObject, policy: str, replicas: int) -> None:
    world = data.draw(worlds(concurrency=concurrency))
    jumped = run(world, policy, replicas=replicas)
    assert_run(jumped)
    stepped = run(world, policy, replicas=replicas, jump=False, check_books=False)
    assert jumped.decisions == stepped.decisions
    assert jumped.outcome == stepped.outcome
    assert sorted(jumped.of("Ended")) == sorted(stepped.of("Ended"))
    flying, most = 0, 0
    for kind, *_ in sorted(jumped.of("Arrived") + jumped.of("Ended"), key=lambda e: (e[1], e[0] == "Arrived")):
        flying += 1 if kind == "Arrived" else -1
        most = max(most, flying)
    assert most <= concurrency
