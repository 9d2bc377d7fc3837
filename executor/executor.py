"""Executor: one engine over one model. Requests go in, the engine's plans are run, tokens come out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import nullcontext
from math import inf
from threading import Event as Flag
from threading import Lock
from typing import Any, TypeVar

from loratory.adapters.verified import VerifiedAdapter
from loratory.errors import InputError, PolicyError, PolicyTimeout, shortened
from loratory.executor.clock import Clock
from loratory.executor.generation import Generation, SampledToken
from loratory.executor.runner import ModelRunner
from loratory.executor.tiers import AdapterTiers
from loratory.serving.adapter_changes import Answer
from loratory.serving.config import EngineConfig
from loratory.serving.engine import Engine, Remake
from loratory.serving.events import (
    AdapterRemoved,
    Ended,
    EventHandlers,
    Evicted,
    Handler,
    PolicySwapped,
    Preempted,
    Sink,
    handlers_of,
)
from loratory.serving.lora import Adapter
from loratory.serving.plan import CostView, StepPlan, StepResult
from loratory.serving.policy import PolicyLike, policy_name
from loratory.serving.policy_watch import POLICY_TIMEOUT_S, PolicyWatch
from loratory.serving.request import Request
from loratory.serving.run_end import STALL_PLANS, stall_error
from loratory.serving.run_recording import (
    ChangeKind,
    RecordedChange,
    RecordedLoad,
    RecordedStep,
    Recording,
    RecordingInMemory,
    Tape,
    adapter_values,
)

NOT_FINITE = "its logits are not finite: look for NaN or inf in the adapter's weights and in the checkpoint"

OnToken = Callable[[str, int], None]
OnSampled = Callable[[str, SampledToken], None]
OnEnd = Callable[[Ended, Generation], None]
T = TypeVar("T")


class Executor:
    """Runs an engine's plans on a model, in the thread that calls `step`.

    ``sink`` receives the engine's events; ``on_token(request_id, token)`` each token as it
    is sampled; ``on_end(event, generation)`` each request that reached a final status. With ``record`` the run can be
    replayed (`recording`); a `Tape` takes the recording as it is made. Raises `InputError` like `Engine` for adapters
    its configuration cannot serve.

    Between two steps, in the thread that calls `step`, requests may be aborted, adapters added and removed, and the
    policy swapped. Each such order has the second ``at`` at which it was given: it comes after the requests that had
    arrived by then. ``remake`` makes a fresh policy like ``policy``, for when one that is put in later fails.

    The policy has ``policy_timeout_s`` seconds for one answer (see `PolicyWatch`; None: as long as it takes). When it
    fails, every request ends as failed with the reason, and there is no further step. A policy that sleeps in a thread
    other than the main one cannot be stopped: the requests end, from another thread, and that step does not return
    before the policy does.
    """

    def __init__(
        self,
        config: EngineConfig,
        adapters: Iterable[Adapter],
        policy: PolicyLike,
        cost: CostView,
        runner: ModelRunner,
        tiers: AdapterTiers[Any],
        clock: Clock,
        woken: Flag,
        *,
        sink: Sink | Handler | None = None,
        on_token: OnToken | None = None,
        on_end: OnEnd | None = None,
        record: bool | Tape = False,
        policy_timeout_s: float | None = POLICY_TIMEOUT_S,
        remake: Remake | None = None,
    ) -> None:
        if config.memory != "slots":
            raise InputError(
                "engine.memory is unified, which is only simulated: set it to slots to run on the executor"
            )
        if config.async_scheduling:
            raise InputError(
                "engine.async_scheduling is true, but the executor plans a step when the one before has ended: set it "
                "to false"
            )
        self._failure = ""
        """Why the policy has failed."""
        self._policy_timeout_s = policy_timeout_s
        self._watch = self._watch_over(policy)
        self._is_swapped_back = False
        """Whether the policy that the watch was made for has failed in this step, and another is in its place."""
        self._now_lock = Lock()
        try:
            with self._watch or nullcontext():
                self.engine = Engine(config, adapters, policy, cost, sink=self._listener(sink), remake=remake)
        except BaseException:
            self._unwatch()
            raise
        self.runner = runner
        self.tiers = tiers
        self.clock = clock
        self.woken = woken
        """Set, from any thread, when there may be something to do."""
        self._on_token = on_token
        self._on_sampled: OnSampled | None = None
        self._on_end = on_end
        self._generations: dict[str, Generation] = {}
        self._failures: list[tuple[str, str]] = []
        self._last = -inf
        self._memory: RecordingInMemory | None = RecordingInMemory() if record is True else None
        self._tape: Tape | None = self._memory if isinstance(record, bool) else record

    def listen(self, on_end: Callable[[Ended], None]) -> None:
        """Call ``on_end``, too, for each request that reaches a final status."""
        before = self._on_end

        def both(event: Ended, generation: Generation) -> None:
            if before is not None:
                before(event, generation)
            on_end(event)

        self._on_end = both

    on_stuck: Callable[[str], None] | None = None
    """Called with the reason, in another thread, when `step` will not return, because the policy sleeps or waits where
    Python cannot interrupt it. Every request has ended then."""

    def hear(self, on_sampled: OnSampled, on_end: OnEnd) -> None:
        """Call ``on_sampled(request_id, token)``, too, for each token, and ``on_end`` for each end."""
        assert self._on_sampled is None
        self._on_sampled = on_sampled
        before = self._on_end

        def both(event: Ended, generation: Generation) -> None:
            if before is not None:
                before(event, generation)
            on_end(event, generation)

        self._on_end = both

    def submit(self, request: Request, generation: Generation) -> None:
        """A request arrives; its ``arrival`` is at or before the time of the next step.

        Raises `InputError` for an id in use, a prompt that is not as long as the request says, or cached prompt tokens:
        there is no prefix cache. Raises `PolicyError` when the policy has failed.
        """
        self._check_policy()
        if len(generation.prompt) != request.prompt_tokens:
            raise InputError(
                f"request {request.request_id!r} declares {request.prompt_tokens} prompt tokens, but its prompt has "
                f"{len(generation.prompt)}: make them equal"
            )
        if request.cached_tokens:
            raise InputError(
                f"request {request.request_id!r} has cached prompt tokens, but the executor has no prefix cache: "
                "set cached_tokens to 0"
            )
        self.engine.submit(request)
        self._generations[request.request_id] = generation
        if self._tape is not None:
            self._tape.request(request)

    def abort(self, request_id: str, why: str, at: float) -> None:
        """A client went away at second ``at``. Unknown and ended requests are ignored."""
        self._record(at, "abort", request_id, why)
        self.engine.abort(request_id, why)

    def fail(self, request_id: str, why: str, at: float) -> None:
        """End a request as failed. Unknown and ended requests are ignored."""
        self._record(at, "fail", request_id, why)
        self.engine.abort(request_id, why, "failed")

    def add_adapter(self, adapter: Adapter, files: VerifiedAdapter, at: float) -> None:
        """Serve one adapter more, from these files. Raises `InputError` for one that cannot be served here, and for a
        name or an id that means another adapter, or ever meant one; `RefusedAdapter` for files of another digest."""
        self._check_policy()
        if adapter.digest is not None:
            files.check(adapter.digest)
        self.tiers.require_room(files)
        with self._watch or nullcontext():
            self.engine.add_adapter(adapter, at)
        self.tiers.files[adapter.name] = files
        self._record(at, "add", *adapter_values(adapter))

    def remove_adapter(self, name: str, at: float) -> Future[str]:
        """Take no request for an adapter any more, and forget it once those it has are served.

        The answer, at the next plan, is "" or the reason why not, as for the orders below.
        """
        return self._order(at, "remove", name, self.engine.adapters.remove)

    def pin(self, name: str, at: float) -> Future[str]:
        """Keep an adapter on the GPU once it is there."""
        return self._order(at, "pin", name, self.engine.adapters.pin)

    def unpin(self, name: str, at: float) -> Future[str]:
        """Let an adapter be evicted again."""
        return self._order(at, "unpin", name, self.engine.adapters.unpin)

    def preload(self, name: str, at: float) -> Future[str]:
        """Load an adapter to the GPU before a request asks for it."""
        return self._order(at, "preload", name, self.engine.adapters.preload)

    def limit_seqs(self, max_num_seqs: int, at: float) -> Future[str]:
        """Run at most so many requests at once from now on."""
        return self._order(at, "max_num_seqs", max_num_seqs, self.engine.limit_seqs)

    def swap(self, spec: str, make: Remake, at: float) -> None:
        """Another policy decides from the next step on; ``make()`` makes it, and ``spec`` names it in the recording.

        When it fails later, the one before it returns, where it is known how to make that one. Raises `InputError` and
        `PolicyError` for a policy that cannot be made or has a member that cannot be meant; then nothing changes.
        """
        self._check_policy()
        policy = make()
        watch = self._watch_over(policy)
        try:
            with watch or nullcontext():
                self.engine.swap(policy, at, make)
        except BaseException:
            if watch is not None:
                watch.close()
            raise
        self._unwatch()
        self._watch = watch
        self._renew_watch()
        self._record(at, "swap", spec)

    def put_back(self, why: str, at: float) -> bool:
        """The policy in force stops progress: the one before it returns. False when there is none, or none that can be
        made again."""
        with self._watch or nullcontext():
            done = self.engine.put_back(why)
        self._renew_watch()
        if done:
            self._record(at, "put_back", why)
        return done

    @property
    def is_stuck(self) -> bool:
        """Whether requests wait although nothing runs, no load is on its way, and the policy asked for no wake-up: only
        a new request could change that."""
        engine = self.engine
        return (
            engine.unfinished > 0 and not engine.ledger.running and not self.tiers.in_flight and engine.wake_at is None
        )

    @property
    def policy_spec(self) -> str:
        """The spec of the policy in force, or the name of its class where it was not made from one."""
        return policy_name(self.engine.policy)

    def _order(self, at: float, kind: ChangeKind, value: T, give: Callable[[T, Answer], None]) -> Future[str]:
        answer: Future[str] = Future()
        self._record(at, kind, value)
        give(value, answer.set_result)
        return answer

    def _record(self, at: float, kind: ChangeKind, *values: Any) -> None:
        if self._tape is not None:
            self._tape.change(RecordedChange(at, kind, values))

    def now(self) -> float:
        """The clock, always later than the last time it was asked here. From any thread."""
        with self._now_lock:
            now = self.clock.now()
            self._last = now if now > self._last else self._last + 1e-9
            return self._last

    def step(self, now: float) -> bool:
        """Plan at second ``now`` (from `now`) and run the plan; False when there was nothing to run.

        Raises `PolicyError` when the policy fails or has failed, `StalledError` when it stops progress.
        """
        self._check_policy()
        try:
            with self._watch or nullcontext():
                return self._step(now)
        except (PolicyError, PolicyTimeout) as error:
            self._policy_failed(error.text if isinstance(error, PolicyTimeout) else str(error))
            raise
        finally:
            self._renew_watch()

    def _step(self, now: float) -> bool:
        engine, tape = self.engine, self._tape
        self.woken.clear()
        if engine.idle_plans > STALL_PLANS:
            raise stall_error("the executor", STALL_PLANS)
        self._tell_loads(now)
        plan = engine.plan(now)
        if plan is None:
            if tape is not None:
                tape.step(RecordedStep(now, now))
            return False
        failed: dict[str, str] = {}
        load_s = self._load(plan, now, failed) if plan.loads else 0.0
        finished: list[str] = []
        if plan.computes:
            self._compute(plan, failed, finished)
        end = self.now()
        if tape is not None:
            tape.step(RecordedStep(now, end, load_s, failed or None))
        engine.commit(plan, StepResult(1, finished, load_s, failed or None), end)
        return True

    def rest(self, until: float) -> None:
        """Wait until second ``until`` (inf: for ever) or until `woken` is set."""
        self.clock.wait(until, self.woken)

    def recording(self) -> Recording:
        """The run so far, for `loratory.sim.recorded_times`. Raises `RuntimeError` when it is not recorded."""
        if self._memory is None:
            raise RuntimeError("the run is not recorded: make the Executor with record=True")
        return self._memory.recording()

    def close(self) -> None:
        """Wait for loads in flight and drop the adapters."""
        self._unwatch()
        self.tiers.close()

    def _check_policy(self) -> None:
        if self._failure:
            raise PolicyError(shortened(f"the executor has stopped: {self._failure}"))

    def _policy_failed(self, why: str) -> None:
        """End every request, once, without the policy."""
        if not self._failure:
            self._failure = why
            self.engine.dismiss_policy()
            self.engine.end_all(self.now(), "failed", why)

    def _policy_is_stuck(self, why: str) -> None:
        """The thread that calls `step` is inside the policy, and does not come back; this is another thread."""
        self._policy_failed(why)
        if self.on_stuck is not None:
            self.on_stuck(why)

    def _watch_over(self, policy: PolicyLike) -> PolicyWatch | None:
        if self._policy_timeout_s is None:
            return None
        return PolicyWatch.over(policy, self._policy_timeout_s, self._policy_is_stuck)

    def _renew_watch(self) -> None:
        """After a policy has failed and another took its place: watch that one."""
        if self._is_swapped_back:
            self._is_swapped_back = False
            self._unwatch()
            self._watch = self._watch_over(self.engine.policy)

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.close()

    def _compute(self, plan: StepPlan, failed: dict[str, str], finished: list[str]) -> None:
        generations, on_token, on_sampled = self._generations, self._on_token, self._on_sampled
        sampled = self.runner.run(plan, generations, failed)
        at, logprobs = self.now(), sampled.logprobs
        for request_id in sampled.broken:
            failed[request_id] = NOT_FINITE
        for request_id, token in sampled.tokens.items():
            if generations[request_id].take(token):
                finished.append(request_id)
            if on_token is not None:
                on_token(request_id, token)
            if on_sampled is not None:
                on_sampled(request_id, SampledToken(token, at, logprobs.get(request_id) if logprobs else None))

    def _load(self, plan: StepPlan, now: float, failed: dict[str, str]) -> float:
        """Start the plan's loads, waiting for those to a slot with sync loading; returns the seconds waited."""
        ledger, tiers = self.engine.ledger, self.tiers
        tiers.follow(ledger)
        self.engine.expect_loads(plan, now)
        waited = False
        for load in plan.loads:
            name = load.adapter.name
            if load.prefetch or not ledger.slots.sync:
                tiers.start(load)
                continue
            if name not in ledger.slots.on_gpu or name in tiers.resident:
                continue  # evicted, or evicted and loaded again, before this step began
            waited = True
            try:
                tiers.bring(load)
            except InputError as error:
                why = str(error)
                self._failures.append((name, why))
                failed |= dict.fromkeys(_users(plan, name), f"adapter {name!r} could not be loaded: {why}")
        return self.now() - now if waited else 0.0

    def _tell_loads(self, now: float) -> None:
        """Tell the engine of loads that are over."""
        engine, tape = self.engine, self._tape
        ended = [RecordedLoad(now, name, False, why) for name, why in self._failures]
        self._failures.clear()
        ended += [RecordedLoad(now, load.adapter.name, load.prefetch, why) for load, why in self.tiers.finished()]
        for load in ended:
            if load.failed is None:
                engine.loaded(load.adapter, load.prefetch)
            else:
                engine.load_failed(load.adapter, load.failed, load.prefetch)
        if tape is not None:
            for load in ended:
                tape.load(load)

    def _listener(self, sink: Sink | Handler | None) -> Sink:
        """The sink that frees KV blocks, with the caller's behind it."""
        wants = handlers_of(sink)
        chained = {kind: wants.get(kind) for kind in (Ended, Preempted, Evicted, AdapterRemoved, PolicySwapped)}

        def on_ended(event: Ended) -> None:
            request_id = event.request.request_id
            self.runner.free(request_id)
            generation = self._generations.pop(request_id)
            if self._tape is not None and event.status == "completed":
                self._tape.output(request_id, len(generation.tokens))
            if (then := chained[Ended]) is not None:
                then(event)
            if self._on_end is not None:
                self._on_end(event, generation)

        def on_preempted(event: Preempted) -> None:
            self.runner.free(event.request.request_id)
            if (then := chained[Preempted]) is not None:
                then(event)

        def on_evicted(event: Evicted) -> None:
            self.tiers.evicted(event.adapter)
            if (then := chained[Evicted]) is not None:
                then(event)

        def on_removed(event: AdapterRemoved) -> None:
            self.tiers.forget(event.adapter)
            if (then := chained[AdapterRemoved]) is not None:
                then(event)

        def on_swapped(event: PolicySwapped) -> None:
            if event.why:
                self._is_swapped_back = True
                if self._watch is not None:
                    self._watch.forgive()
            if (then := chained[PolicySwapped]) is not None:
                then(event)

        ours: dict[type, Handler] = {
            Ended: on_ended,
            Preempted: on_preempted,
            Evicted: on_evicted,
            AdapterRemoved: on_removed,
            PolicySwapped: on_swapped,
        }
        return EventHandlers({**wants, **ours})


def _users(plan: StepPlan, adapter: str) -> list[str]:
    """Requests of a plan that use an adapter."""
    sequences = [prefill.sequence for prefill in plan.prefills]
    sequences += plan.decodes if plan.decode_count else ()
    return [s.request.request_id for s in sequences if s.request.adapter == adapter]
