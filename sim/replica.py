"""Replica: one engine on one modelled GPU (or tensor-parallel group), as a SimPy process."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from heapq import heappop, heappush
from math import inf
from typing import Any

from simpy import AllOf, Event

from loratory.serving.engine import Engine
from loratory.serving.plan import AdapterLoad, BatchShape, StepPlan, StepResult
from loratory.serving.request import Request
from loratory.serving.run_end import STALL_PLANS, stall_error
from loratory.serving.sequence import Sequence
from loratory.sim.cost.base import CostModel
from loratory.sim.environment import URGENT, ExactEnvironment, Feed, succeed
from loratory.sim.noise import StepNoise
from loratory.sim.segment import Segment
from loratory.sim.transfers import Transfers


class Replica:
    """Runs an engine's plans in simulated time. It plays the model: it alone knows where each output ends.

    Decode steps of an unchanged batch are one `Segment`, whose boundaries are known in advance. The replica waits for
    one of them, the target, and commits all steps up to it at once:

        boundaries             0-----1-----2-----3-----4-----5-----6-----7
        steps committed              ^
        next arrival                                ^
        target                                         ^
        end of an output                                                 ^ the target if nothing arrived before

    An arrival through a router, or a load that ends, while the replica waits moves the target to the first boundary
    after it (`_disturb`).

    ``watch``, where it is set, is called with each plan (`loratory.sim.gateway.Gateway.watch`).

    ``jump=False`` runs decode steps one at a time; times and decisions are the same, it only takes longer.
    ``ended(n)`` is called when n requests of this replica have ended. ``stall_plans``: plans in a row without a token
    or an ended request after which the run counts as stalled (`StalledError`). ``noise``: that of the replica's steps.
    """

    def __init__(
        self,
        env: ExactEnvironment,
        index: int,
        engine: Engine,
        cost: CostModel,
        transfers: Transfers,
        ended: Callable[[int], None],
        jump: bool = True,
        stall_plans: int = STALL_PLANS,
        noise: StepNoise | None = None,
    ) -> None:
        self.index = index
        self.engine = engine
        self._env = env
        self._cost = cost
        self._transfers = transfers
        self._ended = ended
        self._jump = jump
        self._stall_plans = stall_plans
        self._noise = noise
        self.feed = Feed()
        self._sync = engine.ledger.slots.sync
        self._clock = engine.ledger.clock
        self._held = engine.ledger.held
        self._outputs: dict[str, int] = {}
        self._ends: list[tuple[int, int, Sequence, int]] = []
        self._order = 0
        self._reported = 0
        """Ended requests that ``ended`` was called for."""
        self._segment: Segment | None = None
        self._epoch = -1
        """The epoch of the batch that the segment is of; -1 when it is over."""
        lone = BatchShape(decode_seqs=1, kv_tokens=1)
        self._prices_blocked = cost.step_seconds(lone) < cost.step_seconds(lone._replace(blocked_seqs=1 << 20))
        """Whether a step takes longer where requests wait for an adapter."""
        self._blocked = 0
        """Those that waited when the segment began."""
        self._plan: StepPlan | None = None
        """The plan being run."""
        self._done = 0
        """Steps of the segment that are committed."""
        self._target = 0
        """The boundary of the segment that the replica waits for; 0 when the present step cannot be cut short."""
        self._resting: Event | None = None
        self._reaching: Event | None = None
        """Succeeds at the target."""
        self.watch: Callable[[StepPlan | None], None] | None = None
        self._ahead = bool(engine.ledger.config.async_scheduling)
        self._under_way = 0
        """Loads that no step waits for."""
        self._dead = False
        """Whether it has failed or gone: nothing of it happens any more."""
        self._running = self._run_ahead() if self._ahead else self._run()
        env.at(env.now, URGENT).callbacks.append(self._go_on)

    def _go_on(self, event: Event) -> None:
        """What it waited for has happened. As a SimPy process does, in a third of the time."""
        if self._dead:
            return
        if not event._ok:
            event._defused = True
            raise event._value
        awaited = self._running.send(None)
        assert awaited.callbacks is not None
        awaited.callbacks.append(self._go_on)

    def submit(self, request: Request, output_tokens: int, late: bool = False) -> None:
        """A request arrives now; the model will end its output after ``output_tokens`` tokens.

        ``late``: it arrives after the step boundaries of this very time, and waits for the next one.
        """
        self._outputs[request.request_id] = output_tokens
        self.engine.submit(request)
        self.nudge(late)

    def nudge(self, late: bool = False) -> None:
        """The engine was told something: it makes its next plan as soon as it can."""
        if self._resting is not None or self._target:
            self._disturb(late)

    def _disturb(self, late: bool = False) -> None:
        """Something happened that the engine should see at the next step boundary."""
        if self._resting is not None:
            succeed(self._resting)
        elif self._target > self._done + 1:
            segment = self._segment
            assert segment is not None
            now = self._env.now
            boundary = segment.first_at_or_after(now, self._done + 1, self._target)
            if late and segment.time(boundary) <= now:
                boundary += 1
            if boundary < self._target:
                self._target = boundary
                self._move_target(segment.time(boundary))

    def _move_target(self, time: float) -> None:
        """Whoever waits for the target waits for second ``time`` instead. It takes a third of SimPy's interrupt."""
        before, sooner = self._reaching, self._env.at(time)
        assert before is not None
        before.callbacks, sooner.callbacks = sooner.callbacks, before.callbacks
        self._reaching = sooner

    def cut(self, now: float) -> None:
        """The run ends at second ``now``: commit what a jump in flight has done before it."""
        segment = self._segment
        if self._target > self._done + 1 and segment is not None and self._plan is not None:
            boundary = segment.first_at_or_after(now, self._done + 1, self._target)
            if segment.time(boundary) >= now:
                boundary -= 1
            if boundary > self._done:
                steps, at = boundary - self._done, segment.time(boundary)
                if self._ahead:
                    self.engine.repeat(self._plan, steps, at)
                else:
                    self.engine.commit(self._plan, StepResult(steps), at)

    def stop(self, now: float) -> list[Request]:
        """The replica is no more from second ``now`` on: returns its requests that have not ended, as they arrived.

        The steps that ended before are committed; the one in flight, and every load, never ends.
        """
        self.cut(now)
        self._dead = True
        if self.engine.ledger.ended > self._reported:
            self.report_ended()
        return self.engine.unfinished_requests()

    @property
    def sleeps(self) -> bool:
        """Whether nothing happens here unless a request arrives."""
        engine = self.engine
        return self._resting is not None and not (self._under_way or engine.must_plan or engine.wake_at is not None)

    def _run(self) -> Generator[Event, Any, None]:
        env, engine, feed = self._env, self.engine, self.feed
        ledger = engine.ledger
        now = env.now
        while True:
            if feed.next_at <= now:
                feed.deliver(now)
            plan = self._plan = engine.plan(now)
            if self.watch is not None:
                self.watch(plan)
            if ledger.ended > self._reported:
                self.report_ended()
            if plan is None or not plan.decode_count:
                self._check_stall()
                if plan is None:
                    yield from self._rest()
                    now = env.now
                    continue
            load_s = 0.0
            if plan.loads:
                load_s = yield from self._load(plan)
                now = env.now
            steps = 1
            if plan.prefills:
                self._epoch = -1
                now += self._prefill_seconds(plan.shape)
                if not env.reach(now):
                    yield env.at(now)
            elif plan.decode_count:
                segment = self._begin_decode(plan, now, load_s)
                self._target = self._jump_to(plan, segment)
                if not env.reach(now := segment.time(self._target)):
                    self._reaching = env.at(now)
                    yield self._reaching
                    now = env.now
                steps = self._target - self._done
                self._done = self._target
                self._target = 0
            engine.commit(plan, StepResult(steps, self._sampled(plan, steps), load_s, None), now)

    def _run_ahead(self) -> Generator[Event, Any, None]:
        """With async scheduling: each step is planned when the one before it begins.

        A run of equal decode steps is jumped over as without, but for its last: at its start the next plan is made.

            steps          |-- k --|-- k+1 --|-- k+2 --|-- k+3 ---|
            plans made    k+1     k+2       k+3       k+4                k+2 sees what arrived before k+1 began
            outcomes               k        k+1       k+2        k+3
        """
        env, engine = self._env, self.engine
        plan: StepPlan | None = None
        while True:
            if plan is None:
                plan = self._next_plan()
                if plan is None:
                    yield from self._rest()
                    continue
            self._plan = plan
            decodes = plan.decode_count > 0 and not plan.prefills
            if decodes and not plan.loads:
                segment = self._begin_decode(plan, env.now, 0.0)
                self._target = self._jump_to(plan, segment, last_too=False)
                if self._target > self._done and not env.reach(now := segment.time(self._target)):
                    self._reaching = env.at(now)
                    yield self._reaching
                if self._target > self._done:
                    engine.repeat(plan, self._target - self._done, env.now)
                    self._done = self._target
                self._target = 0
            finished = self._sampled(plan, 1)
            following = self._next_plan()
            load_s = (yield from self._load(plan)) if plan.loads else 0.0
            now = env.now
            if plan.prefills:
                self._epoch = -1
                now += self._prefill_seconds(plan.shape)
            elif decodes:
                segment = self._begin_decode(plan, now, load_s)
                self._done += 1
                now = segment.time(self._done)
            if not env.reach(now):
                yield env.at(now)
            engine.commit(plan, StepResult(1, finished, load_s, None), now)
            plan = following

    def _next_plan(self) -> StepPlan | None:
        """The engine's next plan, from now on."""
        now, engine = self._env.now, self.engine
        if self.feed.next_at <= now:
            self.feed.deliver(now)
        plan = engine.plan(now)
        if self.watch is not None:
            self.watch(plan)
        if engine.ledger.ended > self._reported:
            self.report_ended()
        if plan is None or not plan.decode_count:
            self._check_stall()
        return plan

    def report_ended(self) -> None:
        """Call ``ended`` for the requests that have ended since it was called last."""
        ended = self.engine.ledger.ended - self._reported
        self._reported = self.engine.ledger.ended
        self._ended(ended)

    def _check_stall(self) -> None:
        if self.engine.idle_plans > self._stall_plans:
            raise stall_error(f"replica {self.index}", self._stall_plans)

    def _begin_decode(self, plan: StepPlan, now: float, load_s: float) -> Segment:
        """The segment of the plan's batch: a new one if that, or what it passes over, has changed, or it has waited."""
        segment = self._segment
        shape = plan.shape
        if (
            segment is None
            or plan.epoch != self._epoch
            or load_s > 0.0
            or (self._prices_blocked and shape.blocked_seqs != self._blocked)
        ):
            self._blocked = shape.blocked_seqs
            segment = self._segment = self._new_segment(now, shape)
            self._epoch = plan.epoch
            self._done = 0
        return segment

    def _jump_to(self, plan: StepPlan, segment: Segment, last_too: bool = True) -> int:
        """How far the plan can be run before the engine must plan, as a boundary of the segment.

        That is one step, or with jumps as many as the plan allows (``max_repeat``), but not past the end of an output,
        nor past the first boundary after the next arrival or wake-up. Without ``last_too`` it is the start of the last
        of these steps.
        """
        done = self._done
        target = done + 1 if last_too else done
        if not plan.max_repeat or not self._jump or not (last_too or not self.engine.must_plan):
            return target
        last = done + min(plan.max_repeat + 1, self._next_end() - self._clock[0])
        if not last_too:
            last -= 1
        if last <= target:
            return target
        disturbed_at, wake_at = self.feed.next_at, plan.wake_at
        if wake_at is not None and wake_at < disturbed_at:
            disturbed_at = wake_at
        return segment.first_at_or_after(disturbed_at, target, last) if disturbed_at < inf else last

    def _next_end(self) -> int:
        """The decode clock at which the model ends the next output."""
        ends = self._ends
        while ends:
            clock, _, sequence, joins = ends[0]
            if sequence.decoding and sequence.joins == joins:
                return clock
            heappop(ends)
        return 1 << 60

    def _sampled(self, plan: StepPlan, steps: int) -> list[str]:
        """The requests whose output the model ends with the last token of this plan."""
        clock, ends, outputs = self._clock[0], self._ends, self._outputs
        finished: list[str] = []
        if plan.decode_count:
            clock += steps
            while ends and ends[0][0] <= clock:
                _, _, sequence, joins = heappop(ends)
                if sequence.decoding and sequence.joins == joins:
                    finished.append(sequence.request.request_id)
        for prefill in plan.prefills:
            sequence = prefill.sequence
            if prefill.completes and sequence.ended_at is None:  # else it ended after the step was planned
                request_id = sequence.request.request_id
                left = outputs[request_id] - sequence.last_generated - 1
                if left <= 0:
                    finished.append(request_id)
                else:
                    self._order += 1
                    heappush(ends, (clock + left, self._order, sequence, sequence.joins + 1))
        if self._held:  # they decode again after this step
            begin = self._clock[0] + bool(plan.decode_count)
            for sequence in self._held.values():
                self._order += 1
                left = outputs[sequence.request.request_id] - sequence.generated
                heappush(ends, (begin + left, self._order, sequence, sequence.joins + 1))
        for request_id in finished:
            del outputs[request_id]
        return finished

    def _load(self, plan: StepPlan) -> Generator[Event, Any, float]:
        """Start the plan's loads; with sync loading wait for those to the GPU. Returns the seconds waited."""
        env, transfers, start = self._env, self._transfers, self._env.now
        loads = plan.loads
        if len(loads) == 1 and self._sync and not loads[0].prefetch:
            if not transfers.alone(loads[0]):
                yield from transfers.bring(loads[0], None)
            return env.now - start
        self.engine.expect_loads(plan, start)
        waits = []
        for load in loads:
            if (cold_s := transfers.first_read_s(load)) and (load.prefetch or not self._sync):
                self.engine.expect_load(load.adapter.name, start + load.seconds(self._cost) + cold_s)
            if self._sync and not load.prefetch:
                waits.append(env.process(transfers.bring(load, None)))
            else:
                self._under_way += 1
                env.process(transfers.bring(load, self._loaded))
        if waits:
            yield AllOf(env, waits)
        return env.now - start

    def _new_segment(self, now: float, shape: BatchShape) -> Segment:
        """The segment of a batch that begins to decode now."""
        self._leave_segment()
        return Segment(now, shape, self._cost.decode_line(shape), self._cost.step_seconds, self._noise)

    def _leave_segment(self) -> None:
        """The steps of the segment that are committed have had their noise."""
        if self._noise is not None:
            self._noise.taken += self._done
        self._done = 0

    def _prefill_seconds(self, shape: BatchShape) -> float:
        """Seconds of a step with prompt tokens, which comes after the segment."""
        seconds = self._cost.step_seconds(shape)
        if self._noise is None:
            return seconds
        self._leave_segment()
        return self._noise.prefill_seconds(seconds)

    def _loaded(self, load: AdapterLoad) -> None:
        if self._dead:
            return
        self._under_way -= 1
        self.engine.loaded(load.adapter.name, load.prefetch)
        self._disturb()

    def _rest(self) -> Generator[Event, Any, None]:
        """Wait until a request arrives, a load is done or the policy wants to be asked."""
        env = self._env
        resting = self._resting = env.event()
        wake_at = min(self.feed.next_at, self.engine.wake_at or inf)
        if wake_at < inf:
            env.call_at(wake_at, partial(succeed, resting))
        yield resting
        self._resting = None
