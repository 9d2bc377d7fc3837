"""Fleet and Gateway: what a router sees is what the replicas' ledgers hold, now or as it was a while ago."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import examples, run
from roster import POLICIES

from loratory.errors import PolicyError
from loratory.experiment.router_spec import router_factory, router_names
from loratory.serving.config import EngineConfig
from loratory.serving.engine import Engine
from loratory.serving.request import Request
from loratory.sim.cluster import simulate
from loratory.sim.fleet import AWAY, GPU, HOST, LOADING, Fleet, Report
from loratory.sim.router import Router
from loratory.testing import ToyCost, World, workload, worlds

CODES = {"gpu": GPU, "loading": LOADING, "host": HOST, "disk": AWAY, "remote": AWAY}
ONE = World(workload([{"prompt": 4, "out": 2}]), (), EngineConfig(num_gpu_blocks=9), ToyCost())
ROUTERS = st.sampled_from(router_names())


class Omniscient(Router):
    """Asks a router, after it has compared all columns with the engines themselves."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.engines: list[Engine] = []
        self.sent: list[int] = []

    def replicas_changed(self, fleet: Fleet) -> None:
        self.router.replicas_changed(fleet)

    def reported(self, place: int, report: Report) -> None:
        self.router.reported(place, report)

    def route(self, request: Request, fleet: Fleet) -> int:
        ledgers = [engine.ledger for engine in self.engines]
        assert fleet.age_s == 0.0
        assert fleet.waiting.tolist() == [len(ledger.waiting) for ledger in ledgers]
        assert fleet.running.tolist() == [len(ledger.running) for ledger in ledgers]
        assert fleet.free_slots.tolist() == [ledger.slots.free for ledger in ledgers]
        assert fleet.idle_slots.tolist() == [len(ledger.slots.idle) for ledger in ledgers]
        assert fleet.in_flight.tolist() == [engine.unfinished for engine in self.engines]
        for name in ledgers[0].adapters:
            tiers = [CODES[ledger.adapters[name].tier] for ledger in ledgers]
            assert fleet.tiers(name).tolist() == tiers
        self.sent.append(self.router.route(request, fleet))
        return self.sent[-1]


def simulated(world: World, policy: str, router: Router, replicas: int = 3, **options: Any) -> list[Engine]:
    engines: list[Engine] = []
    if isinstance(router, Omniscient):
        router.engines = engines

    def engine(*arguments: Any) -> Engine:
        engines.append(Engine(*arguments))
        return engines[-1]

    simulate(
        world.workload,
        adapters=world.adapters,
        config=world.config,
        policy=POLICIES[policy],
        cost=world.cost,
        kv_bytes_per_token=world.kv_bytes_per_token,
        replicas=replicas,
        router=router,
        engine=engine,
        **options,
    )
    return engines


@examples(60)
@given(world=worlds(), policy=st.sampled_from(sorted(POLICIES)), router=ROUTERS, jump=st.booleans())
def test_a_router_sees_what_the_ledgers_hold(world: World, policy: str, router: str, jump: bool) -> None:
    simulated(world, policy, Omniscient(router_factory(router)()), jump=jump)


@examples(40)
@given(world=worlds(), policy=st.sampled_from(sorted(POLICIES)), router=ROUTERS)
def test_steps_and_jumps_route_alike(world: World, policy: str, router: str) -> None:
    sent = []
    for jump in (True, False):
        seen = Omniscient(router_factory(router)())
        simulated(world, policy, seen, jump=jump)
        sent.append(seen.sent)
    assert sent[0] == sent[1]


class ById(Router):
    """Sends requests by their number, and keeps what it sees: when, how old, how many reports there were, columns."""

    def __init__(self, reports: list[Any]) -> None:
        self.reports = reports
        self.seen: list[tuple[float, float, int, list[int], list[float], list[int]]] = []

    def route(self, request: Request, fleet: Fleet) -> int:
        waiting, kv_use, tiers = fleet.waiting.tolist(), fleet.kv_use.tolist(), fleet.tiers("a1").tolist()
        self.seen.append((fleet.now, fleet.age_s, len(self.reports), waiting, kv_use, tiers))
        return int(request.request_id) % len(fleet)


@examples(60)
@given(
    world=worlds(turns=False),
    delay=st.sampled_from([0.0, 0.003, 0.05]),
    interval=st.sampled_from([None, 0.004, 0.06]),
)
def test_a_router_sees_the_reports_that_are_old_enough(world: World, delay: float, interval: float | None) -> None:
    """All reports up to the last one that has had the time to arrive, and none that is younger."""
    reports: list[Any] = []

    class Noted(deque):  # type: ignore[type-arg]
        def append(self, report: Any) -> None:
            reports.append(report)
            super().append(report)

    router = ById(reports)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loratory.sim.gateway.deque", Noted)
        simulated(world, "fifo", router, metrics_delay_s=delay, metrics_interval_s=interval)
    assert bool(reports) == bool((delay or interval) and len(world.workload))
    for now, age, count, *columns in router.seen if delay or interval else []:
        seen = now - delay
        if interval:
            seen = math.floor(seen / interval) * interval
        assert age == now - max(0.0, seen)
        waiting, kv_use, tiers = [0] * 3, [0.0] * 3, [AWAY] * 3
        for at, place, report in reports[:count]:
            if at > seen:
                break
            if len(report) == 6:
                waiting[place], kv_use[place] = report[0], report[4]
            elif report[0] == "a1":
                tiers[place] = report[1]
        assert columns == [waiting, kv_use, tiers]


class Wrong(Router):
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def route(self, request: Request, fleet: Fleet) -> Any:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (3, "its route() returned 3: return one of fleet.candidates, here 0, 1, 2"),
        (-1, "its route() returned -1: return one of"),
        (None, "its route() returned None: return one of fleet.candidates, here 0, 1, 2"),
        (1.0, "its route() returned 1.0: return one of"),
        ("1", "its route() returned '1': return one of"),
        (True, "its route() returned True: return one of"),
        (np.True_, "its route() returned np.True_: return one of"),
        (KeyError("a7"), "its route() raised KeyError: 'a7'"),
        (SystemExit(3), "its route() tried to end the process"),
    ],
)
def test_a_wrong_answer_is_the_routers_fault(answer: Any, why: str) -> None:
    with pytest.raises(PolicyError, match=r"^router Wrong failed at 0.000000 s: ") as error:
        run(ONE, "fifo", replicas=3, router=Wrong(answer))
    assert why in str(error.value)


def test_nothing_that_a_router_sees_can_be_written() -> None:
    class Writes(Router):
        def route(self, request: Request, fleet: Fleet) -> int:
            for column in (fleet.in_flight, fleet.kv_use, fleet.open, fleet.tiers("a1"), fleet.candidates):
                with pytest.raises(ValueError, match="read-only"):
                    column[0] = 1
                with pytest.raises(ValueError, match="WRITEABLE"):
                    column.flags.writeable = True
            for name in ("now", "candidates", "waiting", "random"):
                with pytest.raises(AttributeError):
                    setattr(fleet, name, 1)
            return 0

    run(ONE, "fifo", replicas=2, router=Writes())


def test_equal_replicas_take_turns() -> None:
    fleet = Fleet([1] * 4, [None] * 4, {}.__getitem__)  # type: ignore[list-item]
    order: deque[int] = deque()
    for _ in range(8):
        place = fleet.lowest(np.zeros(4))
        fleet._sent += 1
        fleet._last_sent[place] = fleet._sent
        order.append(place)
    assert list(order) == [0, 1, 2, 3] * 2
