"""Fair policies keep their promises, and starvation: bounded where a policy says so, found where it does not."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import examples, run
from roster import POLICIES

from loratory.policies.affine_deficit import AffineDeficit
from loratory.policies.affinity import Affinity
from loratory.policies.deficit import Deficit
from loratory.policies.drain import Drain
from loratory.policies.fair_share import FairShare
from loratory.policies.fifo import Fifo
from loratory.policies.rotation import Rotation
from loratory.serving.config import EngineConfig
from loratory.serving.fairness import FairnessLimits
from loratory.serving.reservation import Reservation
from loratory.serving.reserved import WithReservation
from loratory.serving.sequence import sequence_of
from loratory.testing import ToyCost, World, adapter, workload

INPUT, OUTPUT = 1.0, 2.0


def _backlogged(seed: int, weights: tuple[float, ...], config: EngineConfig, per_tenant: int, adapters: int) -> World:
    """Every tenant has all its requests waiting from the start; lengths and adapters differ by tenant."""
    draw = random.Random(seed)
    made = tuple(adapter(n, rank=draw.choice([4, 8]), tier="host") for n in range(1, adapters + 1))
    rows: list[dict[str, Any]] = []
    for tenant in range(len(weights)):
        prompt, out = draw.choice([(4, 3), (30, 2), (3, 25), (16, 16)])
        own = [draw.choice([None, *range(1, adapters + 1)]) for _ in range(2)]
        rows += [
            {
                "tenant": tenant,
                "adapter": draw.choice(own),
                "prompt": draw.randint(1, prompt),
                "out": draw.randint(1, out),
                "cap": 30,
            }
            for _ in range(per_tenant)
        ]
    draw.shuffle(rows)
    names = tuple(f"t{n}" for n in range(len(weights)))
    return World(workload(rows, made, tenants=names, tenant_weights=weights), made, config, ToyCost())


def _service(service: dict[str, tuple[int, int]], name: str) -> float:
    prompts, outputs = service.get(name, (0, 0))
    return INPUT * prompts + OUTPUT * outputs


def _gap(world: World, policy: Callable[[], Any]) -> tuple[float, int]:
    """The largest |W_f(t1, t2) - W_g(t1, t2)| / weights over intervals in which both tenants had requests waiting."""
    result = run(world, policy, jump=False)
    engine = result.engines[0]
    weights = dict(zip(world.workload.tenants, world.workload.tenant_weights, strict=True))
    left = dict.fromkeys(weights, 0)
    for row in world.workload.tenant:
        left[world.workload.tenants[int(row)]] += 1
    last_wait: dict[str, float] = {}
    for event in result.of("Admitted"):
        sequence = sequence_of(result.ended[event[2]].request)
        last_wait[sequence.request.tenant] = event[1]
    widest = 0.0
    names = sorted(weights)
    for i, f in enumerate(names):
        for g in names[i + 1 :]:
            until = min(last_wait.get(f, 0.0), last_wait.get(g, 0.0))
            low = high = 0.0
            for now, service in engine.service:
                if now >= until:
                    break
                w_f, w_g = (_service(service, n) / weights[n] for n in (f, g))
                low, high = min(low, w_f - w_g), max(high, w_f - w_g)
            widest = max(widest, high - low)
    return widest, len(result.of("Preempted"))


CONFIGS = [
    {"max_num_seqs": 8, "num_gpu_blocks": 40, "block_size": 4, "max_num_batched_tokens": 64},
    {"max_num_seqs": 3, "num_gpu_blocks": 200, "block_size": 1, "max_num_batched_tokens": 16},
    {"max_num_seqs": 8, "num_gpu_blocks": 100, "block_size": 4, "max_num_batched_tokens": 64, "batching": "separate"},
    {"max_num_seqs": 4, "num_gpu_blocks": 18, "block_size": 4, "max_num_batched_tokens": 32},
]


def _limits(world: World) -> FairnessLimits:
    work, config = world.workload, world.config
    assert config.num_gpu_blocks is not None
    return FairnessLimits(
        int(work.prompt_tokens.max()),
        int(work.output_tokens.max()),
        config.num_gpu_blocks * config.block_size,
        config.max_num_seqs,
        config.max_num_batched_tokens,
    )


FAIR: dict[str, Callable[[], Any]] = {
    "fair_share": FairShare,
    "fair_share-min": lambda: FairShare(lift="min"),
    "fair_share-none": lambda: FairShare(lift="none"),
    "fair_share-reserved": lambda: WithReservation(FairShare()),
    "fair_share-reserved-often": lambda: WithReservation(FairShare(), Reservation(decode_steps=2, max_requests=4)),
    "deficit": lambda: Deficit(quantum=60.0),
    "deficit-small": lambda: Deficit(quantum=5.0),
    "affine_deficit": lambda: AffineDeficit(quantum=60.0),
    "affine_deficit-large": lambda: AffineDeficit(quantum=400.0),
}


@pytest.mark.parametrize("policy", FAIR)
@examples(20)
@given(
    seed=st.integers(0, 10**6),
    number=st.integers(0, len(CONFIGS) - 1),
    max_loras=st.integers(1, 3),
    loading=st.sampled_from(["sync", "async"]),
    weights=st.sampled_from([(1.0, 1.0), (1.0, 1.0, 1.0), (1.0, 2.0), (3.0, 1.0, 0.5)]),
)
def test_two_backlogged_tenants_stay_within_the_bound(
    policy: str, seed: int, number: int, max_loras: int, loading: Any, weights: tuple[float, ...]
) -> None:
    """VTC theorem 4.4: 2U, U = max(w_in L, w_out M); deficit round robin: 2(U + Q); with weights over the least one."""
    config = EngineConfig(**CONFIGS[number], max_loras=max_loras, adapter_loading=loading)  # type: ignore[arg-type]
    world = _backlogged(seed, weights, config, 25, 4)
    gap, _ = _gap(world, FAIR[policy])
    bound = FAIR[policy]().bound(_limits(world))
    assert bound is not None
    u = max(INPUT * _limits(world).max_prompt_tokens, OUTPUT * _limits(world).kv_tokens)
    assert bound >= 2 * u
    assert gap <= bound / min(1.0, *weights) + 1e-9, (gap, bound)


def test_fifo_has_no_such_bound() -> None:
    """The same measure grows with the horizon under first come, first served: the tests above can fail."""
    config = EngineConfig(**CONFIGS[0])  # type: ignore[arg-type]
    gaps = []
    for count in (15, 60, 240):
        rows = [{"tenant": 0, "prompt": 4, "out": 2}, {"tenant": 1, "prompt": 30, "out": 20}] * count
        work = workload(rows, tenants=("t0", "t1"), tenant_weights=(1.0, 1.0))
        gaps.append(_gap(World(work, (), config, ToyCost()), Fifo)[0])
    assert gaps[1] > 3 * gaps[0] and gaps[2] > 3 * gaps[1]
    u = 2 * OUTPUT * 160
    assert gaps[2] > 2 * u


@examples(15)
@given(seed=st.integers(0, 10**6), number=st.integers(0, len(CONFIGS) - 1), lift=st.sampled_from(["paper", "min"]))
def test_a_backlogged_tenant_is_not_behind_any_other_by_more_than_4u(seed: int, number: int, lift: Any) -> None:
    """VTC theorem 4.11: while f is backlogged and g is whatever it is, W_f >= W_g - 4U in every interval."""
    draw = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for _ in range(60):
        rows.append({"tenant": 0, "prompt": draw.randint(1, 20), "out": draw.randint(1, 20)})
    at = 0.0
    for _ in range(60):
        at += draw.choice([0.0, 0.0, 0.01, 0.2])
        rows.append({"tenant": draw.randint(1, 2), "at": at, "prompt": draw.randint(1, 30), "out": draw.randint(1, 30)})
    rows.sort(key=lambda row: row.get("at", 0.0))
    config = EngineConfig(**CONFIGS[number])  # type: ignore[arg-type]
    world = World(workload(rows), (), config, ToyCost())
    result = run(world, lambda: FairShare(lift=lift), jump=False)
    until = max(e[1] for e in result.of("Admitted") if result.ended[e[2]].request.tenant == "t0")
    limits = _limits(world)
    u = max(INPUT * limits.max_prompt_tokens, OUTPUT * limits.kv_tokens)
    for other in ("t1", "t2"):
        least, worst = 0.0, 0.0
        for now, service in result.engines[0].service:
            if now >= until:
                break
            mine, theirs = _service(service, "t0"), _service(service, other)
            least = min(least, theirs - mine)
            worst = max(worst, theirs - mine - least)
        assert worst <= 4 * u


# -- starvation ------------------------------------------------------------------------------------------------------


def _siege(horizon: int, slots: int = 1) -> World:
    """Hot adapters whose requests overlap as long as the run lasts, and one request for a cold one near the start."""
    hot = tuple(adapter(n, tier="host") for n in range(1, slots + 1))
    cold = adapter(99, tier="host")
    hot_row = {"prompt": 4, "out": 40, "cap": 40, "tenant": 0}
    rows = [{**hot_row, "at": 0.1 / slots * i, "adapter": 1 + (i % slots)} for i in range(horizon * slots)]
    rows.append({"at": 0.35, "adapter": 99, "prompt": 4, "out": 4, "cap": 40, "tenant": 1})
    rows.sort(key=lambda row: row["at"])
    config = EngineConfig(max_loras=slots, max_cpu_loras=8, max_num_seqs=32, num_gpu_blocks=500)
    return World(workload(rows, (*hot, cold)), (*hot, cold), config, ToyCost())


def _cold_wait(world: World, policy: Callable[[], Any]) -> float:
    result = run(world, policy, check_books=False)
    event = next(e for e in result.ended.values() if e.request.adapter == "a99")
    assert event.status == "completed"
    return sequence_of(event.request).admitted_at - event.request.arrival


HORIZONS = (40, 80, 160)

STARVES: dict[str, Callable[[], Any]] = {
    "fifo": Fifo,
    "affinity": Affinity,
    "affinity-hard": lambda: Affinity(cluster_size=1, hard=True),
    "priority": POLICIES["priority"],
    "fair_share-loose": lambda: FairShare(strict=False),
}


@pytest.mark.parametrize("policy", STARVES)
def test_a_found_counterexample_the_wait_grows_with_the_horizon(policy: str) -> None:
    """Without a bound: as long as the hot adapter's requests overlap, its slot is never free."""
    waits = [_cold_wait(_siege(horizon), STARVES[policy]) for horizon in HORIZONS]
    assert waits[1] > 1.8 * waits[0] and waits[2] > 1.8 * waits[1]
    assert waits[2] > 0.9 * 0.1 * HORIZONS[2]


def _longest(world: World) -> float:
    """Seconds the longest request runs when the batch is as full as the siege makes it, loads included."""
    result = run(world, lambda: Fifo(strict=True), check_books=False)
    return max(e.now - sequence_of(e.request).admitted_at for e in result.ended.values()) + 0.2


BOUNDED: dict[str, tuple[Callable[[], Any], Callable[[float, int], float]]] = {
    "fifo-strict": (lambda: Fifo(strict=True), lambda longest, slots: longest),
    "drain": (lambda: Drain(threshold_s=0.5), lambda longest, slots: 0.5 + longest),
    "rotation": (lambda: Rotation(cycle_s=0.5), lambda longest, slots: 0.5 * 2 + 2 * longest),
    "fair_share": (FairShare, lambda longest, slots: 2 * longest),
    "fair_share-adapter": (lambda: FairShare(by="adapter"), lambda longest, slots: 2 * longest),
    "deficit": (lambda: Deficit(quantum=100.0), lambda longest, slots: 100.0 * 0.01 + 2 * longest),
    "affine_deficit": (lambda: AffineDeficit(quantum=100.0), lambda longest, slots: 100.0 * 0.01 + 2 * longest),
}
"""Policies with a bound on the siege's cold wait, in terms of the longest residence of a request: drain waits its
threshold and then for the drained adapter to empty; rotation at most one cycle a slot and an emptying; the fair ones
until the hot tenant has been served its bound ahead, which is less than 0.01 s a weighted token here."""


@pytest.mark.parametrize("policy", BOUNDED)
@pytest.mark.parametrize("slots", [1, 2, 3])
def test_a_bounded_policy_lets_nobody_starve(policy: str, slots: int) -> None:
    make, bound = BOUNDED[policy]
    waits = [_cold_wait(_siege(horizon, slots), make) for horizon in HORIZONS]
    longest = _longest(_siege(HORIZONS[0], slots))
    assert max(waits) <= bound(longest, slots), (waits, longest)
    assert waits[2] <= waits[1] * 1.01 + 1e-9


@examples(25)
@given(seed=st.integers(0, 10**6), policy=st.sampled_from(["drain", "rotation", "fifo-strict"]))
def test_waits_do_not_grow_with_the_horizon_below_capacity(seed: int, policy: str) -> None:
    """Six adapters, three slots, light load (SGLang issue 17913's shape): nobody is first in line for long."""
    draw = random.Random(seed)
    made = tuple(adapter(n, tier="host") for n in range(1, 7))
    rows, at = [], 0.0
    for _ in range(120):
        at += draw.expovariate(4.0)
        lengths = {"prompt": draw.randint(1, 50), "out": draw.randint(1, 60)}
        rows.append({"at": at, "adapter": draw.randint(1, 6), **lengths})
    config = EngineConfig(max_loras=3, max_cpu_loras=8, max_num_seqs=32, num_gpu_blocks=500)
    world = World(workload(rows, made), made, config, ToyCost())
    make: dict[str, Callable[[], Any]] = {
        "drain": lambda: Drain(threshold_s=0.3),
        "rotation": lambda: Rotation(cycle_s=0.3),
        "fifo-strict": lambda: Fifo(strict=True),
    }
    result = run(world, make[policy], check_books=False)
    waits = [sequence_of(e.request).admitted_at - e.request.arrival for e in result.ended.values()]
    longest = max(e.now - sequence_of(e.request).admitted_at for e in result.ended.values())
    assert max(waits) <= 6 * (0.3 + longest), (max(waits), longest)


class _Watched(FairShare):
    """Compares each unit it serves with every backlogged one, whatever its heap says."""

    picks = 0

    def _admitted(self, unit: Any, request: Any) -> None:
        # `unit` has just been admitted: what it was charged for this request comes off again
        self.picks += 1
        charged = self.units.input_weight * request.prompt_tokens / unit.weight
        others = [a for a in self.units._accounts.values() if a is not unit and a.first() is not None]
        least = min((self._counter(other) for other in others), default=float("inf"))
        assert self._counter(unit) - charged <= least + 1e-9
        super()._admitted(unit, request)


@pytest.mark.parametrize("predict", ["none", "mean", "request"])
@pytest.mark.parametrize("by", ["tenant", "adapter"])
@examples(25)
@given(seed=st.integers(0, 10**6), config=st.sampled_from(CONFIGS[:3]))
def test_every_pick_is_the_backlogged_unit_with_the_least_counter(
    predict: Any, by: Any, seed: int, config: dict[str, Any]
) -> None:
    """Also with guesses, which a short output lowers again, and with adapters whose tenants have different weights."""
    draw = random.Random(seed)
    made = tuple(adapter(n, tier="host") for n in range(1, 5))
    rows = [
        {
            "at": 0.004 * i * draw.choice([0, 1, 2]),
            "tenant": draw.randrange(3),
            "adapter": draw.randrange(1, 5),
            "prompt": draw.randint(1, 20),
            "out": draw.randint(1, 20),
            "cap": 30,
            "predicted": draw.choice([1, 10, 60]),
        }
        for i in range(40)
    ]
    rows.sort(key=lambda row: row["at"])
    names, weights = ("t0", "t1", "t2"), (1.0, 2.0, 5.0)
    work = workload(rows, made, tenants=names, tenant_weights=weights)
    settings = EngineConfig(**config, max_loras=4, max_cpu_loras=8)
    policies: list[_Watched] = []

    def watched() -> _Watched:
        policies.append(_Watched(by=by, predict=predict))
        return policies[-1]

    run(World(work, made, settings, ToyCost()), watched, check_books=False)
    assert policies[0].picks >= len(rows)
