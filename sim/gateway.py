"""Gateway: stands in front of the replicas, keeps what their router sees up to date, and sends each request to one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import floor
from operator import index as whole
from typing import Any, NoReturn

import numpy as np

from loratory.errors import PolicyError, shortened
from loratory.serving.engine import Engine
from loratory.serving.guest_errors import is_order, raised
from loratory.serving.plan import StepPlan
from loratory.serving.request import Request
from loratory.serving.usage import AdapterState
from loratory.sim.fleet import AWAY, GPU, HOST, IDLE, LOADING, Column, Fleet, Report, read_only
from loratory.sim.router import Router

_CODES = {"gpu": GPU, "loading": LOADING, "host": HOST}


def _own(router: Router, key: str) -> Callable[..., Any] | None:
    """A method of the router's own; None where it has none, as a class without our base has."""
    found = getattr(router, key, None)
    return None if getattr(found, "__func__", None) is getattr(Router, key) else found


class Gateway:
    """Asks the router for each request, and keeps its `Fleet`.

    What replicas report is seen ``delay_s`` seconds later; with ``interval_s``, as it was at the last multiple of that
    interval, like metrics that are scraped:

        reports         r1    r2  r3        r4     r5      (delay_s 0.2, interval_s 1)
        seconds      |-----------------|-----------------|
        scraped      0                 1                 2
        seen                              r1 r2 r3           from 1.2 on

    What the gateway itself does, it knows at once: ``in_flight`` is never old.
    """

    def __init__(
        self, router: Router, fleet: Fleet, delay_s: float = 0.0, interval_s: float | None = None, name: str = ""
    ) -> None:
        self.fleet = fleet
        self._router = router
        self._name = name or type(router).__name__
        self._delay_s = delay_s
        self._interval_s = interval_s
        self._late = delay_s > 0.0 or interval_s is not None
        self._reports: deque[tuple[float, int, Report | tuple[str, int]]] = deque()
        """Those that the router has not seen."""
        self._watched: set[int] = set()
        """Places at which a replica has been."""
        self._homes: dict[str, Column] | None = None
        self._open = fleet.candidates
        self._count = len(fleet)
        self._told = _own(router, "reported")
        self._replicas_changed = _own(router, "replicas_changed")
        self._in_flight = fleet._counts[0]
        self._changed()

    def route(self, request: Request, now: float) -> int:
        """The replica that gets a request, which arrives at second ``now``.

        Raises `PolicyError` when the router raises, or answers with what is no candidate.
        """
        fleet = self.fleet
        fleet._now = now
        if self._late:
            self._catch_up(now)
        if self._homes is not None:
            self._limit_to_homes(request.adapter)
        try:
            answer: Any = self._router.route(request, fleet)
        except BaseException as error:
            self._blame(error, "its route()")
        place = answer if type(answer) is int else self._index(answer)
        if not 0 <= place < self._count or not (fleet._all or place in fleet._candidates):
            raise self._no_candidate(answer)
        fleet._sent += 1
        fleet._last_sent[place] = fleet._sent
        self._in_flight[place] += 1
        return place

    def ended(self, place: int, count: int) -> None:
        """So many requests of a replica have ended, or were taken from it."""
        self._in_flight[place] -= count

    def set_open(self, place: int, is_open: bool) -> None:
        """A replica takes requests from now on, or takes no more."""
        self.fleet._open[place] = is_open
        self._changed()

    def set_homes(self, homes: dict[str, Column] | None) -> None:
        """From now on requests for an adapter go to these replicas only; for one without an entry, to any."""
        self._homes = homes
        if homes is None:
            self._offer(self._open)

    def _offer(self, candidates: Column) -> None:
        self.fleet._candidates = candidates
        self.fleet._all = len(candidates) == len(self.fleet)

    @property
    def any_open(self) -> bool:
        """Whether any replica takes requests."""
        return len(self._open) > 0

    def _changed(self) -> None:
        fleet = self.fleet
        self._open = read_only(np.flatnonzero(fleet._open))
        self._offer(self._open)
        if not len(self._open) or self._replicas_changed is None:
            return
        try:
            self._replicas_changed(fleet)
        except BaseException as error:
            self._blame(error, "its replicas_changed()")

    def _limit_to_homes(self, adapter: str | None) -> None:
        fleet = self.fleet
        homes = None if adapter is None or self._homes is None else self._homes.get(adapter)
        if homes is not None:
            homes = read_only(homes[fleet._open[homes]])
        self._offer(self._open if homes is None or not len(homes) else homes)

    def _index(self, answer: Any) -> int:
        """The index that a router means which does not answer with an ``int``, but for instance with NumPy's."""
        if isinstance(answer, bool | np.bool_):
            raise self._no_candidate(answer)
        try:
            return whole(answer)
        except TypeError as error:
            raise self._no_candidate(answer) from error
        except BaseException as error:
            self._blame(error, "its route()")

    def _no_candidate(self, answer: Any) -> PolicyError:
        known = answer is None or isinstance(answer, bool | int | float | str | np.generic)
        shown = shortened(repr(answer), 60) if known else f"what is of type {type(answer).__name__}"
        candidates = shortened(", ".join(map(str, self.fleet._candidates.tolist())), 100)
        return self._error(f"its route() returned {shown}: return one of fleet.candidates, here {candidates}")

    def _blame(self, error: BaseException, subject: str) -> NoReturn:
        """Raise a `PolicyError` for what came out of the router's code, or an order to stop as it is."""
        if is_order(error):
            raise error
        raise self._error(raised(error, subject)) from error

    def _error(self, what: str) -> PolicyError:
        name = shortened(self._name, 100)
        return PolicyError(shortened(f"router {name} failed at {self.fleet.now:.6f} s: {what}"))

    # -- what replicas report --------------------------------------------------------------------------------------

    def watch(self, place: int, engine: Engine) -> Callable[[StepPlan | None], None]:
        """A function that the replica calls with each plan; from now on its engine tells where its adapters are.

        Of a replica that was at this place before, nothing is seen any more, however late reports are.
        """
        if self._reports:  # one that was here before is no more
            self._reports = deque(report for report in self._reports if report[1] != place)
        ledger, apply, simple = engine.ledger, self._apply, not self._late and self._told is None
        waiting_of, running_of, free_of, idle_of = self.fleet._counts[1:]
        kv_use_of, shapes = self.fleet._kv_use, self.fleet._shapes
        slots, kv, running, by_ticket = ledger.slots, ledger.kv, ledger.running, ledger.waiting.by_ticket
        epoch = seen_waiting = seen_free = seen_idle = -1

        def watch(plan: StepPlan | None) -> None:
            nonlocal epoch, seen_waiting, seen_free, seen_idle
            waiting, free, idle = len(by_ticket), slots.free, len(slots.idle)
            if ledger.epoch == epoch and waiting == seen_waiting and free == seen_free and idle == seen_idle:
                return
            epoch, seen_waiting, seen_free, seen_idle = ledger.epoch, waiting, free, idle
            shape = IDLE if plan is None else plan.shape
            if simple:  # `_apply`, without a report
                waiting_of[place], running_of[place], free_of[place], idle_of[place] = waiting, len(running), free, idle
                kv_use_of[place] = kv.used / kv.total
                shapes[place] = shape
                return
            report = Report(waiting, len(running), free, idle, kv.used / kv.total, shape)
            if self._late:
                self._reports.append((ledger.now, place, report))
            else:
                apply(place, report)

        def moved(state: AdapterState) -> None:
            assert state.name is not None
            code = _CODES.get(state.tier, AWAY)
            if self._late:
                self._reports.append((ledger.now, place, (state.name, code)))
            else:
                self._move(place, state.name, code)

        if place in self._watched:
            self._apply(place, Report(0, 0, slots.free, len(slots.idle), kv.used / kv.total, IDLE))
        self._watched.add(place)
        ledger.host_cache.moved = moved
        for name, column in self.fleet._tiers.items():
            if column[place]:
                self._move(place, name, AWAY)
        for state in ledger.adapters.made():
            if state.tier != "disk" and state.tier != "remote":
                moved(state)
        return watch

    def _apply(self, place: int, report: Report) -> None:
        fleet = self.fleet
        counts = fleet._counts
        counts[1, place], counts[2, place], counts[3, place], counts[4, place] = report[:4]
        fleet._kv_use[place], fleet._shapes[place] = report[4:]
        if self._told is not None:
            try:
                self._told(place, report)
            except BaseException as error:
                self._blame(error, "its reported()")

    def _move(self, place: int, adapter: str, code: int) -> None:
        fleet = self.fleet
        column = fleet._tiers.get(adapter)
        if column is None:
            column = fleet._tiers[adapter] = np.zeros(len(fleet), dtype=np.uint8)
            fleet._read_only_tiers[adapter] = read_only(column)
        column[place] = code

    def _catch_up(self, now: float) -> None:
        """Show the router the reports that are old enough."""
        seen = now - self._delay_s
        if self._interval_s is not None:
            seen = floor(seen / self._interval_s) * self._interval_s
        self.fleet._age_s = now - max(seen, 0.0)
        reports = self._reports
        while reports and reports[0][0] <= seen:
            _, place, report = reports.popleft()
            if len(report) == 2:
                self._move(place, *report)
            else:
                self._apply(place, report)
