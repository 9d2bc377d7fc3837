"""Units and Rounds: whom a fair policy shares service among, what each has had, and deficit round robin's books."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from serving.lanes import Lanes

if TYPE_CHECKING:
    from serving.adapters import Usage
    from serving.policy import Limits
    from serving.views import RequestView, View

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

    def usage(self, view: View, unit: Unit) -> Usage:
        """What the engine keeps of it: to be read only."""
        ledger = view._ledger
        if unit is None:
            return ledger.base
        return ledger.tenants[unit] if self.by == "tenant" else ledger.adapters[unit]

    def head(self, view: View, unit: Unit) -> RequestView | None:
        """Its longest waiting request, or None."""
        sequence = self.usage(view, unit).queue.first()
        return None if sequence is None else sequence.view

    def service(self, view: View, unit: Unit) -> float:
        """Service so far, divided by the unit's weight."""
        usage = self.usage(view, unit)
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
        """Take in the changes. Who comes back after idling keeps a debt and loses a credit."""
        came, self._came = self._came, []
        for request in came:
            unit = self.units.of(request)
            credit = self._credit(view, unit)
            if credit > 0 and unit not in self._lanes and unit not in self._spent:
                self._granted[unit] = self.units.service(view, unit)
                credit = 0.0
            self._sort(view, unit, credit)

    def pick(self, view: View, closed: set[str | None], nearest: bool = False) -> tuple[Unit, RequestView] | None:
        """The first unit in credit whose next request's adapter is not blocked or closed, and that request."""
        while (found := self._lanes.pick(view, closed, nearest)) is not None:
            unit = found[0]
            head = self.units.head(view, unit)
            if head is not None and self._credit(view, unit) > 0:
                return unit, head
            self.place(view, unit)
        return None

    def place(self, view: View, unit: Unit) -> None:
        """Sort a unit anew after its queue or its credit has changed."""
        self._sort(view, unit, self._credit(view, unit))

    def _sort(self, view: View, unit: Unit, credit: float) -> None:
        head = self.units.head(view, unit)
        self._lanes.discard(unit)
        self._spent.pop(unit, None)
        if head is None:
            self._turn.pop(unit, None)
        elif credit > 0:
            turn = self._turn.get(unit)
            if turn is None:
                self._turns += 1
                turn = self._turn[unit] = self._turns
            self._lanes.push(unit, (turn,), head.adapter)
        else:
            self._turn.pop(unit, None)
            self._spent[unit] = None

    def renew(self, view: View) -> bool:
        """Begin the next round; False while a backlogged unit has credit, or when none is backlogged."""
        if not view.waiting:
            return False
        while (first := self._lanes.first()) is not None:
            unit = first[1]
            if self.units.head(view, unit) is not None and self._credit(view, unit) > 0:
                return False
            self.place(view, unit)
        for unit in [unit for unit in self._spent if self.units.head(view, unit) is None]:
            self.place(view, unit)
        if not self._spent:
            return False
        if len(self._spent) == 1:  # most rounds, at a load the GPU can carry
            unit = next(iter(self._spent))
            credit = self._credit(view, unit)
            granted = self.quantum * (1 + max(0, int(-credit // self.quantum)))
            self._granted[unit] = self._granted.get(unit, 0.0) + granted
            self._sort(view, unit, credit + granted)
            return True
        credits = {unit: self._credit(view, unit) for unit in self._spent}
        granted = self.quantum * (1 + max(0, int(-max(credits.values()) // self.quantum)))
        for unit, credit in credits.items():
            self._granted[unit] = self._granted.get(unit, 0.0) + granted
            self._sort(view, unit, credit + granted)
        return True

    def bound(self, limits: Limits) -> float | None:
        """2(U + quantum)."""
        largest = self.units.largest(limits)
        return None if largest is None else 2 * (largest + self.quantum)

    def _credit(self, view: View, unit: Unit) -> float:
        return self._granted.get(unit, 0.0) - self.units.service(view, unit)
