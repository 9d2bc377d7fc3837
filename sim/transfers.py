"""Transfers: the links that adapters share: downloads overlap; disk and host link carry one adapter at a time."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from heapq import heappop, heappush

from simpy import Event, Resource

from loratory.serving.plan import AdapterLoad
from loratory.sim.cost.base import CostModel
from loratory.sim.environment import URGENT, ExactEnvironment, urge


class SharedLink:
    """A link whose transfers in flight each get an equal share of it (processor sharing).

    TCP flows of equal round-trip time share one bottleneck like this in the long run (Chiu and Jain 1989).

    One number replaces the progress of every flow. ``served`` is what each flow would have received if it had been
    there from the start, in seconds of the whole link. A flow that joins at ``served`` with bytes for s seconds is done
    when ``served`` has grown by s, however many flows join and leave in between:

        1 flow:   served grows by 1 a second
        2 flows:  by 1/2 a second, and so on
    """

    def __init__(self, env: ExactEnvironment) -> None:
        self._env = env
        self._flows: list[tuple[float, int, Event]] = []
        self._served = 0.0
        self._at = 0.0
        self._changes = 0

    def carry(self, seconds: float) -> Event:
        """An event that succeeds when the link has carried what takes ``seconds`` of it alone."""
        now, flows = self._env.now, self._flows
        if flows:
            self._served += (now - self._at) / len(flows)
        self._at = now
        done = self._env.event()
        heappush(flows, (self._served + seconds, self._changes, done))
        self._expect()
        return done

    def _expect(self) -> None:
        """Call `_finish` when the next flow is done, unless another joins before."""
        self._changes += 1
        left = max(0.0, self._flows[0][0] - self._served) * len(self._flows)
        self._env.call_at(self._env.now + left, partial(self._finish, self._changes), URGENT)

    def _finish(self, change: int) -> None:
        if change != self._changes:
            return
        flows, self._at = self._flows, self._env.now
        self._served = flows[0][0]
        while flows and flows[0][0] <= self._served:
            urge(heappop(flows)[2])
        if flows:
            self._expect()
        else:
            self._served = 0.0


class Transfers:
    """One replica's hops from remote storage to disk, from disk to host memory, and from host memory to the GPU.

    The cost model gives the time of a hop; here adapters wait for one another. At most
    ``cost.below.remote_concurrency`` are fetched at once, first come, first served, each from its request to its last
    byte in host memory. Their latencies overlap, their bytes share the network, and disk and host link carry one
    adapter at a time. With a concurrency of 1 nothing overlaps.

    The first read of an adapter that starts on disk takes ``cost.below.disk_first_read_s`` longer. Later ones, and
    those of adapters that were just downloaded, come from the operating system's cache.
    """

    def __init__(self, env: ExactEnvironment, cost: CostModel) -> None:
        self._env = env
        self._cost = cost
        self._fetches = Resource(env, capacity=cost.below.remote_concurrency)
        self._network = SharedLink(env)
        self._disk = Resource(env, capacity=1)
        self._host_link = Resource(env, capacity=1)
        self._fetching: dict[str, Event] = {}
        self._first_read_s = cost.below.disk_first_read_s
        self._cached: set[str] = set()
        """Adapters that have been read from disk, or written to it."""

    def first_read_s(self, load: AdapterLoad) -> float:
        """Seconds by which a load takes longer than the cost model says, because the disk is cold."""
        return self._first_read_s if load.tier == "disk" and load.adapter.name not in self._cached else 0.0

    def alone(self, load: AdapterLoad) -> bool:
        """Carry out a load from host memory at once, the clock moved to its end, if nothing else happens until then.

        Else False, and nothing is done: `bring` it.
        """
        if load.tier != "host" or self._host_link.users or load.adapter.name in self._fetching:
            return False
        return self._env.reach(self._env.now + self._cost.load_seconds(load.adapter, "host"))

    def bring(self, load: AdapterLoad, done: Callable[[AdapterLoad], None] | None) -> Generator[Event, None, None]:
        """A process that carries out one load and then calls ``done``."""
        env, adapter = self._env, load.adapter
        fetching = self._fetching.get(adapter.name)
        if fetching is not None:
            yield fetching
        elif load.tier != "host":
            arrived = self._fetching[adapter.name] = env.event()
            yield from self._fetch(load)
            del self._fetching[adapter.name]
            arrived.succeed()
        if not load.prefetch:
            with self._host_link.request() as turn:
                if not turn.triggered:
                    yield turn
                yield env.at(env.now + self._cost.load_seconds(adapter, "host"), URGENT)
        if done is not None:
            done(load)

    def _fetch(self, load: AdapterLoad) -> Generator[Event, None, None]:
        """From disk, or from remote storage by way of the disk, to host memory."""
        env, cost = self._env, self._cost
        with self._fetches.request() as place:
            if not place.triggered:
                yield place
            cold_s = self.first_read_s(load)
            self._cached.add(load.adapter.name)
            if self._fetches.capacity == 1:
                yield env.at(env.now + load.fetch_seconds(cost) + cold_s, URGENT)
                return
            if load.tier == "remote":
                latency_s = cost.below.remote_fixed_s
                yield env.at(env.now + latency_s, URGENT)
                yield self._network.carry(cost.load_seconds(load.adapter, "remote") - latency_s)
            with self._disk.request() as turn:
                if not turn.triggered:
                    yield turn
                yield env.at(env.now + cost.load_seconds(load.adapter, "disk") + cold_s, URGENT)
