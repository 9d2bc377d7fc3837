"""RollOuts: new versions of adapters that take over the traffic of those in force, while a fleet runs.

    at_s          load           traffic moves               only the new version
      |--- preload ---|-- 0.1 --|-- 0.5 --|------------ 1 ------------------->
      replicas know                       the old version takes no request any more; a replica
      the new version                     forgets it when its last request there has ended

The gateway writes the version into a request before it asks the router, as llm-d's InferenceModelRewrite does ("LoRA
Adapter Rollout" in its documentation). For engine and router a version is an adapter of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from loratory.serving.events import AdapterRemoved, Handler, Loaded
from loratory.serving.request import Request
from loratory.serving.run_end import RollOutRecord, TrafficShare
from loratory.sim.environment import URGENT, ExactEnvironment
from loratory.sim.fleet_options import RollOut
from loratory.sim.order_notes import OrderNotes
from loratory.sim.replica import Replica

_ROUNDING = 1e-9


class _Progress:
    """How far one roll-out is."""

    def __init__(self, order: RollOut) -> None:
        self.order = order
        self.began_s: float | None = None
        self.shares: list[TrafficShare] = []
        self.loading: set[int] = set()
        """Replicas that copy the new version to host memory before traffic moves."""
        self.refused: list[str] = []
        """Why some of them did not."""
        self.holding: set[int] = set()
        """Replicas that knew the old version when it took its last request, and still do."""
        self.freed_s: float | None = None
        self._credit = 0.0

    def takes(self, now: float) -> bool:
        """Whether the new version gets the request that arrives now: of any n in a row, n times the share, to within 1.

        A request adds the share to a credit, and one whole credit is a request for the new version.
        """
        if not self.shares:
            return False
        since, share = self.shares[-1]
        if self.order.over_s:
            share = min(1.0, (now - since) / self.order.over_s)
        self._credit += share
        if self._credit < 1.0 - _ROUNDING:
            return False
        self._credit -= 1.0
        return True

    @property
    def record(self) -> RollOutRecord:
        """What became of it."""
        order = self.order
        names = order.adapter, order.old.name, order.new.name
        return RollOutRecord(*names, order.at_s, self.began_s, tuple(self.shares), self.freed_s)


class RollOuts:
    """The roll-outs of a fleet. ``replicas``: those that there are, by place; ``homes`` gives the open ones that may
    serve an adapter; ``after`` the request that one follows in its session, -1 for none; None without sessions."""

    def __init__(
        self,
        orders: Sequence[RollOut],
        env: ExactEnvironment,
        replicas: Mapping[int, Replica],
        homes: Callable[[str], Sequence[int]],
        after: Callable[[int], int] | None,
    ) -> None:
        self._env = env
        self._replicas = replicas
        self._homes = homes
        self._after = after
        self._all = [_Progress(order) for order in orders]
        self._of_old = {each.order.old.name: each for each in self._all}
        self._of_new = {each.order.new.name: each for each in self._all}
        self._moving: dict[str, _Progress] = {}
        """By adapter, the one under way."""
        self._waiting: dict[str, list[_Progress]] = {}
        """Those that begin when the one before them has ended."""
        self._in_force = {order.adapter: order.adapter for order in orders}
        """By adapter, the version that requests get which no roll-out under way takes."""
        self._next: dict[str, str] = {}
        """By version that takes no request any more, the one that followed it."""
        self._version_of: dict[int, str] = {}
        """By number of a request for one of these adapters, its version; only with sessions."""
        self._seen: set[tuple[int, str]] = set()
        """Replicas with the new versions that have had a request there."""
        self._notes = OrderNotes()

    def begin(self) -> None:
        """Every roll-out begins at its time."""
        for each in self._all:
            self._env.call_at(each.order.at_s, partial(self._begin, each), URGENT)

    # -- requests --------------------------------------------------------------------------------------------------

    def assign(self, request: Request) -> Request:
        """A request that arrives for the first time, with its version as its adapter."""
        adapter = request.adapter
        version = None if adapter is None else self._in_force.get(adapter)
        if version is None or adapter is None:
            return request
        moving = self._moving.get(adapter)
        if moving is not None and moving.takes(self._env.now):
            version = moving.order.new.name
        self._note(request, version)
        return request if version == adapter else request._replace(adapter=version)

    def current(self, version: str) -> str:
        """The version that serves what asked for this one: its successor where it takes no request any more."""
        while version in self._next:
            version = self._next[version]
        return version

    def again(self, request: Request) -> Request:
        """A request that arrives again, or has waited for a replica: its version may take no request any more."""
        if request.adapter is None or (version := self.current(request.adapter)) == request.adapter:
            return request
        self._note(request, version)
        return request._replace(adapter=version)

    def _note(self, request: Request, version: str) -> None:
        if self._after is not None:
            self._version_of[int(request.request_id)] = version

    def sent(self, request: Request, place: int) -> Request:
        """The request as a replica gets it: of what it says is cached, nothing is where another version left it."""
        version = request.adapter
        if version is None or version not in self._of_new:
            return request
        known = (place, version) in self._seen
        self._seen.add((place, version))
        if not request.cached_tokens:
            return request
        before = -1 if self._after is None else self._after(int(request.request_id))
        if known and (before < 0 or self._version_of.get(before) == version):
            return request
        return request._replace(cached_tokens=0)

    # -- replicas --------------------------------------------------------------------------------------------------

    def hear(self, place: int) -> dict[type, Handler]:
        """What is to be heard of the events of a replica."""
        return {AdapterRemoved: partial(self._removed, place), Loaded: partial(self._loaded, place)}

    def joined(self, replica: Replica) -> None:
        """A replica is new: it knows the adapters that there were at the start."""
        changes = replica.engine.adapters
        for each in self._all:
            old, new = each.order.old.name, each.order.new
            if each.began_s is not None and new.name not in self._next:
                changes.enter(new)
            if old == each.order.adapter and old in self._next:
                changes.remove(old, _ignored)

    def left(self, place: int) -> None:
        """A replica is no more."""
        self._seen = {seen for seen in self._seen if seen[0] != place}
        for each in self._all:
            self._has_copied(each, place)
            self._has_freed(each, place, self._env.now)

    def _removed(self, place: int, event: Any) -> None:
        if (each := self._of_old.get(event.adapter)) is not None:
            self._has_freed(each, place, event.now)
            if each.order.pinned:  # its engine makes a plan at this moment, which has to end first
                self._env.call_at(self._env.now, partial(self._pin, self._replicas[place], each), URGENT)

    def _pin(self, replica: Replica, each: _Progress) -> None:
        replica.engine.adapters.pin(self.current(each.order.new.name), _ignored)
        replica.nudge()

    def _loaded(self, place: int, event: Any) -> None:
        if (each := self._of_new.get(event.adapter)) is not None:
            self._has_copied(each, place)

    def _has_copied(self, each: _Progress, place: int) -> None:
        if place in each.loading:
            each.loading.discard(place)
            if not each.loading:
                self._env.call_at(self._env.now, partial(self._move, each, 0), URGENT)

    def _has_freed(self, each: _Progress, place: int, now: float) -> None:
        if place in each.holding:
            each.holding.discard(place)
            if not each.holding:
                each.freed_s = float(now)

    # -- the course of one ------------------------------------------------------------------------------------------

    def _begin(self, each: _Progress) -> None:
        order = each.order
        if order.adapter in self._moving:
            self._waiting.setdefault(order.adapter, []).append(each)
            self._notes.add(
                f"the roll-out of {order.new.name}",
                f"began after {order.at_s:g} s, when all requests went to {order.old.name}",
                "began late, when all requests went to the version before",
            )
            return
        self._moving[order.adapter] = each
        each.began_s = float(self._env.now)
        for replica in self._replicas.values():
            replica.engine.adapters.enter(order.new)
            replica.nudge()
        if order.preload:
            each.loading.update(self._homes(order.adapter))
        if not each.loading:
            self._move(each, 0)
        for place in sorted(each.loading):
            replica = self._replicas[place]
            replica.engine.adapters.prefetch(order.new.name, partial(self._asked, each, place))

    def _asked(self, each: _Progress, place: int, refusal: str) -> None:
        if refusal:
            each.refused.append(refusal)
            self._has_copied(each, place)

    def _move(self, each: _Progress, step: int) -> None:
        order, now = each.order, float(self._env.now)
        if order.over_s and not each.shares:
            each.shares.append(TrafficShare(now, 0.0))
            self._env.call_at(now + order.over_s, partial(self._end, each), URGENT)
            return
        if step == len(order.shares) - 1:
            self._end(each)
            return
        each.shares.append(TrafficShare(now, order.shares[step]))
        self._env.call_at(now + order.every_s, partial(self._move, each, step + 1), URGENT)

    def _end(self, each: _Progress) -> None:
        """From now on every request goes to the new version, and every replica forgets the old one when it can."""
        order, now = each.order, float(self._env.now)
        each.shares.append(TrafficShare(now, 1.0))
        del self._moving[order.adapter]
        self._in_force[order.adapter] = self._next[order.old.name] = order.new.name
        each.holding.update(self._replicas)
        if not each.holding:
            each.freed_s = now
        for replica in list(self._replicas.values()):
            replica.engine.adapters.remove(order.old.name, _ignored)
            replica.nudge()
        if waiting := self._waiting.get(order.adapter):
            self._begin(waiting.pop(0))

    # -- the end ---------------------------------------------------------------------------------------------------

    @property
    def records(self) -> tuple[RollOutRecord, ...]:
        """All of them, in order of time."""
        return tuple(each.record for each in self._all)

    @property
    def notes(self) -> list[str]:
        """One sentence for each kind of those that the run did not see to their end, or that were not as ordered."""
        found, ends = self._notes.texts, OrderNotes()
        refused = [each for each in self._all if each.refused]
        if refused:
            times, why = sum(len(each.refused) for each in refused), refused[0].refused[0]
            found.append(
                f"cluster.events: of the copies to host memory that roll-outs asked for before traffic moved, {times} "
                f"were not made: {why}"
            )
        for record in self.records:
            if record.began_s is None:
                what = f"the roll-out of {record.new} at {record.at_s:g} s"
                ends.add(what, "did not happen, because the run was over before")
            elif record.moved_s is None:
                share = f"a share of {record.shares[-1].share:g}" if record.shares else "its copies"
                over = "when the run was over"
                ends.add(f"the roll-out of {record.new}", f"was at {share} {over}", f"were under way {over}")
        return found + ends.texts


def _ignored(refusal: str) -> None:
    """A replica that has not got a version need not be told to forget it."""
