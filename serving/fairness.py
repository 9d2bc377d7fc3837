"""Units, Account and Rounds: among whom a fair policy shares service, what each has had, and deficit round robin."""

from __future__ import annotations

from typing import Literal, NamedTuple

from loratory.serving.actions import Schedule
from loratory.serving.compiling import mypyc_attr
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


@mypyc_attr(allow_interpreted_subclasses=True)
class Account:
    """One unit's books, made by `Units`: read-only and live."""

    __slots__ = ("_granted", "_head", "_place", "_turn", "_unit", "_usage", "_weight")

    def __init__(self, unit: Unit, usage: Usage) -> None:
        self._unit = unit
        self._usage = usage
        self._weight = 1.0
        self._granted = 0.0
        """This, the turn, the place and the head it was sorted by are `Rounds`'s."""
        self._turn = 0
        self._place: Literal["", "credit", "spent"] = ""
        self._head: Queued | None = None

    @property
    def unit(self) -> Unit:
        """The tenant's or the adapter's name; None for the base model."""
        return self._unit

    @property
    def weight(self) -> float:
        """Its share: the weight of the last request that `Units.of` was asked about."""
        return self._weight

    @property
    def waiting(self) -> int:
        """Its requests that wait."""
        return self._usage.queue.live

    def first(self) -> RequestView | None:
        """Its longest waiting request, or None."""
        sequence = self._usage.queue.first()
        return None if sequence is None else sequence.view


@mypyc_attr(allow_interpreted_subclasses=True)
class Units:
    """Names units and measures their service: weighted tokens, a prompt's when it is admitted, an output's one by one.

    A request's ``weight`` is its unit's share.
    """

    __slots__ = ("_accounts", "_by", "_input_weight", "_output_weight")

    def __init__(self, by: By, input_weight: float, output_weight: float) -> None:
        self._by = by
        self._input_weight = input_weight
        self._output_weight = output_weight
        self._accounts: dict[Unit, Account] = {}

    @property
    def by(self) -> By:
        """What a unit is: a "tenant" or an "adapter"."""
        return self._by

    @property
    def input_weight(self) -> float:
        """Service of a prompt token. VTC uses 1."""
        return self._input_weight

    @property
    def output_weight(self) -> float:
        """Service of an output token. VTC uses 2."""
        return self._output_weight

    def of(self, view: View, request: RequestView) -> Account:
        """The account of a request's unit; takes over the request's weight."""
        unit = request.tenant if self._by == "tenant" else request.adapter
        account = self._accounts.get(unit)
        if account is None:
            ledger = view._ledger
            if unit is None:
                usage: Usage = ledger.base
            else:
                usage = ledger.tenants[unit] if self._by == "tenant" else ledger.adapters[unit]
            account = self._accounts[unit] = Account(unit, usage)
        account._weight = request.weight
        return account

    def find(self, request: RequestView) -> Account | None:
        """The account of a request's unit, if it has one yet."""
        return self._accounts.get(request.tenant if self._by == "tenant" else request.adapter)

    def service(self, account: Account) -> float:
        """Service so far, divided by the unit's weight."""
        usage = account._usage
        outputs = usage.output_offset + usage.decoding * usage.clock[0]  # `output_tokens`, without the call
        return (self._input_weight * usage.admitted_tokens + self._output_weight * outputs) / account._weight

    def largest(self, limits: FairnessLimits) -> float | None:
        """U of the VTC paper: the most service by which one admission decision can be ahead of its counter.

        None when ``limits`` measures service of other units or with other weights.
        """
        measured = (limits.unit, limits.input_weight, limits.output_weight)
        if measured != (self._by, self._input_weight, self._output_weight):
            return None
        return max(self._input_weight * limits.max_prompt_tokens, self._output_weight * limits.kv_tokens)


@mypyc_attr(allow_interpreted_subclasses=True)
class Rounds:
    """Deficit round robin's books: who has credit left in this round, in which order, and when the next round begins.

    A round grants every backlogged unit ``quantum`` of service. Credit is grants less service; a unit in credit keeps
    it, and its turn, until it has spent it, also while its adapter is blocked. Credits of backlogged units stay within
    [-U, quantum], and each round grants all of them the same: hence two of them are at most 2(U + quantum) apart.
    """

    def __init__(self, units: Units, quantum: float) -> None:
        self._units = units
        self._quantum = quantum
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
            if outcome.ok:
                self.sort(account)
            elif outcome.why in ("slots", "adapter"):
                closed.add(request.adapter)
            else:
                return

    def begin(self, view: View) -> None:
        """Take in the changes. A unit that comes back after idling keeps a debt and loses a credit."""
        came, self._came = self._came, []
        for request in came:
            account = self._units.of(view, request)
            if account._place and account._usage.queue.first() is account._head:
                continue  # behind others of its unit
            credit = self._credit(account)
            if credit > 0 and not account._place:
                account._granted = self._units.service(account)
                credit = 0.0
            self._sort(account, credit)

    def pick(self, view: View, closed: set[str | None], nearest: bool = False) -> tuple[Account, RequestView] | None:
        """The first unit in credit whose next request's adapter is not blocked or closed, and that request."""
        while (first := self._lanes.pick(view, closed, nearest)) is not None:
            (account,) = first
            head = account._usage.queue.first()
            if head is not None and self._credit(account) > 0:
                return account, head.view
            self.sort(account)
        return None

    def sort(self, account: Account) -> None:
        """Sort a unit anew after its queue or its credit has changed."""
        self._sort(account, self._credit(account))

    def _sort(self, account: Account, credit: float) -> None:
        """Put a unit where it belongs: among those in credit, by turn; among the spent; nowhere if no request waits.

        It gets a turn when it comes into credit, behind all the others, and keeps it until the credit is spent.
        """
        head = account._head = account._usage.queue.first()
        place: Literal["", "credit", "spent"] = "" if head is None else "credit" if credit > 0 else "spent"
        was = account._place
        if was == "credit" and place != "credit":
            self._lanes.discard(account)
            account._turn = 0
        elif was == "spent" and place != "spent":
            del self._spent[account]
        account._place = place
        if place == "credit":
            assert head is not None
            if not account._turn:
                self._turns += 1
                account._turn = self._turns
            self._lanes.push(account, (account._turn,), head.request.adapter)
        elif place == "spent":
            self._spent[account] = None

    def renew(self, view: View) -> bool:
        """Begin the next round; False while a backlogged unit has credit, or when none is backlogged."""
        if not view.waiting:
            return False
        # Outputs grow at every step, also of units that `pick` passes over because their adapter is blocked. So the
        # first in turn may have no credit left: it is sorted anew, until one that has is the first.
        while (first := self._lanes.first()) is not None:
            account = first[1]
            if account._usage.queue.live and self._credit(account) > 0:
                return False
            self.sort(account)
        for account in [account for account in self._spent if not account._usage.queue.live]:
            self.sort(account)
        if not self._spent:
            return False
        # Now all backlogged units are in debt, and one quantum may leave all of them there. As many rounds as bring the
        # least indebted into credit begin at once. With a quantum of 4:
        #
        #     credit              a  -9    b -14    c -30
        #     + 3 quanta, or 12   a   3    b  -2    c -18      a is served next; 2 quanta would leave it at -1
        #
        # Each gets the same, so two units stay as far apart as they were, and none has credit for more than a quantum.
        credits = {account: self._credit(account) for account in self._spent}
        granted = self._quantum * (1 + max(0, int(-max(credits.values()) // self._quantum)))
        for account, credit in credits.items():
            account._granted += granted
            self._sort(account, credit + granted)
        return True

    def bound(self, limits: FairnessLimits) -> float | None:
        """2(U + quantum)."""
        largest = self._units.largest(limits)
        return None if largest is None else 2 * (largest + self._quantum)

    def _credit(self, account: Account) -> float:
        return account._granted - self._units.service(account)
