"""PolicyRunner: asks a policy, has the ledger carry out what it yields, and sends it the outcome of each action."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, NoReturn

from loratory.errors import PolicyError, a_or_an, shortened
from loratory.serving.action_values import exact
from loratory.serving.actions import OK, REFUSED, Admit, Evict, Load, Outcome, Preempt, Prefetch, Reject, Wake
from loratory.serving.engine_view import View
from loratory.serving.event_dispatch import Announcer
from loratory.serving.events import Admitted, Arrived, Decided, Ended, Evicted, Preempted
from loratory.serving.ledger import Ledger
from loratory.serving.policy_asks import answer_all, schedule_of, victim_of
from loratory.serving.request import Status
from loratory.serving.sequence import Sequence
from loratory.serving.views import RequestView

_new = tuple.__new__
"""Makes a named tuple in half the time that its class takes."""

_VICTIM = "return a running request of view.running, or None"


class PolicyRunner:
    """Carries out a policy's actions, and what the engine does on its own to requests and adapters."""

    def __init__(self, ledger: Ledger, announcer: Announcer, victim: Callable[[View], Any] | None) -> None:
        self.ledger = ledger
        self.ask = True
        """Whether something has happened that the policy has not been asked about."""
        self.idle_plans = 0
        """See `Engine.idle_plans`."""
        self.wake_times: list[float] = []
        """Heap of the seconds at which the policy wants to be asked."""
        self.wake_clocks: list[int] = []
        """Heap of the readings of the decode clock at which it wants to be asked."""
        self._refused: Counter[tuple[type, str | None]] = Counter()
        self._limit = 0
        self.seat(announcer, victim)
        self._apply: dict[type, Callable[[Any], Outcome]] = {
            Admit: self._admit,
            Load: lambda action: self._to_named(action.adapter, ledger.load),
            Evict: lambda action: self._to_named(action.adapter, self.evict),
            Preempt: self._preempt,
            Reject: self._reject,
            Prefetch: lambda action: self._to_named(action.adapter, ledger.prefetch),
            Wake: self._wake,
        }

    def seat(self, announcer: Announcer, victim: Callable[[View], Any] | None) -> None:
        """From now on ask and tell this announcer's policy, at the next plan first; ``victim``: its method."""
        self.announcer = announcer
        self._victim = victim
        self._tell_admitted = announcer.handler(Admitted)
        self._tell_ended = announcer.handler(Ended)
        self._tell_preempted = announcer.handler(Preempted)
        self._tell_evicted = announcer.handler(Evicted)
        self._tell_decided = announcer.handler(Decided)
        self.ask = True
        self.wake_times.clear()
        self.wake_clocks.clear()

    def consult(self, view: View) -> None:
        """Ask the policy what to do, and do it. Raises `PolicyError` when the policy raises or never stops yielding."""
        try:
            schedule = schedule_of(self.announcer.policy, view)
        except BaseException as error:
            self.announcer.blame(self.ledger.now, error)
        self.carry_out(schedule)

    def carry_out(self, schedule: Any) -> None:
        """Carry out the actions that ``schedule`` yields, and send it the outcome of each, until it ends."""
        announcer, now = self.announcer, self.ledger.now
        try:
            send = schedule.send
        except AttributeError:
            what = f"schedule() returned {type(schedule).__name__}, not a generator: yield actions in it"
            raise announcer.error(now, what) from None
        self._limit = 1000  # as long as it suffices, `_action_limit` need not count requests and adapters
        answer_all(send, self, now)

    def blame(self, now: float, error: BaseException) -> NoReturn:
        """Raise what an exception out of the policy's code means."""
        self.announcer.blame(now, error)

    def answer(self, now: float, action: Any, number: int) -> Outcome:
        """Carry out one action, the one of this ``number`` since the policy was asked."""
        announcer = self.announcer
        kind = type(action)
        apply = self._apply.get(kind)
        if apply is None:
            raise announcer.error(now, f"it yielded {a_or_an(kind.__name__)}, which is no action")
        if kind is not Admit or len(action) != 2 or action[1] is not None or type(action[0]) is not RequestView:
            try:
                action = exact(action)
            except (TypeError, ValueError, AttributeError, OverflowError) as error:
                raise announcer.error(now, f"a {kind.__name__} it yielded is malformed: {error}") from error
            except BaseException as error:
                announcer.blame(now, error, f"a value of a {kind.__name__} it yielded")
        outcome = apply(action)
        if outcome is not OK:
            self._refused[kind, outcome.why] += 1
        if self._tell_decided is not None:
            self._tell_decided(_new(Decided, (now, action, outcome)))
        if number > self._limit:
            self._limit = self._action_limit(number, kind)
        return outcome

    def _action_limit(self, actions: int, kind: type) -> int:
        """The most actions of one call that could make sense; raises `PolicyError` when the policy yielded more."""
        ledger = self.ledger
        limit = 1000 + 10 * (len(ledger.sequences) + len(ledger.adapters))
        if actions > limit:
            what = (
                f"it yielded {actions} actions in one call with {len(ledger.waiting)} requests waiting and "
                f"{len(ledger.running)} running, the last a {kind.__name__}: return when nothing more can be done"
            )
            raise self.announcer.error(ledger.now, what)
        return limit

    def dismiss_policy(self) -> None:
        """The policy has failed: it gets no event any more."""
        self._tell_ended = self.announcer.sink_handler(Ended)

    def refusals(self) -> dict[str, dict[str, int]]:
        """See `Engine.refusals`."""
        refusals: dict[str, dict[str, int]] = {}
        for (kind, why), number in sorted(self._refused.items(), key=lambda item: -item[1]):
            refusals.setdefault(kind.__name__.lower(), {})[str(why)] = number
        return refusals

    # -- what the engine does on its own -------------------------------------------------------------------------

    def end(self, sequence: Sequence, status: Status, why: str) -> None:
        """Give a request its final status."""
        if self.ledger.looks_past and status != "completed":
            self.ledger.take_back_token(sequence)
        self.ledger.end(sequence, status, why)
        self.idle_plans = 0
        self.ask = True
        if self._tell_ended is not None:
            self._tell_ended(_new(Ended, (self.ledger.now, sequence.view, status, why)))
        del sequence.view  # a cycle with its view would wait for the garbage collector

    def turn_away(self, sequence: Sequence, why: str) -> None:
        """Reject a request that can never run. The policy gets no event of it, because it never waits."""
        now, announcer = self.ledger.now, self.announcer
        self.ledger.end(sequence, "rejected", why)
        self.idle_plans = 0
        if (tell := announcer.sink_handler(Arrived)) is not None:
            tell(Arrived(now, sequence.view))
        if (tell := announcer.sink_handler(Ended)) is not None:
            tell(Ended(now, sequence.view, "rejected", why))
        del sequence.view

    def end_by_id(self, request_id: str, status: Status, why: str) -> None:
        """The same by the request's id; unknown and ended requests are ignored."""
        sequence = self.ledger.sequences.get(request_id)
        if sequence is not None:
            self.end(sequence, status, why)

    def preempt(self, view: RequestView, why: str) -> Outcome:
        """Preempt a running request."""
        outcome = self.ledger.preempt(view)
        if outcome.ok:
            self.ask = True
            if self._tell_preempted is not None:
                self._tell_preempted(Preempted(self.ledger.now, view, why))
        return outcome

    def preempt_one(self, view: View) -> Sequence:
        """Free KV blocks: preempt the request that the policy names, or else the last one admitted (vLLM's rule).

        Returns the request that was preempted.
        """
        announcer, now = self.announcer, self.ledger.now
        if self._victim is not None and announcer.failure is None:
            named = None
            try:
                named = victim_of(self._victim, view)
                if named is not None and not self._runs(named):
                    raise announcer.error(now, f"its victim() returned {_told(named)}: {_VICTIM}")
            except BaseException as error:
                announcer.forgive(now, error, "its victim()")
                named = None
            if named is not None and self.preempt(named, "kv"):
                return self.ledger.sequences[named.request_id]
        last = next(reversed(self.ledger.running.values()))
        self.preempt(last.view, "kv")
        return last

    def _runs(self, named: Any) -> bool:
        """Whether it is a request that runs."""
        return type(named) is RequestView and named.request_id in self.ledger.running

    def evict(self, name: str) -> Outcome:
        """Evict an adapter."""
        outcome = self.ledger.evict(name)
        if outcome.ok and self._tell_evicted is not None:
            self._tell_evicted(Evicted(self.ledger.now, name))
        return outcome

    def evict_for_kv(self, view: View) -> bool:
        """With unified memory, free the blocks of the idle adapter that scores lowest; False when there is none."""
        ledger = self.ledger
        if ledger.config.memory != "unified" or not ledger.slots.idle:
            return False
        views = [state.view for state in ledger.slots.idle.values()]
        try:
            evicted = min(views, key=lambda adapter: (view.scorer(adapter, view), adapter.lora_int_id))
        except PolicyError as error:
            self.announcer.forgive(ledger.now, error, "its evict()")
            evicted = min(views, key=lambda adapter: (adapter.last_used, adapter.lora_int_id))
        assert evicted.name is not None
        return self.evict(evicted.name).ok

    def wake_up(self, now: float) -> None:
        """Ask the policy again if a second or a decode step that it named has come."""
        while self.wake_times and self.wake_times[0] <= now:
            heappop(self.wake_times)
            self.ask = True
        while self.wake_clocks and self.wake_clocks[0] <= self.ledger.clock[0]:
            heappop(self.wake_clocks)
            self.ask = True

    # -- what the policy yields ----------------------------------------------------------------------------------

    def _admit(self, action: Any) -> Outcome:
        request, tokens = action
        if tokens is not None and type(tokens) is not int:
            tokens = 0  # no number of tokens, which is refused ("budget")
        outcome = self.ledger.admit(request, tokens)
        if self._tell_admitted is not None and outcome.ok:
            sequence = self.ledger.sequences[request.request_id]
            self._tell_admitted(_new(Admitted, (self.ledger.now, sequence.view, sequence.hit)))
        return outcome

    def _to_named(self, name: str | None, apply: Callable[[str], Outcome]) -> Outcome:
        """What is done to an adapter; what was no name (`exact`) is None, which is no adapter's."""
        return REFUSED["unknown"] if name is None else apply(name)

    def _preempt(self, action: Preempt) -> Outcome:
        request = action.request
        if type(request) is RequestView and request.request_id in self.ledger.seated:
            return REFUSED["in_use"]  # its last token is being computed
        return self.preempt(request, "policy")

    def _reject(self, action: Reject) -> Outcome:
        sequence = self.ledger.in_state(action.request, "waiting")
        if sequence is None:
            return REFUSED["unknown"]
        self.end(sequence, "rejected", action.why)
        return OK

    def _wake(self, action: Wake) -> Outcome:
        at, steps = action.at, action.after_steps
        if (at is None and steps is None) or (at is not None and not at > self.ledger.now):
            return REFUSED["unknown"]
        if steps is not None and steps < 1:
            return REFUSED["unknown"]
        if at is not None and at not in self.wake_times[:1]:
            heappush(self.wake_times, at)
        if steps is not None:
            clock = self.ledger.clock[0] + steps
            if clock not in self.wake_clocks[:1]:
                heappush(self.wake_clocks, clock)
        return OK


def _told(named: Any) -> str:
    """What a policy named, which is no running request."""
    if type(named) is RequestView:
        return f"the request {shortened(repr(named.request_id), 60)}, which does not run"
    return shortened(repr(named), 60) if type(named) in (str, int) else f"a value of type {type(named).__name__}"
