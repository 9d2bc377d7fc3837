"""Units, Account and Rounds: among whom a fair policy shares service, what each has had, and deficit round robin."""

from __future__ import annotations

from typing import Literal, NamedTuple

from loratory.serving.actions import Schedule
from loratory.serving.engine_view import View
from loratory.serving.events import Arrived, Ended, Event, Preempted
from loratory.serving.lanes import Lanes
from loratory.serving.usage import Usage
from loratory.serving.views import RequestView
from loratory.serving.wait_queue import Queued
from loratory.serving.want import want

Unit = str | None
By = Literal["tenant", "adapter"]


class FairnessLimits(NamedTuple):
    """What a fairness bound depends on."""

    max_prompt_tokens: int
    """Tokens of the longest prompt."""
    max_output_tokens: int
    """The largest max_tokens of a request."""
    kv_tokens: int
    """Tokens that the KV pool holds."""
    max_num_seqs: int
    """Requests that run at once, at most."""
    max_num_batched_tokens: int
    """Tokens that one step computes, at most."""
    unit: By = "tenant"
    """Between which units the gap is measured."""
    input_weight: float = 1.0
    """Service of a prompt token in that measurement."""
    output_weight: float = 2.0
    """Service of an output token in it."""


class Account:
    """One unit's books: its ``weight`` (the last one seen counts), and ``usage``, what the engine keeps of its service
    and of its waiting requests, to be read only. ``granted``, ``turn`` and ``place`` are `Rounds`'s.
    """

    __slots__ = ("granted", "head", "place", "turn", "unit", "usage", "weight")

    def __init__(self, unit: Unit, usage: Usage) -> None:
        self.unit = unit
        self.usage = usage
        self.weight = 1.0
        self.granted = 0.0
        self.turn = 0
        self.place: Literal["", "credit", "spent"] = ""
        self.head: Queued | None = None
        """The request it was sorted by."""

    def first(self) -> RequestView | None:
        """Its longest waiting request, or None."""
        sequence = self.usage.queue.first()
        return None if sequence is None else sequence.view


class Units:
    """Names units and measures their service: weighted tokens, a prompt's when it is admitted, an output's one by one.

    ``by``: what a unit is. ``input_weight`` and ``output_weight``: service of one token (VTC uses 1 and 2). A request's
    ``weight`` is its unit's share.
    """

    __slots__ = ("_accounts", "by", "input_weight", "output_weight")

    def __init__(self, by: By, input_weight: float, output_weight: float) -> None:
        self.by = by
        self.input_weight = input_weight
        self.output_weight = output_weight
        self._accounts: dict[Unit, Account] = {}

    def of(self, view: View, request: RequestView) -> Account:
        """The account of a request's unit; takes over the request's weight."""
        unit = request.tenant if self.by == "tenant" else request.adapter
        account = self._accounts.get(unit)
        if account is None:
            ledger = view._ledger
            if unit is None:
                usage: Usage = ledger.base
            else:
                usage = ledger.tenants[unit] if self.by == "tenant" else ledger.adapters[unit]
            account = self._accounts[unit] = Account(unit, usage)
        account.weight = request.weight
        return account

    def find(self, request: RequestView) -> Account | None:
        """The account of a request's unit, if it has one yet."""
        return self._accounts.get(request.tenant if self.by == "tenant" else request.adapter)

    def service(self, account: Account) -> float:
        """Service so far, divided by the unit's weight."""
        usage = account.usage
        outputs = usage.output_offset + usage.decoding * usage.clock[0]  # `output_tokens`, without the call
        return (self.input_weight * usage.admitted_tokens + self.output_weight * outputs) / account.weight

    def largest(self, limits: FairnessLimits) -> float | None:
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
        self._lanes: Lanes[Account] = Lanes()
        self._spent: dict[Account, None] = {}
        self._turns = 0
        self._came: list[RequestView] = []

    def changed(self, request: RequestView) -> None:
        """The queue of this request's unit has changed other than by an admission; to be told from ``observe``."""
        self._came.append(request)

    def observe(self, event: Event) -> None:
        """Note whose queue has changed; to be called from ``observe`` with events of the types Arrived, Preempted and
        Ended."""
        if isinstance(event, (Arrived, Preempted)) or (isinstance(event, Ended) and event.status != "completed"):
            self.changed(event.request)

    def serve(self, view: View, nearest: bool = False) -> Schedule:
        """Admit from the units in turn while they have credit, and begin the next round when none has any left.

        A unit whose adapter is blocked keeps its credit and its turn. ``nearest`` as in `pick`.
        """
        self.begin(view)
        closed: set[str | None] = set()
        while True:
            picked = self.pick(view, closed, nearest)
            if picked is None:
                if not self.renew(view):
                    return
                continue
            account, request = picked
            outcome = yield from want(view, request)
            if outcome:
                self.sort(account)
            elif outcome.why in ("slots", "adapter"):
                closed.add(request.adapter)
            else:
                return

    def begin(self, view: View) -> None:
        """Take in the changes. Who comes back after idling keeps a debt and loses a credit."""
        came, self._came = self._came, []
        for request in came:
            account = self.units.of(view, request)
            if account.place and account.usage.queue.first() is account.head:
                continue  # behind others of its unit
            credit = self._credit(account)
            if credit > 0 and not account.place:
                account.granted = self.units.service(account)
                credit = 0.0
            self._sort(account, credit)

    def pick(self, view: View, closed: set[str | None], nearest: bool = False) -> tuple[Account, RequestView] | None:
        """The first unit in credit whose next request's adapter is not blocked or closed, and that request."""
        while (found := self._lanes.pick(view, closed, nearest)) is not None:
            account = found[0]
            head = account.usage.queue.first()
            if head is not None and self._credit(account) > 0:
                return account, head.view
            self.sort(account)
        return None

    def sort(self, account: Account) -> None:
        """Sort a unit anew after its queue or its credit has changed."""
        self._sort(account, self._credit(account))

    def _sort(self, account: Account, credit: float) -> None:
        head = account.head = account.usage.queue.first()
        place: Literal["", "credit", "spent"] = "" if head is None else "credit" if credit > 0 else "spent"
        was = account.place
        if was == "credit" and place != "credit":
            self._lanes.discard(account)
            account.turn = 0
        elif was == "spent" and place != "spent":
            del self._spent[account]
        account.place = place
        if place == "credit":
            assert head is not None
            if not account.turn:
                self._turns += 1
                account.turn = self._turns
            self._lanes.push(account, (account.turn,), head.request.adapter)
        elif place == "spent":
            self._spent[account] = None

    def renew(self, view: View) -> bool:
        """Begin the next round; False while a backlogged unit has credit, or when none is backlogged."""
        if not view.waiting:
            return False
        while (first := self._lanes.first()) is not None:
            account = first[1]
            if account.usage.queue.live and self._credit(account) > 0:
                return False
            self.sort(account)
        for account in [account for account in self._spent if not account.usage.queue.live]:
            self.sort(account)
        if not self._spent:
            return False
        credits = {account: self._credit(account) for account in self._spent}
        granted = self.quantum * (1 + max(0, int(-max(credits.values()) // self.quantum)))
        for account, credit in credits.items():
            account.granted += granted
            self._sort(account, credit + granted)
        return True

    def bound(self, limits: FairnessLimits) -> float | None:
        """2(U + quantum)."""
        largest = self.units.largest(limits)
        return None if largest is None else 2 * (largest + self.quantum)

    def _credit(self, account: Account) -> float:
        return account.granted - self.units.service(account)
