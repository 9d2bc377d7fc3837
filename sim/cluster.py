"""simulate: a workload through replicas behind a router, in simulated time."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count as count_from
from math import inf
from random import Random
from typing import Any

from simpy import Event

from loratory.errors import StalledError
from loratory.serving.arrivals import Arrivals
from loratory.serving.config import EngineConfig
from loratory.serving.engine import Engine
from loratory.serving.engine_adapters import Roster
from loratory.serving.event_dispatch import hearing
from loratory.serving.events import Ended, Handler, Sink
from loratory.serving.lora import Adapter
from loratory.serving.policy import PolicyLike
from loratory.serving.request import Request
from loratory.serving.request_maker import RequestMaker
from loratory.serving.run_end import NOWHERE, STALL_PLANS, RunEnd, end_run
from loratory.serving.workload import Workload
from loratory.sim.cost.base import CostModel
from loratory.sim.environment import LATE, URGENT, ExactEnvironment, Feed, urge
from loratory.sim.fleet import Fleet
from loratory.sim.fleet_life import FleetLife
from loratory.sim.fleet_options import FleetOptions
from loratory.sim.gateway import Gateway
from loratory.sim.noise import StepNoise
from loratory.sim.prompt_caches import PromptCaches
from loratory.sim.replica import Replica
from loratory.sim.router import Router
from loratory.sim.routers.round_robin import RoundRobin
from loratory.sim.transfers import Transfers


@dataclass(frozen=True, slots=True)
class ReplicaKind:
    """What a replica is: an engine's settings with a number of KV blocks, a cost model, and the bytes of KV cache that
    a token takes on all its GPUs."""

    config: EngineConfig
    cost: CostModel
    kv_bytes_per_token: int | None = None


class _Cluster:
    """Replicas, their router, and the clients that send the workload."""

    def __init__(self, env: ExactEnvironment, workload: Workload, gateway: Gateway | None) -> None:
        """``gateway``: None for a lone replica that is always there, in front of which there is none."""
        self.env = env
        self.workload = workload
        self.maker = RequestMaker(workload)
        self.gateway = gateway
        self.life: FleetLife | None = None
        self.replicas: dict[int, Replica] = {}
        """By place, those that there are."""
        self.sent = 0
        self.left = len(workload)
        self.over = env.event()
        self.turns = None if workload.after is None else Arrivals(workload)
        self.caches: PromptCaches | None = None
        if gateway is not None and workload.cached_tokens is not None and workload.cached_tokens.any():
            self.caches = PromptCaches(None if (after := workload.after) is None else lambda index: int(after[index]))
        self._ended: list[Ended] = []

    def join(self, replica: Replica) -> None:
        """The gateway hears of a new replica from now on."""
        if self.gateway is not None:
            replica.watch = self.gateway.watch(replica.index, replica.engine)

    def sink_of(self, sink: Sink | Handler | None, hear: Iterable[tuple[type, Handler]]) -> Sink | Handler | None:
        """A replica's sink; with turns, the cluster takes the ends of requests as well, and ``hear`` what it wants."""
        for kind, listener in hear:
            sink = hearing(sink, kind, listener)
        return sink if self.turns is None else hearing(sink, Ended, self._ended.append)

    def send(self, index: int, arrival: float, late: bool = False) -> None:
        """A request arrives at second ``arrival``, which is now (``late``: see `Replica.submit`)."""
        self.sent += 1
        request, output_tokens = self.maker.make(index, arrival)
        if self.life is not None:
            self.life.send(self.life.arrived(request), output_tokens, late)
            return
        place = 0 if self.gateway is None else self.gateway.route(request, self.env.now)
        replica = self.replicas[place]
        replica.submit(request if self.caches is None else self.caches.sent(request, replica), output_tokens, late)

    @property
    def unsent(self) -> int:
        """See `loratory.serving.run_end.Clients`."""
        return len(self.workload) - self.sent

    @property
    def has_turns(self) -> bool:
        """See `loratory.serving.run_end.Clients`."""
        return self.turns is not None

    def send_next(self, now: float) -> float:
        """See `loratory.serving.run_end.Clients`."""
        if self.turns is not None:
            self.due_turns()
            now = max(now, self.turns.next_at)
            self.deliver(now)
            return now
        if self.workload.concurrency is None:
            now = max(now, float(self.workload.arrival[self.sent]))
        self.send(self.sent, now)
        return now

    def cut(self, now: float) -> None:
        """The run ends at second ``now``: take in what happened before it."""
        self.env.feed.deliver(now)
        for replica in self.replicas.values():
            replica.cut(now)
            replica.feed.deliver(now)
        self.deliver(now)

    def feed_alone(self) -> None:
        """With one replica there is nothing to route: it fetches its arrivals itself, which spares an event each."""
        self.replicas[0].feed = _OpenFeed(self) if self.turns is None else _TurnFeed(self, self.turns)

    def session_starts(self) -> Generator[Event, Any, None]:
        """Sessions begin at the workload's times; their later turns are sent by `ended`."""
        assert self.turns is not None
        self.deliver(self.env.now)
        for arrival in self.turns.starts_at:
            if arrival > self.env.now:
                yield self.env.at(arrival, URGENT)
                self.deliver(arrival)

    def deliver(self, now: float, late: bool = False) -> None:
        """Send every turn that is due at second ``now``."""
        turns = self.turns
        while turns is not None and turns.next_at <= now:
            self.send(*turns.pop(), late)

    def ended(self, place: int, count: int) -> None:
        """``count`` requests of a replica ended: the run may be over, and in a closed loop clients send the next ones.

        Those arrive late: replicas that have a boundary at this very time plan before, whichever request ended first.
        """
        self.left -= count
        if self.gateway is not None:
            self.gateway.ended(place, count)
        if self.life is not None:
            self.life.ended(place)
        if not self.left:
            self.over.succeed()
        elif self.turns is not None:
            self._follow()
        elif self.workload.concurrency is not None:
            for _ in range(min(count, self.unsent)):
                self.env.call_at(self.env.now, self._send_late, LATE)

    def due_turns(self) -> list[float]:
        """When the turns are due that follow the requests that have ended."""
        ended, turns = self._ended.copy(), self.turns
        self._ended.clear()
        due = [] if turns is None else [turns.ended(int(event.request.request_id), event.now) for event in ended]
        return [at for at in due if at is not None]

    def _follow(self) -> None:
        """Send the turns that follow the requests that ended, once they are due; a lone replica fetches them itself."""
        now, alone = self.env.now, self.gateway is None
        for due in self.due_turns():
            if alone:
                continue
            if due > now:
                self.env.call_at(due, partial(self.deliver, due), URGENT)
            else:
                self.env.call_at(now, partial(self.deliver, now, True), LATE)

    def output_tokens(self, request: Request) -> int:
        """The true output length of a request of the workload."""
        return int(self.workload.output_tokens[int(request.request_id)])

    def noted(self, end: RunEnd) -> RunEnd:
        """The end of the run, with what is to be said of the prompts' caches."""
        return end if self.caches is None else replace(end, notes=(*end.notes, *self.caches.notes))

    @property
    def coming(self) -> bool:
        """Whether requests arrive, or turns are due, whatever the replicas do."""
        return self.env.feed.next_at < inf or (self.turns is not None and self.turns.next_at < inf)

    def _send_late(self) -> None:
        if self.unsent:  # replicas that end requests at the same second share what is left
            self.send(self.sent, self.env.now, late=True)


class _FleetFeed(Feed):
    """The arrivals of a fleet, at the workload's times, however busy the replicas are."""

    def __init__(self, cluster: _Cluster) -> None:
        self._cluster = cluster
        self._arrivals: list[float] = [*cluster.workload.arrival.tolist(), inf]
        self.next_at = self._arrivals[0]

    def deliver(self, now: float) -> None:
        """Send what has arrived."""
        cluster, arrivals = self._cluster, self._arrivals
        while self.next_at <= now:
            index = cluster.sent
            self.next_at = arrivals[index + 1]
            cluster.send(index, now)


class _OpenFeed(Feed):
    """The arrivals of a cluster of one."""

    def __init__(self, cluster: _Cluster) -> None:
        self._cluster = cluster
        self._submit = cluster.replicas[0].submit
        self._make = cluster.maker.make
        self._arrivals: list[float] = [*cluster.workload.arrival.tolist(), inf]
        self.next_at = self._arrivals[0]

    def deliver(self, now: float) -> None:
        """Send what has arrived."""
        index, arrivals = self._cluster.sent, self._arrivals
        while self.next_at <= now:
            self._submit(*self._make(index))
            index += 1
            self.next_at = arrivals[index]
        self._cluster.sent = index


class _TurnFeed(Feed):
    """The arrivals of a cluster of one whose requests follow the ends of others."""

    def __init__(self, cluster: _Cluster, turns: Arrivals) -> None:
        self._turns = turns
        self.deliver = cluster.deliver  # type: ignore[method-assign]

    @property
    def next_at(self) -> float:  # type: ignore[override]
        """See `Feed`."""
        return self._turns.next_at


def simulate(
    workload: Workload,
    *,
    adapters: Sequence[Adapter],
    config: EngineConfig,
    policy: Callable[[], PolicyLike],
    cost: CostModel,
    replicas: int | Sequence[ReplicaKind] = 1,
    life: FleetOptions | None = None,
    router: Router | None = None,
    router_name: str = "",
    metrics_delay_s: float = 0.0,
    metrics_interval_s: float | None = None,
    seed: int = 0,
    sink: Callable[[int], Sink | Handler] | None = None,
    kv_bytes_per_token: int | None = None,
    cutoff_s: float | None = None,
    jump: bool = True,
    stall_plans: int = STALL_PLANS,
    engine: Callable[..., Engine] = Engine,
    noise: Callable[[int], StepNoise] | None = None,
) -> RunEnd:
    """Run a workload to its end, or to second ``cutoff_s``, where unfinished requests are aborted.

    ``replicas``: how many of ``config``, ``cost`` and ``kv_bytes_per_token``, or what each of them is. ``router``
    (`RoundRobin` by default) sends each request to one; ``router_name`` is what errors call it, ``metrics_delay_s`` and
    ``metrics_interval_s`` how late it sees what they report (`Gateway`), and ``seed`` that of its random numbers.

    ``life``: replicas that fail, recover, start and go in the course of the run; with autoscaling those that start are
    like the last of ``replicas``.

    ``policy()`` makes one policy a replica; ``sink(i)`` is the event sink of replica i, and with i
    `NOWHERE`, of requests for which none was open when the run ended. Requests that are left waiting when nothing can
    happen any more end as failed; ``stall_plans``: see `Replica`. ``engine`` is called as `Engine` is.
    ``noise(i)`` is the noise of replica i's steps; without it they take what the cost model says.
    Raises `InputError` for a policy with a member that cannot be meant, and `PolicyError` when the policy fails.
    """
    kinds = [ReplicaKind(config, cost, kv_bytes_per_token)] * replicas if isinstance(replicas, int) else list(replicas)
    rosters: dict[int, Roster] = {
        id(kind): Roster(kind.config, adapters) for kind in {id(k): k for k in kinds}.values()
    }
    count = len(kinds)
    if life is not None and life.autoscale is not None:
        kinds += [kinds[-1]] * (life.autoscale.most - count)
    env = ExactEnvironment(initial_time=0.0)
    gateway = None
    if len(kinds) > 1 or life is not None:
        specs, slots = dict(rosters[id(kinds[0])].specs), [kind.config.max_loras for kind in kinds]
        specs |= {} if life is None else {order.new.name: order.new for order in life.roll_outs}
        fleet = Fleet(slots, [kind.cost for kind in kinds], specs.__getitem__, Random(f"router {seed}"))
        gateway = Gateway(router or RoundRobin(), fleet, metrics_delay_s, metrics_interval_s, router_name)
    cluster = _Cluster(env, workload, gateway)
    taken: set[int] = set()
    later = count_from(len(kinds))  # the noise of a replica that comes again is another than before

    def make(place: int, hear: Iterable[tuple[type, Handler]] = ()) -> Replica:
        kind = kinds[place]
        listener = cluster.sink_of(None if sink is None else sink(place), hear)
        made = engine(kind.config, rosters[id(kind)], policy(), kind.cost, kind.kv_bytes_per_token, listener)
        transfers, ended = Transfers(env, kind.cost), partial(cluster.ended, place)
        if place == NOWHERE:
            return Replica(env, place, made, kind.cost, transfers, ended, jump, stall_plans)
        scatter = None if noise is None else noise(next(later) if place in taken else place)
        taken.add(place)
        replica = Replica(env, place, made, kind.cost, transfers, ended, jump, stall_plans, scatter)
        cluster.join(replica)
        return replica

    if gateway is not None and life is not None:
        cluster.life = FleetLife(
            env,
            gateway,
            cluster.replicas,
            make,
            life,
            cluster.output_tokens,
            lambda: cluster.coming,
            None if (after := workload.after) is None else lambda index: int(after[index]),
            cluster.caches,
        )
        cluster.life.begin(count)
    else:
        cluster.replicas.update((index, make(index)) for index in range(count))
    if not len(workload):
        return RunEnd(0.0, 0, False, 0)
    if gateway is None and (workload.concurrency is None or workload.after is not None):
        cluster.feed_alone()
    elif workload.after is not None:
        env.process(cluster.session_starts())
    elif workload.concurrency is None:
        env.feed = _FleetFeed(cluster)
    else:
        for index in range(min(workload.concurrency, len(workload))):
            cluster.send(index, 0.0)
    until = cluster.over
    if cutoff_s is not None:
        env.call_at(cutoff_s, partial(urge, until), URGENT)
    stall = ""
    try:
        with _rare_collections():
            env.run_until(until)
    except StalledError as error:
        stall = str(error)
    except RuntimeError:
        if env.peek() != inf:
            raise
    cut_off = cutoff_s is not None and until.triggered and cluster.left > 0
    if cut_off:
        cluster.cut(env.now)
    if cluster.life is None:
        engines = [each.engine for each in cluster.replicas.values()]
        return cluster.noted(end_run(cluster, engines, env.now, cut_off=cut_off, stalled=stall))
    now = cluster.life.last_s if until.callbacks is not None and not stall else env.now
    left, lobby = cluster.life.close()
    closed_s = cluster.life.closed_s
    end = end_run(cluster, left, now, cut_off=cut_off, stalled=stall, gateway=lobby, closed_s=closed_s)
    return cluster.noted(cluster.life.conclude(end))


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Within, Python looks for unreachable cycles less often: a run makes few, and looking costs a few percent."""
    before = gc.get_threshold()
    gc.set_threshold(max(before[0], 50_000), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
