"""Engine: drives a policy over the ledger, builds step plans and applies their results. It reads no clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from typing import Any

from serving.config import EngineConfig
from serving.errors import InputError, PolicyError
from serving.events import (
    Admitted,
    Arrived,
    Decided,
    Ended,
    Event,
    Evicted,
    Loaded,
    LoadStarted,
    Preempted,
    Served,
    Sink,
    Stepped,
)
from serving.ledger import Ledger
from serving.lora import Adapter
from serving.plan import BatchShape, Prefill, StepPlan, StepResult
from serving.policy import (
    OK,
    REFUSED,
    SCORERS,
    Admit,
    CostView,
    Evict,
    Load,
    Outcome,
    Policy,
    Preempt,
    Prefetch,
    Reject,
    RequestViews,
    View,
    Wake,
    look_ahead,
)
from serving.request import Request, Status
from serving.sequence import Sequence


class Engine:
    """One model replica's scheduler, sans I/O: time is an argument, and a backend runs the plans.

        plan = engine.plan(now)                 # None when there is nothing to do
        ...the backend runs the plan...
        engine.commit(plan, result, now)

    Between the two a backend may call `submit`, `abort`, `loaded`, `load_failed`; they take effect at the next plan.
    ``sink`` receives every event. Raises `PolicyError` from `plan` when the policy raises or never stops yielding.
    """

    def __init__(
        self,
        config: EngineConfig,
        adapters: Iterable[Adapter],
        policy: Policy,
        cost: CostView,
        kv_bytes_per_token: int | None = None,
        sink: Sink | None = None,
    ) -> None:
        scorer = SCORERS.get(getattr(policy, "evict", None) or "")
        self.ledger = Ledger(config, adapters, cost, kv_bytes_per_token, scorer)
        self.policy = policy
        self.view = View(self.ledger)
        self.sink = sink
        self.unfinished = 0
        self.idle_plans = 0
        """Plans since a request last got a token or ended: a policy that stops progress makes it grow."""
        self._observe: Callable[[Event], None] | None = getattr(policy, "observe", None)
        self._victim: Callable[[View], Any] | None = getattr(policy, "victim", None)
        self._prefetch = int(getattr(policy, "prefetch", 0) or 0)
        self._tells = sink is not None or self._observe is not None
        self._inbox: list[Callable[[], None] | Request] = []
        self._ask = True
        self._finishes: list[tuple[int, int, Sequence, int]] = []
        self._arriving: set[str] = set()
        self._admission = 0
        self._wake_times: list[float] = []
        self._wake_clocks: list[int] = []
        self._planned: tuple[float, int, int, int, int, int] = (0.0, 0, 0, 0, 0, 0)
        self._apply: dict[type, Callable[[Any], Outcome]] = {
            Admit: self._admit,
            Load: self._load,
            Evict: self._evict,
            Preempt: self._preempt_action,
            Reject: self._reject,
            Prefetch: self._prefetch_action,
            Wake: self._wake,
        }

    # -- what a backend tells the engine -------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """A request arrived; its ``arrival`` is at or before the time of the next plan.

        Raises `InputError` when its id is that of a request in flight.
        """
        if request.request_id in self.ledger.sequences or request.request_id in self._arriving:
            raise InputError(
                f"request id {request.request_id!r} is in use: ids must be unique among requests in flight"
            )
        self._arriving.add(request.request_id)
        self.unfinished += 1
        self._inbox.append(request)

    def abort(self, request_id: str, why: str = "aborted by the client") -> None:
        """A client went away. Unknown or ended requests are ignored."""
        self._inbox.append(lambda: self._end_by_id(request_id, "aborted", why))

    def loaded(self, adapter: str, prefetch: bool = False) -> None:
        """An asynchronous load (or prefetch) is done."""
        self._inbox.append(lambda: self._loaded(adapter, prefetch))

    def load_failed(self, adapter: str, why: str) -> None:
        """A load came to nothing: the requests that wait for the adapter fail, and nothing else."""
        self._inbox.append(lambda: self._load_failed(adapter, why))

    def expect_load(self, adapter: str, eta: float) -> None:
        """A load in flight will be done at about second ``eta``; shown to the policy."""
        self.ledger.adapters[adapter].eta = eta

    @property
    def wake_at(self) -> float | None:
        """The earliest second at which the policy asked to be called, or None."""
        return self._wake_times[0] if self._wake_times else None

    def end_all(self, now: float, status: Status, why: Callable[[Sequence], str]) -> None:
        """End every unfinished request: the run is over."""
        self._take_in(now)
        for sequence in list(self.ledger.sequences.values()):
            self._end(sequence, status, why(sequence))

    # -- plan ----------------------------------------------------------------------------------------------------

    def plan(self, now: float) -> StepPlan | None:
        """What to do from second ``now``: takes in what happened, asks the policy, returns the next step or None."""
        ledger = self.ledger
        self._take_in(now)
        while self._wake_times and self._wake_times[0] <= now:
            heappop(self._wake_times)
            self._ask = True
        while self._wake_clocks and self._wake_clocks[0] <= ledger.clock[0]:
            heappop(self._wake_clocks)
            self._ask = True
        separate = ledger.config.batching == "separate"
        ledger.token_budget = ledger.config.max_num_batched_tokens
        kept = separate or self._reserve_decode()
        if ledger.partial:
            kept = self._extend_partial() and kept
        if self._ask and kept:
            self._ask = False
            self._consult()
        if separate and not ledger.prefills and not self._reserve_decode():
            self._ask = True
        return self._build()

    def _take_in(self, now: float) -> None:
        """Arrivals, aborts and finished loads since the last plan."""
        ledger = self.ledger
        ledger.now = now
        if not self._inbox:
            return
        inbox, self._inbox = self._inbox, []
        self._arriving.clear()
        self._ask = True
        for item in inbox:
            if isinstance(item, Request):
                sequence, refusal = ledger.submit(item)
                if self._tells:
                    self._tell(Arrived(now, sequence.view))
                if refusal:
                    self._end(sequence, "rejected", refusal)
            else:
                item()

    def _reserve_decode(self) -> bool:
        """Take the KV blocks the decode step needs, preempting where they are missing; False when it did."""
        ledger = self.ledger
        kv = ledger.kv
        kept = True
        while kv.need() > kv.free:
            if not self._evict_for_kv():
                self._preempt_one("kv")
                kept = False
        if kv.decoding:
            kv.reserve()
            ledger.token_budget -= kv.decoding
        return kept

    def _extend_partial(self) -> bool:
        """Give part-prefilled requests their next chunk, preempting where blocks are missing; False when it did."""
        ledger = self.ledger
        kept = True
        for sequence in list(ledger.partial.values()):
            while sequence.state == "running" and not ledger.extend(sequence):
                if not self._evict_for_kv():
                    self._preempt_one("kv")
                    kept = False
        return kept

    def _evict_for_kv(self) -> bool:
        """With unified memory, free the blocks of the idle adapter that scores lowest; False when there is none."""
        ledger = self.ledger
        if ledger.memory != "unified" or not ledger.idle:
            return False
        views = [state.view for state in ledger.idle.values()]
        goes = min(views, key=lambda candidate: (ledger.scorer(candidate, self.view), candidate.lora_int_id))
        assert goes.name is not None
        self._evict(Evict(goes.name))
        return True

    def _preempt_one(self, why: str) -> None:
        """Preempt the request the policy names, or else the last one admitted (vLLM's rule)."""
        ledger = self.ledger
        if self._victim is not None:
            try:
                named = self._victim(self.view)
            except Exception as error:
                raise self._policy_error(f"its victim() raised {type(error).__name__}: {error}") from error
            if named is not None and self._preempt(named, why):
                return
        last = next(reversed(ledger.running.values()))
        self._preempt(last.view, why)

    def _consult(self) -> None:
        """Ask the policy for actions and carry them out."""
        schedule = self.policy.schedule(self.view)
        if self._prefetch:
            schedule = _then(schedule, look_ahead(self.view, self._prefetch))
        try:
            send = schedule.send
        except AttributeError:
            raise self._policy_error(
                f"schedule() returned {type(schedule).__name__}, not a generator: yield actions in it"
            ) from None
        ledger, apply, sink = self.ledger, self._apply, self.sink
        limit = 0
        taken = 0
        outcome: Any = None
        while True:
            try:
                action = send(outcome)
            except StopIteration:
                return
            except Exception as error:
                raise self._policy_error(f"it raised {type(error).__name__}: {error}") from error
            act = apply.get(type(action))
            if act is None:
                raise self._policy_error(f"it yielded {action!r}, which is no action")
            outcome = act(action)
            if sink is not None:
                sink(Decided(ledger.now, action, outcome))
            taken += 1
            if taken > limit:
                if limit:
                    raise self._policy_error(
                        f"it yielded {taken} actions in one call with {len(ledger.waiting)} requests waiting and "
                        f"{len(ledger.running)} running; the last one was {action!r}: return when nothing more can be done"
                    )
                limit = 1000 + 10 * (len(ledger.sequences) + len(ledger.adapters))

    def _policy_error(self, what: str) -> PolicyError:
        name = getattr(self.policy, "spec", type(self.policy).__name__)
        return PolicyError(f"policy {name} failed at {self.ledger.now:.6f} s: {what}")

    def _build(self) -> StepPlan | None:
        """The plan for what has been admitted, reserved and loaded."""
        ledger = self.ledger
        prefills = tuple(
            Prefill(sequence, start, tokens, start + tokens == sequence.target)
            for sequence, start, tokens in ledger.prefills.values()
        )
        kv = ledger.kv
        decodes = kv.decoding if kv.reserved else 0
        if not decodes:
            kv.reserved = 0
        loads = tuple(ledger.loads)
        self.idle_plans += 1
        if not prefills and not decodes and not loads:
            return None
        repeat = 0
        if prefills:
            shape = self._mixed_shape(prefills, decodes)
        else:
            shape = BatchShape(
                0,
                0.0,
                0,
                decodes,
                kv.tokens_read,
                ledger.active_adapters,
                ledger.sum_ranks,
                max(ledger.active_ranks, default=0),
                ledger.lora_decoding,
                ledger.lora_decoding_ranks,
            )
            if decodes and not self._ask and not (loads and ledger.sync_loading):
                repeat = self._horizon() - 1
        self._planned = (
            ledger.now,
            len(ledger.waiting),
            len(ledger.running),
            len(ledger.on_gpu),
            len(ledger.loading),
            kv.used,
        )
        return StepPlan(
            prefills,
            decodes,
            ledger.decoding.values() if decodes else (),
            loads,
            repeat,
            self.wake_at,
            shape,
            ledger.epoch,
        )

    def _horizon(self) -> int:
        """Decode steps until a request reaches max_tokens, the policy wants to be asked, or KV blocks run out."""
        ledger, finishes = self.ledger, self._finishes
        clock = ledger.clock[0]
        while True:
            at, _, sequence, admissions = finishes[0]
            if sequence.decoding and sequence.admissions == admissions:
                break
            heappop(finishes)
        steps = at - clock
        if self._wake_clocks:
            steps = min(steps, self._wake_clocks[0] - clock)
        return ledger.kv.steps(max(steps, 1))

    def _mixed_shape(self, prefills: tuple[Prefill, ...], decodes: int) -> BatchShape:
        """The shape of a step with prefill."""
        ledger = self.ledger
        tokens = lora_tokens = lora_token_ranks = 0
        attention = 0.0
        ranks: dict[str | None, int] = {}
        for sequence, start, chunk, _ in prefills:
            tokens += chunk
            attention += chunk * (start + (chunk + 1) * 0.5)
            rank = sequence.adapter.rank
            if rank:
                lora_tokens += chunk
                lora_token_ranks += chunk * rank
                ranks[sequence.adapter.name] = rank
        if decodes:
            distinct, total, largest = ledger.active_adapters, ledger.sum_ranks, max(ledger.active_ranks, default=0)
            kv_tokens = ledger.kv.tokens_read
            lora_tokens += ledger.lora_decoding
            lora_token_ranks += ledger.lora_decoding_ranks
        else:
            distinct, total, largest = len(ranks), sum(ranks.values()), max(ranks.values(), default=0)
            kv_tokens = 0
        return BatchShape(
            tokens,
            attention,
            len(prefills),
            decodes,
            kv_tokens,
            distinct,
            total,
            largest,
            lora_tokens,
            lora_token_ranks,
        )

    # -- commit --------------------------------------------------------------------------------------------------

    def commit(self, plan: StepPlan, result: StepResult, now: float) -> None:
        """Apply what a backend did with the last plan, which it finished at second ``now``."""
        ledger = self.ledger
        ledger.now = now
        if ledger.loads:
            self._loads_done(plan)
        steps = result.steps
        if plan.decode_count:
            ledger.kv.advance(steps)
        if self._tells:
            self._tell_step(plan, result, now)
        ended: list[Sequence] = []
        if plan.prefills:
            self._ask = True
            self._prefilled(plan, result, ended)
        if plan.decode_count:
            self.idle_plans = 0
            clock, finishes = ledger.clock[0], self._finishes
            while finishes and finishes[0][0] <= clock:
                _, _, sequence, admissions = heappop(finishes)
                if sequence.decoding and sequence.admissions == admissions:
                    ended.append(sequence)
        for sequence in ended:
            self._end(sequence, "completed", "length")
        for request_id in result.finished:
            self._end_by_id(request_id, "completed", "stop")

    def _loads_done(self, plan: StepPlan) -> None:
        """Loads of this plan have started, and with sync loading those to the GPU are over."""
        ledger = self.ledger
        start = self._planned[0]
        for adapter, tier, prefetch in plan.loads:
            if self._tells:
                self._tell(LoadStarted(start, adapter.name, tier, prefetch))
            if ledger.sync_loading and not prefetch:
                ledger.adapters[adapter.name].loaded_at = ledger.now
                if self._tells:
                    self._tell(Loaded(ledger.now, adapter.name, False))
        ledger.loads.clear()

    def _prefilled(self, plan: StepPlan, result: StepResult, ended: list[Sequence]) -> None:
        """Prefill chunks are computed: requests whose context is complete got a token."""
        ledger = self.ledger
        now = ledger.now
        for sequence, _, _, completes in plan.prefills:
            if result.load_s and sequence.admitted_at == self._planned[0] and sequence.admissions == 1:
                sequence.admitted_at += result.load_s
                sequence.load_wait_s += result.load_s
            del ledger.prefills[sequence.request.request_id]
            if not completes:
                continue
            self.idle_plans = 0
            ledger.begin_decode(sequence)
            if sequence.preempted_at is not None:
                ledger.settle_preemption(sequence)
            if sequence.first_token_at is None:
                sequence.first_token_at = now
            if sequence.finish_clock <= ledger.clock[0]:
                ended.append(sequence)
            else:
                self._admission += 1
                heappush(self._finishes, (sequence.finish_clock, self._admission, sequence, sequence.admissions))

    def _tell(self, event: Event) -> None:
        if self.sink is not None:
            self.sink(event)
        if self._observe is not None:
            try:
                self._observe(event)
            except Exception as error:
                raise self._policy_error(f"its observe() raised {type(error).__name__}: {error}") from error

    def _tell_step(self, plan: StepPlan, result: StepResult, now: float) -> None:
        start, waiting, running, resident, loading, blocks = self._planned
        steps = result.steps
        if self.sink is not None and (plan.computes or now > start):
            self.sink(
                Stepped(start, now, steps, plan.shape, waiting, running, resident, loading, blocks, result.load_s)
            )
        if self._observe is not None and plan.computes:
            prefill = tuple((sequence.view, tokens) for sequence, _, tokens, _ in plan.prefills)
            decode = RequestViews(self.ledger.decoding) if plan.decode_count else ()
            try:
                self._observe(Served(now, prefill, decode, steps if plan.decode_count else 0))
            except Exception as error:
                raise self._policy_error(f"its observe() raised {type(error).__name__}: {error}") from error

    def _end(self, sequence: Sequence, status: Status, why: str) -> None:
        self.ledger.end(sequence, status, why)
        self.unfinished -= 1
        self.idle_plans = 0
        self._ask = True
        if self._tells:
            self._tell(Ended(self.ledger.now, sequence.view, status, why, sequence))

    def _end_by_id(self, request_id: str, status: Status, why: str) -> None:
        sequence = self.ledger.sequences.get(request_id)
        if sequence is not None:
            self._end(sequence, status, why)

    def _loaded(self, name: str, prefetch: bool) -> None:
        state = self.ledger.adapters[name]
        if prefetch:
            if state.tier in ("disk", "remote") and state.prefetching:
                self.ledger.host.rest(state)
            state.prefetching = False
        elif state.tier == "loading":
            self.ledger.arrive(state)
        if self._tells:
            self._tell(Loaded(self.ledger.now, name, prefetch))

    def _load_failed(self, name: str, why: str) -> None:
        ledger = self.ledger
        state = ledger.adapters[name]
        ledger.fail_load(state)
        for sequence in list(state.queue.sequences()):
            self._end(sequence, "failed", f"adapter {name!r} could not be loaded: {why}")
        ledger.index.cooled(state)

    # -- actions -------------------------------------------------------------------------------------------------

    def _admit(self, action: Admit) -> Outcome:
        ledger = self.ledger
        outcome = ledger.admit(action.request, action.tokens)
        if outcome.ok and self._tells:
            sequence = ledger.sequences[action.request.request_id]
            self._tell(Admitted(ledger.now, sequence.view, sequence.hit))
        return outcome

    def _load(self, action: Load) -> Outcome:
        return self.ledger.load(action.adapter)

    def _evict(self, action: Evict) -> Outcome:
        outcome = self.ledger.evict(action.adapter)
        if outcome.ok and self._tells:
            self._tell(Evicted(self.ledger.now, action.adapter))
        return outcome

    def _preempt_action(self, action: Preempt) -> Outcome:
        return self._preempt(action.request, "policy")

    def _preempt(self, view: Any, why: str) -> Outcome:
        outcome = self.ledger.preempt(view)
        if outcome.ok:
            self._ask = True
            if self._tells:
                self._tell(Preempted(self.ledger.now, self.ledger.sequences[view.request_id].view, why))
        return outcome

    def _reject(self, action: Reject) -> Outcome:
        sequence = self.ledger.sequences.get(getattr(action.request, "request_id", ""))
        if sequence is None or sequence.state != "waiting":
            return REFUSED["unknown"]
        self._end(sequence, "rejected", str(action.why))
        return OK

    def _prefetch_action(self, action: Prefetch) -> Outcome:
        return self.ledger.prefetch(action.adapter)

    def _wake(self, action: Wake) -> Outcome:
        if action.at is None and action.after_steps is None:
            return REFUSED["unknown"]
        if action.at is not None:
            if not action.at > self.ledger.now:
                return REFUSED["unknown"]
            if action.at not in self._wake_times[:1]:
                heappush(self._wake_times, float(action.at))
        if action.after_steps is not None:
            if action.after_steps < 1:
                return REFUSED["unknown"]
            heappush(self._wake_clocks, self.ledger.clock[0] + int(action.after_steps))
        return OK


def _then(first: Any, second: Any) -> Any:
    """One generator after another, outcomes passed through."""
    yield from first
    yield from second
