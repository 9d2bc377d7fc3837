"""live_run: a world on the real executor, with a stand-in for the model, while orders come in; and its replay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from threading import Event as Flag
from typing import Any

from roster import POLICIES

from loratory.executor.clock import Clock
from loratory.executor.executor import Executor
from loratory.executor.generation import Generation
from loratory.executor.runner import StepTokens
from loratory.executor.tiers import AdapterTiers
from loratory.server.live_tape import LiveTape
from loratory.serving.engine import Engine
from loratory.serving.events import Event, Sink, combined
from loratory.serving.lora import Adapter
from loratory.serving.plan import StepPlan
from loratory.serving.policy import PolicyLike
from loratory.serving.request_maker import RequestMaker
from loratory.serving.run_recording import Recording, Tape
from loratory.sim.recorded_times import replay
from loratory.testing.integrity import check
from loratory.testing.run import Values, plain
from loratory.testing.world import World, adapter

Order = tuple[float, str, Any]
"""When, what, and of what: ("swap", name), ("abort", place), ("add", Adapter), ("remove" | "pin" | ..., name)."""
Makers = Mapping[str, Callable[[], PolicyLike]]


class SteppingClock:
    """Time that goes on by itself, and jumps over waits."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        """See `loratory.executor.clock.Clock`."""
        self.time += 0.0011
        return self.time

    def wait(self, until: float, woken: Flag) -> None:
        """See `loratory.executor.clock.Clock`."""
        if until == inf:
            assert woken.wait(60), "nothing happened for a minute"
        else:
            self.time = max(self.time, until)


class StandIn:
    """In place of a model: the next token of a request is the number of those before it."""

    def run(self, plan: StepPlan, generations: Mapping[str, Generation], skip: Any = ()) -> StepTokens:
        """See `loratory.executor.runner.ModelRunner.run`."""
        ids = [s.request_id for s in plan.decodes] if plan.decode_count else []
        ids += [p.sequence.request_id for p in plan.prefills if p.completes and p.sequence.request_id not in skip]
        return StepTokens({name: len(generations[name].tokens) for name in ids})

    def free(self, request_id: str) -> None:
        """See `loratory.executor.runner.ModelRunner.free`."""


class NoSlots:
    """Takes any adapter and keeps none."""

    def write(self, slot: int, adapter: str) -> None:
        """See `loratory.executor.tiers.Slots`."""

    def require_room(self, files: Any) -> None:
        """See `loratory.executor.tiers.Slots`."""


class AnyFiles:
    """In place of an adapter's verified files."""

    description = None

    def check(self, digest: str) -> None:
        """They are what was registered."""


@dataclass
class LiveRun:
    """What a live run left."""

    events: list[Values] = field(default_factory=list)
    ends: dict[str, tuple[str, str, int]] = field(default_factory=dict)
    answers: list[str] = field(default_factory=list)
    recording: Recording | None = None
    executor: Executor | None = None

    def of(self, *kinds: str) -> list[Values]:
        """The events of some types."""
        return [event for event in self.events if event[0] in kinds]


def stand_in_executor(
    world: World,
    make: Callable[[], PolicyLike],
    clock: Clock,
    timeout_s: float | None = None,
    record: bool | Tape = True,
    **hearing: Any,
) -> Executor:
    """An executor of a world's settings and adapters, whose model is a `StandIn`; it is recorded."""
    woken = Flag()
    tiers: AdapterTiers[str] = AdapterTiers(lambda name: name, NoSlots(), world.config.max_loras, woken.set)
    runner: Any = StandIn()
    return Executor(
        world.config, world.adapters, make(), world.cost, runner, tiers, clock, woken,
        record=record, policy_timeout_s=timeout_s, remake=make, **hearing,
    )  # fmt: skip


def live_run(
    world: World,
    policy: str,
    orders: Sequence[Order] = (),
    makers: Makers = POLICIES,
    *,
    timeout_s: float | None = None,
    before_consult: Callable[[Executor], None] | None = None,
    sink: Sink | None = None,
    each_step: Callable[[Executor], None] | None = None,
    tape: LiveTape | None = None,
    between: Callable[[Executor, float], None] | None = None,
) -> LiveRun:
    """Serve a world's requests at their arrivals, and carry out the orders, on an executor with a stand-in model.

    The ledger is recounted at each step, and ``each_step`` called; ``between(executor, now)`` before each step.
    ``sink`` hears the events, too. With a ``tape``, that is what takes the recording. It ends when nothing is left to
    do; requests that wait for ever then end as failed.
    """
    found = LiveRun()

    def hear(event: Event) -> None:
        found.events.append(plain(event))

    def end(event: Any, generation: Generation) -> None:
        assert event.request.request_id not in found.ends, "a request ended twice"
        found.ends[event.request.request_id] = event.status, event.why, len(generation.tokens)

    record: bool | Tape = True if tape is None else tape
    heard = combined(hear, sink, None if tape is None else tape.sink)
    executor = stand_in_executor(world, makers[policy], SteppingClock(), timeout_s, record, sink=heard, on_end=end)
    if tape is not None:
        executor.engine.before_consult = tape.consulted
    if before_consult is not None:
        executor.engine.before_consult = lambda: before_consult(executor)
    found.executor = executor
    maker, work = RequestMaker(world.workload), world.workload
    todo: list[tuple[float, int, Any]] = [(float(at), 0, place) for place, at in enumerate(work.arrival)]
    todo += [(order[0], 1, order) for order in orders]
    todo.sort(key=lambda each: each[:2])
    pending: list[Any] = []
    try:
        while todo or executor.engine.unfinished:
            now = executor.now()
            while todo and todo[0][0] <= now:
                at, kind, what = todo.pop(0)
                if kind == 0:
                    request, outputs = maker.make(what, at)
                    request = request._replace(cached_tokens=0)
                    executor.submit(request, Generation([0] * request.prompt_tokens, output_tokens=outputs))
                else:
                    _give(executor, what, makers, pending)
            if between is not None:
                between(executor, now)
            ran = executor.step(now)
            check(executor.engine.ledger)
            if each_step is not None:
                each_step(executor)
            if ran:
                continue
            until = min(todo[0][0] if todo else inf, executor.engine.wake_at or inf)
            if until == inf and not executor.tiers.in_flight:
                if not executor.tiers._done.empty():
                    continue
                executor.engine.end_all(executor.now(), "failed", "nothing can happen any more")
                break
            executor.rest(until)
        executor.step(executor.now())
        found.answers = [each.result(timeout=0) for each in pending if each.done()]
        if tape is None:
            found.recording = executor.recording()
        else:
            tape.close()
    finally:
        executor.close()
    return found


def _give(executor: Executor, order: Order, makers: Makers, pending: list[Any]) -> None:
    at, kind, what = order
    if kind == "swap":
        executor.swap(what, makers[what], at)
    elif kind == "abort":
        executor.abort(str(what), "aborted by the client", at)
    elif kind == "add":
        try:
            executor.add_adapter(what, AnyFiles(), at)  # type: ignore[arg-type]
        except Exception as error:
            pending.append(_Answered(str(error)))
    else:
        give = {
            "remove": executor.remove_adapter,
            "pin": executor.pin,
            "unpin": executor.unpin,
            "preload": executor.preload,
            "max_num_seqs": executor.limit_seqs,
        }[kind]
        pending.append(give(what, at))


@dataclass
class _Answered:
    text: str

    def done(self) -> bool:
        return True

    def result(self, timeout: float) -> str:
        return self.text


def replayed(world: World, policy: str, recording: Recording, makers: Makers = POLICIES) -> list[Values]:
    """The events of a recording sent through a fresh engine."""
    events: list[Values] = []
    engine = Engine(
        world.config, world.adapters, makers[policy](), world.cost,
        sink=lambda event: events.append(plain(event)), remake=makers[policy],
    )  # fmt: skip
    replay(engine, recording, lambda spec: makers[spec]())
    return events


def spare_adapter(number: int) -> Adapter:
    """An adapter that a world does not have: id 101 and above."""
    return adapter(100 + number, rank=8, name=f"spare{number}", tier="disk")
