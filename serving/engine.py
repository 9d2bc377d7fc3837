"""Engine: drives a policy over the ledger, builds step plans and applies their results. It reads no clock.

One step in pseudo-code:

    plan(now):
        take in what happened: arrivals, aborts, ends of loads          ask = true if anything did
        a wake-up that the policy asked for is due                      ask = true
        reserve the KV blocks that the decoding requests need           }  where blocks are missing: evict an idle
        give part-prefilled requests their next chunk                   }  adapter (unified memory), or preempt
                                                                        }  (loratory.serving.running_first)
        if ask, and no request was preempted:
            for each action that the policy yields:                     PolicyRunner.carry_out
                the ledger carries it out or refuses it, and the policy gets the outcome
        build the plan:
            prefills    the chunks of requests admitted or continued in this step
            decodes     every decoding request
            loads       what the policy's Load and Prefetch began
            max_repeat  how many more steps like this nothing can change

    the backend runs the plan, and knows then which outputs ended

    commit(plan, result, now):
        the decode clock advances by result.steps: every decoding request has that many tokens more
        requests whose context is computed have their first token, and decode from now on     ask = true
        requests at max_tokens, or reported as finished, end and free what they hold          ask = true

The blocks of the decoding requests are reserved before the policy is asked, so those that it sees free are free: it
cannot admit a request for which another has to be preempted in the same step. With ``batching: separate`` a step
prefills or decodes, so they are reserved only if the policy admits nothing.

With ``async_scheduling`` step k + 1 is planned when step k begins, and committed when it has ended:

    plan(k + 1):   take step k as done: the clock advances, its prefills decode; requests that it gives their last
                   token are *seated*: they keep their place and their blocks, but compute nothing and use no adapter
                   then as above
    commit(k):     times, events, and the requests that ended. One that ended by a stop token is in plan k + 1 as well,
                   which computes a token for it in vain
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush

from loratory.errors import InputError, PolicyError
from loratory.serving.adapter_changes import AdapterChanges, Answer
from loratory.serving.compiling import mypyc_attr
from loratory.serving.config import EngineConfig
from loratory.serving.engine_adapters import Roster
from loratory.serving.engine_loads import EngineLoads
from loratory.serving.engine_view import View
from loratory.serving.event_dispatch import Announcer
from loratory.serving.events import Arrived, Handler, HostEvicted, PolicySwapped, Served, Sink, Stepped
from loratory.serving.eviction import SCORERS
from loratory.serving.ledger import Ledger
from loratory.serving.lora import Adapter
from loratory.serving.plan import CostView, Prefill, StepPlan, StepResult
from loratory.serving.policy import PolicyLike, policy_name
from loratory.serving.policy_handover import hand_over
from loratory.serving.policy_members import Members, members_of
from loratory.serving.policy_runner import PolicyRunner
from loratory.serving.request import Request, Status
from loratory.serving.running_first import RunningFirst
from loratory.serving.sequence import Sequence
from loratory.serving.step_shape import step_shape
from loratory.serving.views import RequestViews
from loratory.serving.want import look_ahead

_new = tuple.__new__
"""Makes a named tuple in half the time that its class takes."""

Remake = Callable[[], PolicyLike]
"""Makes a fresh policy."""

_MOST_MAKERS = 9
"""Of so many policies at most the engine remembers how to make them: the first, and those that were put in last."""


@dataclass(slots=True)
class _Ahead:
    """A plan that is not committed yet. ``reached``: the requests that it gives their last token; None until the next
    step is planned."""

    plan: StepPlan
    reached: list[Sequence] | None = None


@mypyc_attr(allow_interpreted_subclasses=True)
class Engine:
    """One model replica's scheduler, sans I/O: time is an argument, and a backend runs the plans.

        plan = engine.plan(now)                 # None when there is nothing to do
        ...the backend runs the plan...
        engine.commit(plan, result, now)

    Between the two a backend may call `submit`, `abort`, `loaded`, `load_failed`; they take effect at the next plan.
    Between two steps it may `swap` the policy and add and remove adapters. ``sink`` receives every event, or those it
    ``wants``. Raises `InputError` for a policy that has a member which cannot be meant (`members_of`), and
    `PolicyError` from `plan` when the policy raises or never stops yielding. ``remake`` makes a fresh policy like
    ``policy``, to which the engine can go back when one that was put in later fails. ``ledger``: one that another
    engine has left (`loratory.serving.engine_copy`), in place of a fresh one for ``config`` and ``adapters``.
    """

    def __init__(
        self,
        config: EngineConfig,
        adapters: Iterable[Adapter] | Roster,
        policy: PolicyLike,
        cost: CostView,
        kv_bytes_per_token: int | None = None,
        sink: Sink | Handler | None = None,
        remake: Remake | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self.ledger = Ledger(config, adapters, cost, kv_bytes_per_token) if ledger is None else ledger
        members = members_of(policy)
        self._sink = sink
        self._makers: list[Remake | None] = [remake]
        """What makes a fresh policy like each that was put in, the one in force last."""
        self._announcer = Announcer(sink, policy, members)
        self._runner = PolicyRunner(self.ledger, self._announcer, members.victim)
        self._loads = EngineLoads(self.ledger, self._announcer, self._runner)
        if (tell := self._announcer.sink_handler(HostEvicted)) is not None:
            self.ledger.host_cache.tell = lambda name: tell(HostEvicted(self.ledger.now, name))
        self.adapters = AdapterChanges(
            self.ledger, self._runner, self._announcer, lambda each: self._inbox.append(each)
        )
        """What an operator may order about adapters."""
        self._seat(policy, members)
        self._separate = config.batching == "separate"
        self._async = bool(config.async_scheduling)
        self._ahead: list[_Ahead] = []
        """With async scheduling: the plans that are not committed, at most two, in order."""
        self._inbox: list[Request | Callable[[], None]] = []
        """What happened since the last plan, in order: requests that arrived, and calls that take in all else."""
        self._arriving: set[str] = set()
        """Ids of the requests in the inbox."""
        self._submitted = 0
        self.before_consult: Callable[[], None] | None = None
        """Called just before the policy is asked."""
        self._finishes: list[tuple[int, int, Sequence, int]] = []
        """A heap of (decode clock at which a request reaches max_tokens, number, request, its ``joins`` then). Entries
        of requests that have been preempted or held since are out of date."""
        self._finishes_pushed = 0

    def _seat(self, policy: PolicyLike, members: Members) -> None:
        """The announcer's policy decides from now on."""
        announcer = self._announcer
        self.policy = policy
        evict = self.ledger.config.eviction if members.evict is None else members.evict
        self.view = View(self.ledger, SCORERS[evict] if isinstance(evict, str) else announcer.scorer(evict))
        self._prefetch = members.prefetch
        self._only_waiting = members.only_waiting and not members.prefetch
        self._running_first = RunningFirst(self.ledger, self._runner, self.view)
        self._tell_stepped = announcer.handler(Stepped)
        self._tell_arrived = announcer.handler(Arrived)
        self._tell_served = announcer.handler(Served)

    # -- what a backend tells the engine -------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """A request arrived; its ``arrival`` is at or before the time of the next plan.

        Raises `InputError` when its id is that of a request in flight.
        """
        request_id = request.request_id
        if request_id in self.ledger.sequences or request_id in self._arriving:
            raise InputError(f"request id {request_id!r} is in use: ids must be unique among requests in flight")
        self._arriving.add(request_id)
        self._submitted += 1
        self._inbox.append(request)

    def abort(self, request_id: str, why: str = "aborted by the client", status: Status = "aborted") -> None:
        """A client went away, or a request is given up. Unknown or ended requests are ignored."""
        self._inbox.append(partial(self._runner.end_by_id, request_id, status, why))

    def loaded(self, adapter: str, prefetch: bool = False) -> None:
        """An asynchronous load (or prefetch) is done."""
        self._inbox.append(partial(self._loads.done, adapter, prefetch))

    def load_failed(self, adapter: str, why: str, prefetch: bool = False) -> None:
        """A load failed: the requests that wait for the adapter, or run with it, fail as well.

        A failed prefetch fails no request: the adapter is loaded when its turn comes.
        """
        self._inbox.append(partial(self._loads.failed, adapter, why, prefetch))

    def add_adapter(self, adapter: Adapter, now: float) -> None:
        """The engine knows one more adapter from second ``now`` on. Raises `InputError` for one it could not serve, and
        for a name or an id that means another here, or ever meant one."""
        self._turn_to(now)
        self.adapters.add(adapter)

    def limit_seqs(self, max_num_seqs: int, answer: Answer) -> None:
        """Run at most so many requests at once; at most the ``max_num_seqs`` that the engine was made for."""
        self._inbox.append(lambda: answer(self.ledger.limit_seqs(max_num_seqs)))

    def expect_load(self, adapter: str, eta: float) -> None:
        """A load in flight will end at about second ``eta``; policies see it as `AdapterView.eta`."""
        self._loads.expect(adapter, eta)

    def expect_loads(self, plan: StepPlan, now: float) -> None:
        """The plan's loads that no step waits for begin at ``now``; the cost model predicts when they end."""
        self._loads.expect_all(plan, now)

    @property
    def unfinished(self) -> int:
        """Requests submitted that have no final status yet."""
        return self._submitted - self.ledger.ended

    def unfinished_requests(self) -> list[Request]:
        """Those, in the order in which they arrived here."""
        taken_in = [sequence.request for sequence in self.ledger.sequences.values()]
        return taken_in + [message for message in self._inbox if isinstance(message, Request)]

    @property
    def idle_plans(self) -> int:
        """Plans since a request last got a token or ended; it grows while a policy stops progress."""
        return self._runner.idle_plans

    @property
    def refusals(self) -> dict[str, dict[str, int]]:
        """How often the ledger refused the policy so far: by action (``admit``), by word of refusal (``kv``)."""
        return self._runner.refusals()

    @property
    def wake_at(self) -> float | None:
        """The earliest second at which the policy asked to be called, or None."""
        times = self._runner.wake_times
        return times[0] if times else None

    def swap(self, policy: PolicyLike, now: float, remake: Remake | None = None) -> None:
        """Another policy decides from the next plan on. It is told of what waits and runs (`hand_over`).

        When it fails later, and the one before it can be made again, that one returns in the same step, and no request
        is lost (`PolicySwapped`). Raises `InputError` for a policy that has a member which cannot be meant; then the
        one in force stays.
        """
        members = members_of(policy)
        self._turn_to(now)
        self._makers.append(remake)
        if len(self._makers) > _MOST_MAKERS:
            del self._makers[1]
        self._put_in(policy, members, "")

    def put_back(self, why: str) -> bool:
        """Put the policy before the one in force back, because that failed; ``why`` says how. False: there is none."""
        while len(self._makers) > 1 and (make := self._makers[-2]) is not None:
            del self._makers[-1]
            try:
                policy = make()
                members = members_of(policy)
            except (PolicyError, InputError):
                continue  # its file has changed meanwhile: the one before it
            self._put_in(policy, members, why)
            self._runner.idle_plans = 0
            return True
        return False

    def _put_in(self, policy: PolicyLike, members: Members, why: str) -> None:
        announcer = self._announcer = Announcer(self._sink, policy, members)
        announcer.forgiving = len(self._makers) > 1 and self._makers[-2] is not None
        self._runner.seat(announcer, members.victim)
        self._loads.seat(announcer)
        self.adapters.seat(announcer)
        self._seat(policy, members)
        if (tell := announcer.sink_handler(PolicySwapped)) is not None:
            tell(PolicySwapped(self.ledger.now, policy_name(policy), why))
        hand_over(self.ledger, announcer)

    def _turn_to(self, now: float) -> None:
        """It is second ``now``, if the last step has not ended later."""
        if now > self.ledger.now:
            self.ledger.now = now

    def dismiss_policy(self) -> None:
        """The policy has failed: from now on it gets no event, and the engine cannot plan any more."""
        self._tell_arrived = self._announcer.sink_handler(Arrived)
        self._loads.dismiss_policy()
        self._runner.dismiss_policy()

    def end_all(self, now: float, status: Status, why: str) -> None:
        """End every unfinished request: the run is over."""
        self._take_in(now)
        for sequence in list(self.ledger.sequences.values()):
            self._runner.end(sequence, status, why)

    # -- plan ----------------------------------------------------------------------------------------------------

    def plan(self, now: float) -> StepPlan | None:
        """The next step, from second ``now`` on, or None when there is nothing to do."""
        ledger, runner = self.ledger, self._runner
        ledger.now = now
        if self._ahead:
            self._look_past(self._ahead[-1])
        if self._inbox:
            self._take_in(now)
        if ledger.leaving:
            self.adapters.settle()
        if self._announcer.failure is not None:
            self.put_back(str(self._announcer.failure))
        if runner.wake_times or runner.wake_clocks:
            runner.wake_up(now)
        ledger.begin_step()
        kept = True  # whether no running request was preempted; else the policy is asked at the next plan
        if self._separate:
            if ledger.partial:
                kept = self._running_first.extend_each()
        elif ledger.kv.reserve():
            ledger.token_budget -= ledger.kv.decoding
            if ledger.partial:
                kept = self._running_first.extend_partial()
        else:
            kept = self._running_first.in_order()
        if runner.ask and kept:
            runner.ask = False
            if ledger.waiting.by_ticket or not self._only_waiting:
                self._consult()
        if self._separate and not ledger.prefills and not self._running_first.reserve_decode():
            runner.ask = True
        plan = self._build()
        if plan is None:
            if ledger.held:
                self._resume()
            # All that could run is preempted or held: vLLM makes such an empty step, too, and it takes no time.
            return None if kept or self._ahead else self.plan(now)
        if self._async:
            self._ahead.append(_Ahead(plan))
        return plan

    def _consult(self) -> None:
        """Ask the policy; where it fails and another can take over, ask that one in the same step."""
        if self.before_consult is not None:
            self.before_consult()
        while True:
            try:
                self._runner.consult(self.view)
                if self._prefetch:
                    self._runner.carry_out(look_ahead(self.view, self._prefetch))
                return
            except PolicyError as error:
                if not self._announcer.forgiving or not self.put_back(str(error)):
                    raise
                self._runner.ask = False

    def _release(self) -> None:
        """Requests that were held for a step decode again."""
        held = list(self.ledger.held.values())
        self.ledger.release()
        for sequence in held:
            self._push_finish(sequence)

    def _resume(self) -> None:
        """The same where no step is made: what engine and backend have noted of their ends still holds."""
        held = list(self.ledger.held.values())
        self.ledger.release()
        for sequence in held:
            sequence.joins -= 1

    def _take_in(self, now: float) -> None:
        """Take in what happened since the last plan."""
        self.ledger.now = now
        self._runner.ask = True
        self._arriving.clear()
        inbox, self._inbox = self._inbox, []
        messages = iter(inbox)
        try:
            for message in messages:
                if isinstance(message, Request):
                    self._arrived(message)
                else:
                    message()
        except BaseException:
            self._inbox[:0] = messages  # the policy failed at one; `end_all` takes in the others
            raise

    def _arrived(self, request: Request) -> None:
        sequence, refusal = self.ledger.submit(request)
        if refusal:
            self._runner.turn_away(sequence, refusal)
        elif self._tell_arrived is not None:
            self._tell_arrived(_new(Arrived, (self.ledger.now, sequence.view)))

    def _look_past(self, ahead: _Ahead) -> None:
        """The step in flight is taken as done: the next one is planned before its outcome is known."""
        ahead.reached = self._compute(ahead.plan, 1, ())
        self.ledger.looks_past = True
        for sequence in ahead.reached:
            self.ledger.seat(sequence)
            self._runner.ask = True  # its adapter may go

    def _build(self) -> StepPlan | None:
        """The plan for what has been admitted, reserved and loaded."""
        ledger, runner = self.ledger, self._runner
        kv = ledger.kv
        decodes = kv.decoding if kv.reserved else 0
        if not decodes:
            kv.reserved = 0  # no decode step follows, whose commit would reset it
        loads = ledger.slots.take_loads() if ledger.slots.loads else ()
        runner.idle_plans += 1
        repeat = 0
        prefills: tuple[Prefill, ...] = ()
        if ledger.prefills:
            prefills = tuple(ledger.prefills.values())
        elif decodes:
            if not runner.ask and not (loads and ledger.slots.sync):
                repeat = self._horizon() - 1
        elif not loads:
            return None
        shape = step_shape(ledger, prefills, decodes)
        wake_at = runner.wake_times[0] if runner.wake_times else None
        decoding = ledger.decoding.values() if decodes else ()
        return StepPlan(prefills, decodes, decoding, loads, repeat, wake_at, shape, ledger.epoch)

    def _horizon(self) -> int:
        """Decode steps until a request reaches max_tokens, the policy wants to be asked, or KV blocks run out."""
        ledger, finishes, wakes = self.ledger, self._finishes, self._runner.wake_clocks
        clock = ledger.clock[0]
        while True:
            at, _, sequence, joins = finishes[0]
            if sequence.decoding and sequence.joins == joins:
                break
            heappop(finishes)
        if wakes and wakes[0] < at:
            at = wakes[0]
        return ledger.kv.steps(at - clock if at > clock else 1)

    # -- commit --------------------------------------------------------------------------------------------------

    def commit(self, plan: StepPlan, result: StepResult, now: float) -> None:
        """Apply what a backend did with the last plan, which it finished at second ``now``."""
        ledger, runner = self.ledger, self._runner
        steps, load_s, failed = result.steps, result.load_s, result.failed
        start = ledger.now
        ledger.now = now
        if plan.loads:
            self._loads.begun(plan, start, load_s)
        ahead = self._ahead.pop(0) if self._ahead else None
        tell_stepped = self._tell_stepped
        if tell_stepped is not None and (plan.prefills or plan.decode_count or now > start):
            slots = ledger.slots  # `_counts`, without the call
            waiting, running, resident = len(ledger.waiting.by_ticket), len(ledger.running), len(slots.on_gpu)
            loading, used = len(slots.loading), ledger.kv.used
            row = (start, now, steps, plan.shape, waiting, running, resident, loading, used, load_s)
            tell_stepped(_new(Stepped, row))
        ledger.looks_past = False
        if ahead is None or ahead.reached is None:
            ended = self._compute(plan, steps, failed or ())
        else:  # the next step is planned already
            ended = [sequence for sequence in ahead.reached if sequence.ended_at is None]
        if plan.prefills:
            self._first_tokens(plan, start, load_s, failed or ())
        if failed:
            ended = [sequence for sequence in ended if sequence.request_id not in failed]
            for request_id, why in failed.items():
                runner.end_by_id(request_id, "failed", why)
        for sequence in ended:
            runner.end(sequence, "completed", "length")
        for request_id in result.finished:
            if (stopped := ledger.sequences.get(request_id)) is not None:  # `end_by_id`, without the call
                runner.end(stopped, "completed", "stop")

    def repeat(self, plan: StepPlan, steps: int, now: float) -> None:
        """With async scheduling: ``steps`` identical steps of the plan in flight are done, and one more follows.

        At most ``plan.max_repeat`` steps. The engine is asked for the next plan when the last one begins.
        """
        ledger = self.ledger
        start, ledger.now = ledger.now, now
        shape = plan.shape
        if self._tell_stepped is not None:
            self._tell_stepped(Stepped(start, now, steps, shape, *self._counts(), 0.0))
        ledger.kv.advance(steps)
        self._runner.idle_plans = 0
        if self._tell_served is not None:
            self._served(plan, steps)
        plan.max_repeat -= steps
        plan.shape = shape._replace(kv_tokens=shape.kv_tokens + steps * shape.decode_seqs)
        reserved = ledger.kv.reserve()
        assert reserved  # `max_repeat` has counted the blocks

    @property
    def must_plan(self) -> bool:
        """Whether something has happened since the last plan that the next one has to see."""
        return self._runner.ask or bool(self._inbox)

    def _counts(self) -> tuple[int, int, int, int, int]:
        """Of `Stepped`: waiting and running requests, adapters on the GPU and loading, KV blocks in use."""
        ledger = self.ledger
        slots = ledger.slots
        waiting, running = len(ledger.waiting.by_ticket), len(ledger.running)
        return waiting, running, len(slots.on_gpu), len(slots.loading), ledger.kv.used

    def _compute(self, plan: StepPlan, steps: int, failed: Collection[str]) -> list[Sequence]:
        """The plan's tokens are computed. Returns the requests that have all their tokens now."""
        ledger, finishes = self.ledger, self._finishes
        if plan.decode_count:
            ledger.kv.advance(steps)
            self._runner.idle_plans = 0
        if self._tell_served is not None and plan.computes:
            self._served(plan, steps)
        reached: list[Sequence] = []
        clock = ledger.clock[0]
        if plan.prefills:
            self._runner.ask = True
            for prefill in plan.prefills:
                sequence = prefill.sequence
                if not prefill.completes or (failed and sequence.request_id in failed):
                    continue
                if sequence.ended_at is not None:  # by the step before, after this one was planned
                    continue
                self._runner.idle_plans = 0
                ledger.begin_decode(sequence)
                if sequence.finish_clock <= clock:
                    reached.append(sequence)
                else:  # `_push_finish`, without the call
                    self._finishes_pushed += 1
                    heappush(finishes, (sequence.finish_clock, self._finishes_pushed, sequence, sequence.joins))
            ledger.prefills.clear()
        if ledger.held:
            self._release()
        if plan.decode_count:
            while finishes and finishes[0][0] <= clock:
                _, _, sequence, joins = heappop(finishes)
                if sequence.decoding and sequence.joins == joins:
                    reached.append(sequence)
        return reached

    def _push_finish(self, sequence: Sequence) -> None:
        self._finishes_pushed += 1
        heappush(self._finishes, (sequence.finish_clock, self._finishes_pushed, sequence, sequence.joins))

    def _first_tokens(self, plan: StepPlan, start: float, load_s: float, failed: Collection[str]) -> None:
        """Requests whose context is complete have a token, unless they failed: note the time."""
        ledger = self.ledger
        for prefill in plan.prefills:
            sequence = prefill.sequence
            if load_s and sequence.admitted_at == start and sequence.admissions == 1:
                sequence.admitted_at += load_s
                sequence.load_wait_s += load_s
            if not prefill.completes or sequence.ended_at is not None or (failed and sequence.request_id in failed):
                continue
            if sequence.preempted_at is not None:
                ledger.settle_preemption(sequence)
                if sequence.state == "waiting":  # preempted again by the plan that was made ahead
                    sequence.preempted_at = ledger.now
            if sequence.first_token_at is None:
                sequence.first_token_at = ledger.now

    def _served(self, plan: StepPlan, steps: int) -> None:
        assert self._tell_served is not None
        computed = [prefill for prefill in plan.prefills if prefill.sequence.ended_at is None]
        prefills = tuple([(prefill.sequence.view, prefill.tokens) for prefill in computed])
        decode = RequestViews(self.ledger.decoding) if plan.decode_count else ()
        self._tell_served(_new(Served, (self.ledger.now, prefills, decode, steps if plan.decode_count else 0)))
