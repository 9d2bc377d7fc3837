"""Units and Rounds: whom a fair policy shares service among, what each has had, and deficit round robin's books."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from serving.lanes import Lanes

if TYPE_CHECKING:
    from serving.policy import Limits
    from serving.views import AdapterView, RequestView, TenantView, View
    from serving.queue import WaitQueue

Unit = str | None
By = Literal["tenant", "adapter"]


class Units:
    """Names units and measures their service: weighted tokens, a prompt's when it is admitted, an output's one by one.

    ``by``: what a unit is. ``input_weight`` and ``output_weight``: service of one token (VTC uses 1 and 2). A request's
    ``weight`` is its unit's share; the last one seen counts.
    """

    __slots__ = ("by", "input_weight", "output_weight", "weights")

    def __init__(self, by: By, input_weight: float, output_weight: float) -> None:
        self.by = by
        self.input_weight = input_weight
        self.output_weight = output_weight
        self.weights: dict[Unit, float] = {}

    def of(self, request: RequestView) -> Unit:
        """The unit of a request; remembers its weight."""
        unit = request.tenant if self.by == "tenant" else request.adapter
        self.weights[unit] = request.weight
        return unit

    def queue(self, view: View, unit: Unit) -> WaitQueue:
        """Its waiting requests."""
        return view.waiting_for(unit) if self.by == "adapter" or unit is None else view.waiting_of(unit)

    def service(self, view: View, unit: Unit) -> float:
        """Service so far, divided by the unit's weight."""
        usage: TenantView | AdapterView
        if unit is None:
            usage = view.base
        else:
            usage = view.tenants[unit] if self.by == "tenant" else view.adapters[unit]
        tokens = self.input_weight * usage.admitted_tokens + self.output_weight * usage.output_tokens
        return tokens / self.weights.get(unit, 1.0)

    def largest(self, limits: Limits) -> float | None:
        """U of the VTC paper: the most service by which one admission decision can be ahead of its counter.

        None when ``limits`` measures service of other units or with other weights.
        """
        if (self.by, self.input_weight, self.output_weight) != (limits.unit, limits.input_weight, limits.output_weight):
            return None
        return max(self.input_weight * limits.max_prompt_tokens, self.output_weight * limits.kv_tokens)


class Rounds:
    """Deficit round robin's books: who has credit left in this round, in which order, and when the next round begins.

    A round grants every backlogged unit ``quantum`` of service. Credit is grants less service; a unit in credit keeps
    it, and its turn, until it has spent it, also while its adapter is blocked. Credits of backlogged units stay within
    [-U, quantum], and each round grants all of them the same: hence two of them are at most 2(U + quantum) apart.
    """

    def __init__(self, units: Units, quantum: float) -> None:
        self.units = units
        self.quantum = quantum
        self._lanes: Lanes[Unit] = Lanes()
        self._spent: dict[Unit, None] = {}
        self._granted: dict[Unit, float] = {}
        self._turn: dict[Unit, int] = {}
        self._turns = 0
        self._came: list[RequestView] = []

    def changed(self, request: RequestView) -> None:
        """The queue of this request's unit has changed other than by an admission; to be told from ``observe``."""
        self._came.append(request)

    def begin(self, view: View) -> None:
        """Take in the changes. Who comes back after idling keeps a debt and loses a credit, as in deficit round robin."""
        came, self._came = self._came, []
        for request in came:
            unit = self.units.of(request)
            if unit not in self._lanes and unit not in self._spent and self._credit(view, unit) > 0:
                self._granted[unit] = self.units.service(view, unit)
            self.place(view, unit)

    def pick(self, view: View, closed: set[str | None], nearest: bool = False) -> tuple[Unit] | None:
        """The first unit in credit whose next request's adapter is not blocked or closed (see `Lanes.pick`)."""
        while (found := self._lanes.pick(view, closed, nearest)) is not None:
            if self._credit(view, found[0]) > 0 and self.units.queue(view, found[0]):
                return found
            self.place(view, found[0])
        return None

    def place(self, view: View, unit: Unit) -> None:
        """Sort a unit anew after its queue or its credit has changed."""
        head = self.units.queue(view, unit).head
        self._lanes.discard(unit)
        self._spent.pop(unit, None)
        if head is None:
            self._turn.pop(unit, None)
        elif self._credit(view, unit) > 0:
            if unit not in self._turn:
                self._turns += 1
                self._turn[unit] = self._turns
            self._lanes.push(unit, (self._turn[unit],), head.adapter)
        else:
            self._turn.pop(unit, None)
            self._spent[unit] = None

    def renew(self, view: View) -> bool:
        """Begin the next round; False while a backlogged unit has credit, or when none is backlogged."""
        while (first := self._lanes.first()) is not None:
            unit = first[1]
            if self.units.queue(view, unit) and self._credit(view, unit) > 0:
                return False
            self.place(view, unit)
        for unit in [unit for unit in self._spent if not self.units.queue(view, unit)]:
            self.place(view, unit)
        if not self._spent:
            return False
        spent = list(self._spent)
        rounds = 1 + max(0, int(-max(self._credit(view, unit) for unit in spent) // self.quantum))
        for unit in spent:
            self._granted[unit] = self._granted.get(unit, 0.0) + rounds * self.quantum
            self.place(view, unit)
        return True

    def bound(self, limits: Limits) -> float | None:
        """2(U + quantum)."""
        largest = self.units.largest(limits)
        return None if largest is None else 2 * (largest + self.quantum)

    def _credit(self, view: View, unit: Unit) -> float:
        return self._granted.get(unit, 0.0) - self.units.service(view, unit)
