"""Transfers: the links an adapter travels, as SimPy resources with one transfer at a time each."""

from __future__ import annotations

from collections.abc import Callable, Generator

from simpy import Event, Resource

from serving.plan import AdapterLoad
from sim.cost.base import CostModel
from sim.environment import URGENT, ExactEnvironment


class Transfers:
    """One replica's storage link (disk or remote to host) and host link (host to GPU).

    The cost model says how long a hop takes; here adapters wait for one another.
    """

    def __init__(self, env: ExactEnvironment, cost: CostModel) -> None:
        self._env = env
        self._cost = cost
        self._storage = Resource(env, capacity=1)
        self._host_link = Resource(env, capacity=1)
        self._fetching: dict[str, Event] = {}

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
            with self._storage.request() as turn:
                if not turn.triggered:
                    yield turn
                yield env.at(env.now + load.fetch_seconds(self._cost), URGENT)
            del self._fetching[adapter.name]
            arrived.succeed()
        if not load.prefetch:
            with self._host_link.request() as turn:
                if not turn.triggered:
                    yield turn
                yield env.at(env.now + self._cost.load_seconds(adapter, "host"), URGENT)
        if done is not None:
            done(load)
