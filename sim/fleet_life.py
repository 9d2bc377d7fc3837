"""FleetLife: replicas that fail, recover, start, drain and go while a fleet runs; nothing that they had is lost.

    off --> starting --> open --> draining --> off        start, drain: by order, or by the autoscaler
               |           |          |
               +---------> failed <---+                   fail
                             |
                             +--> starting                recover

A replica that fails takes its KV cache and its adapters with it: the one that recovers in its place has an engine of
its own, whose adapters are in the tier that they start in. Requests in flight arrive again at the gateway, with their
first arrival time. When no replica is open, requests wait at the gateway, in order, until one opens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from loratory.serving.engine import Engine
from loratory.serving.events import Ended, Evicted, Handler, Loaded
from loratory.serving.request import Request
from loratory.serving.run_end import NOWHERE, FleetChange, FleetRecord, ReplicaState, RunEnd, total_refusals
from loratory.sim.autoscaler import Autoscaler
from loratory.sim.environment import URGENT, ExactEnvironment
from loratory.sim.fleet_options import FleetEvent, FleetOptions
from loratory.sim.gateway import Gateway
from loratory.sim.homes import HomeKeeper
from loratory.sim.order_notes import OrderNotes
from loratory.sim.prompt_caches import PromptCaches
from loratory.sim.recent_requests import RecentRequests
from loratory.sim.replica import Replica
from loratory.sim.roll_outs import RollOuts

_FAILED = "its replica failed"
_WINDOW_S = 300.0
"""Of so many seconds the requests are counted that tell which adapters are hot."""


class ReplicaMaker(Protocol):
    """Makes the replica at a place; ``hear``: types of events, with functions that get those first.

    At `NOWHERE` it is one that takes no step, and of which the gateway hears nothing.
    """

    def __call__(self, place: int, hear: Iterable[tuple[type, Handler]]) -> Replica:
        """A replica with a fresh engine, which begins now."""


class FleetLife:
    """The state of every replica of a fleet, and what changes it. ``replicas``: those that there are, by place.

    ``make`` makes one; ``output_tokens`` gives the true output length of a request; ``coming`` whether a request may
    still arrive though no replica does anything; ``after`` the request that one follows in its session, -1 for none
    (None without sessions); ``caches`` where the cached parts of prompts are (None where none is cached).
    """

    def __init__(
        self,
        env: ExactEnvironment,
        gateway: Gateway,
        replicas: dict[int, Replica],
        make: ReplicaMaker,
        options: FleetOptions,
        output_tokens: Callable[[Request], int],
        coming: Callable[[], bool],
        after: Callable[[int], int] | None,
        caches: PromptCaches | None = None,
    ) -> None:
        self._env = env
        self._gateway = gateway
        self.replicas = replicas
        self._make = make
        self._options = options
        self._output_tokens = output_tokens
        self._coming = coming
        self._caches = caches
        self.states: list[ReplicaState] = ["off"] * len(gateway.fleet)
        self._turns = [0] * len(gateway.fleet)
        """How often each place has changed, so that what was expected of it before is forgotten."""
        self._parked: list[tuple[Request, int]] = []
        """Requests at the gateway, in order of arrival."""
        self._lobby: Engine | None = None
        """Takes the requests at the gateway when the run is over, as no replica is open."""
        self.closed_s = 0.0
        """Since when no replica has been open, where that is so."""
        self._events = list(options.events)
        """Those that have not happened yet."""
        self._changes: list[FleetChange] = []
        self._resent = 0
        self._refusals: list[dict[str, dict[str, int]]] = []
        """Those of replicas that there are no more."""
        self._notes = OrderNotes()
        self._last_s = 0.0
        """When a request arrived last, or a replica changed."""
        self._settle: dict[int, Callable[[str], None]] = {}
        """By place of a replica that warms up: takes each adapter that is there, or will not come."""
        self._recent = RecentRequests(_WINDOW_S)
        orders = options.roll_outs
        self._roll_outs = RollOuts(orders, env, replicas, self._homes_of, after) if orders else None
        versions = {order.new.name: order.adapter for order in orders}
        self._homes = None if options.placement is None else HomeKeeper(gateway, options.placement, versions)
        scale = options.autoscale
        self._scaler = None if scale is None else Autoscaler(scale)

    def begin(self, count: int) -> None:
        """The first ``count`` places have an open replica; the rest are off."""
        for place in range(len(self.states)):
            if place < count:
                self._set(place, "open")
                self.replicas[place] = self._new_replica(place)
            else:
                self._gateway.set_open(place, False)
        if self._homes is not None:
            self._homes.place(self._in("open"))
            if (every_s := self._homes.options.every_s) is not None:
                self._env.call_at(every_s, self._place_again, URGENT)
        for event in self._options.events:
            self._env.call_at(event.at_s, partial(self._happen, event), URGENT)
        if self._roll_outs is not None:
            self._roll_outs.begin()
        if self._scaler is not None:
            self._env.call_at(self._scaler.options.interval_s, self._scale, URGENT)

    # -- requests --------------------------------------------------------------------------------------------------

    def send(self, request: Request, output_tokens: int, late: bool = False) -> None:
        """A request arrives at the gateway now, for the first time or again (``late``: see `Replica.submit`)."""
        now = self._last_s = self._env.now
        if self._roll_outs is not None:
            request = self._roll_outs.again(request)
        if not self._gateway.any_open:
            if self._lobby is None:
                self._parked.append((request, output_tokens))
            else:
                self._lobby.submit(request)
            return
        if self._parked:
            self._unpark()
        place = self._gateway.route(request, now)
        if self._roll_outs is not None:
            request = self._roll_outs.sent(request, place)
        replica = self.replicas[place]
        replica.submit(request if self._caches is None else self._caches.sent(request, replica), output_tokens, late)

    def arrived(self, request: Request) -> Request:
        """A request arrives for the first time; returns it with the version of its adapter that it gets."""
        if self._homes is not None:
            self._homes.arrived(request.adapter, self._env.now)
        if self._roll_outs is not None:
            request = self._roll_outs.assign(request)
        if self._scaler is not None:
            self._recent.arrived(request.adapter, self._env.now)
        return request

    def ended(self, place: int) -> None:
        """Requests of a replica have ended: one that is drained goes with its last."""
        if self.states[place] == "draining" and not self._gateway.fleet.in_flight[place]:
            # its engine makes a plan at this moment, which has to end first
            self._env.call_at(self._env.now, partial(self._drained, place, self._turns[place]), URGENT)

    # -- what happens to replicas ----------------------------------------------------------------------------------

    def _happen(self, event: FleetEvent) -> None:
        self._events.remove(event)
        state = self.states[event.replica]
        if event.kind == "fail" and state not in ("off", "failed"):
            self.fail(event.replica)
        elif event.kind == "recover" and state == "failed":
            self.start(event.replica, self._options.startup_s, 0)
        elif event.kind == "drain" and state in ("open", "starting"):
            self.drain(event.replica)
        else:
            self._notes.add(
                f"{event.kind} {event.replica} at {event.at_s:g} s",
                f"changed nothing, because replica {event.replica} was {state} then",
                f"changed nothing, because their replicas were {state} then",
            )

    def fail(self, place: int) -> None:
        """A replica stops at once; its requests in flight arrive again, or fail."""
        replica = self.replicas.get(place)
        left = self._leave(place, "failed")
        if replica is None or not left:
            return
        if self._options.resend:
            self._gateway.ended(place, len(left))
            self._resent += len(left)
            for request in left:
                again = request if self._caches is None else self._caches.lost(request)
                self.send(again, self._output_tokens(request))
        else:
            replica.engine.end_all(self._env.now, "failed", _FAILED)
            replica.report_ended()

    def start(self, place: int, startup_s: float, warm: int) -> None:
        """A replica begins to start: it opens after ``startup_s`` seconds and the loads of ``warm`` adapters."""
        self._set(place, "starting")
        opened = partial(self._started, place, self._turns[place], warm)
        self._env.call_at(self._env.now + startup_s, opened, URGENT)

    def drain(self, place: int) -> None:
        """A replica takes no new request, and goes when its last has ended."""
        if self.states[place] == "starting" or not self._gateway.fleet.in_flight[place]:
            self._leave(place, "off")
        else:
            self._set(place, "draining")

    def _started(self, place: int, turn: int, warm: int) -> None:
        if self._turns[place] != turn:
            return  # it failed, or was not wanted any more
        replica = self.replicas[place] = self._new_replica(place)
        names = self._recent.hottest(warm, self._env.now) if warm else []
        if self._roll_outs is not None:
            names = list(dict.fromkeys(map(self._roll_outs.current, names)))
        if not names:
            self._open(place, turn)
            return
        waits = set(names)

        def settled(name: str) -> None:
            waits.discard(name)
            if not waits and self._settle.pop(place, None) is not None:
                self._env.call_at(self._env.now, partial(self._open, place, turn), URGENT)

        self._settle[place] = settled
        for name in names:
            replica.engine.adapters.preload(name, partial(_if_refused, settled, name))

    def _open(self, place: int, turn: int) -> None:
        if self._turns[place] != turn:
            return
        self._set(place, "open")
        if self._parked:  # others may open at this very second
            self._env.call_at(self._env.now, self._unpark, URGENT)

    def _unpark(self) -> None:
        """Send the requests that wait at the gateway, in order."""
        if self._gateway.any_open:
            parked, self._parked = self._parked, []
            for request, output_tokens in parked:
                self.send(request, output_tokens)

    def _drained(self, place: int, turn: int) -> None:
        if self._turns[place] == turn:
            self._leave(place, "off")

    def _leave(self, place: int, state: ReplicaState) -> list[Request]:
        """There is no replica at this place any more; returns its requests that have not ended."""
        self._set(place, state)
        self._settle.pop(place, None)
        replica = self.replicas.pop(place, None)
        if replica is None:
            return []
        left = replica.stop(self._env.now)
        if self._roll_outs is not None:
            self._roll_outs.left(place)
        self._refusals.append(replica.engine.refusals)
        return left

    def _set(self, place: int, state: ReplicaState) -> None:
        now = self._last_s = self._env.now
        self.states[place] = state
        self._turns[place] += 1
        self._changes.append(FleetChange(float(now), place, state))
        if self._gateway.fleet.open[place] != (state == "open"):
            self._gateway.set_open(place, state == "open")
            if not self._gateway.any_open:
                self.closed_s = float(now)
            if self._homes is not None:
                self._homes.place(self._in("open"))

    def _new_replica(self, place: int) -> Replica:
        """A replica at a place, with a fresh engine."""
        hear: list[tuple[type, Handler]] = []
        if self._roll_outs is not None:
            hear += self._roll_outs.hear(place).items()
        if self._scaler is not None:
            if self._scaler.options.warm_adapters:
                hear += [(kind, partial(self._settled, place)) for kind in (Loaded, Evicted)]
            if self._scaler.options.by == "attainment":
                hear.append((Ended, self._scaler.ended))
        replica = self._make(place, hear)
        if self._roll_outs is not None:
            self._roll_outs.joined(replica)
        return replica

    def _homes_of(self, adapter: str) -> list[int]:
        """The open replicas that may serve an adapter."""
        homes = None if self._homes is None else self._homes.of(adapter)
        opened = self._in("open")
        return [place for place in opened if homes is None or place in homes] or opened

    def _settled(self, place: int, event: Any) -> None:
        settle = self._settle.get(place)
        if settle is not None:
            settle(event.adapter)

    # -- autoscaling -----------------------------------------------------------------------------------------------

    def _scale(self) -> None:
        """Ask the autoscaler how many replicas there should be, and start or drain those that differ."""
        scaler, now = self._scaler, self._env.now
        assert scaler is not None
        in_flight = self._gateway.fleet.in_flight
        opened, starting = self._in("open"), self._in("starting")
        count = len(opened) + len(starting)
        wanted = scaler.wanted(now, count, int(in_flight[opened].sum()) + len(self._parked))
        for place in self._in("off")[: max(0, wanted - count)]:
            self.start(place, scaler.options.startup_s, scaler.options.warm_adapters)
        # those that have not opened go first, the last that started first; then the emptiest
        opened.sort(key=lambda place: (in_flight[place], -place))
        for place in [*reversed(starting), *opened][: max(0, count - wanted)]:
            self.drain(place)
        if not self._quiet():
            self._env.call_at(now + scaler.options.interval_s, self._scale, URGENT)

    def _place_again(self) -> None:
        """Decide the homes anew from what has arrived lately."""
        keeper, now = self._homes, self._env.now
        assert keeper is not None and keeper.options.every_s is not None
        keeper.observe(now)
        if not self._quiet():
            self._env.call_at(now + keeper.options.every_s, self._place_again, URGENT)

    def _in(self, state: ReplicaState) -> list[int]:
        return [place for place, each in enumerate(self.states) if each == state]

    def _quiet(self) -> bool:
        """Whether nothing can happen any more, unless the number of replicas changes that."""
        if self._events or self._coming() or "starting" in self.states:
            return False
        if self._parked and self._scaler is not None and "off" in self.states:
            return False  # a replica will start
        return all(replica.sleeps for replica in self.replicas.values())

    # -- the end ---------------------------------------------------------------------------------------------------

    @property
    def last_s(self) -> float:
        """The second at which something happened last. Events that a dead replica has left behind do not count."""
        return max([self._last_s, *(replica.engine.ledger.now for replica in self.replicas.values())])

    def close(self) -> tuple[list[Engine], Engine | None]:
        """The run is over: the engines that hold the requests that are left, and the one that takes those at the
        gateway, None where a replica is open."""
        engines = [self.replicas[place].engine for place in sorted(self.replicas)]
        if not self._gateway.any_open:
            lobby = self._make(NOWHERE, ())
            self._lobby = lobby.engine
            if self._roll_outs is not None:
                self._roll_outs.joined(lobby)
            for request, _ in self._parked:
                self._lobby.submit(request if self._roll_outs is None else self._roll_outs.again(request))
        for event in self._events:
            what = f"{event.kind} {event.replica} at {event.at_s:g} s"
            self._notes.add(what, "did not happen, because the run was over before")
        return engines, self._lobby

    def conclude(self, end: RunEnd) -> RunEnd:
        """The end of the run, with what happened to its fleet."""
        refusals = total_refusals([end.refusals, *self._refusals])
        keeper, notes, rolled = self._homes, self._notes.texts, self._roll_outs
        moved, mean = (None, None) if keeper is None else (keeper.moved, keeper.mean)
        changed = () if rolled is None else rolled.records
        record = FleetRecord(tuple(self._changes), self._resent, moved, mean, changed)
        notes += [] if rolled is None else rolled.notes
        if keeper is not None and len(self.states) == 1:
            notes.append("cluster.placement has no effect, as there is one replica")
        elif keeper is not None and keeper.options.every_s is not None and not keeper.observed:
            every_s = (
                f"cluster.placement.every_s has no effect, as the run was over before ({keeper.options.every_s:g} s)"
            )
            notes.append(every_s)
        if self._scaler is not None and not self._scaler.decided:
            interval_s = f"interval_s ({self._scaler.options.interval_s:g} s)"
            notes.append(f"cluster.autoscale decided nothing, as the run was over before {interval_s}")
        return replace(end, refusals=refusals, notes=(*end.notes, *notes), fleet=record)


def _if_refused(settled: Callable[[str], None], name: str, refusal: str) -> None:
    """An adapter that a replica does not load does not keep it from opening."""
    if refusal:
        settled(name)
