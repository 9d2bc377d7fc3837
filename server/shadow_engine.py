"""ShadowEngine: the server's engine played again elsewhere, with a candidate that is told every event and acts not.

the server                          the shadow's process
step k: requests, loads, changes,   a copy of the engine takes in the same, the policy in force is a script: it
choices, times  -------------->     yields the choices of step k, so the copy is what the server's engine was
                                    just before: the candidate is asked, on a copy of that copy
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any

from loratory.errors import LoratoryError, shortened
from loratory.server.shadow_step import OK_WORD, Choice, ShadowBegin, ShadowStep
from loratory.serving.actions import (
    Action,
    Admit,
    Evict,
    Load,
    Outcome,
    Preempt,
    Prefetch,
    Reject,
    Schedule,
    Wake,
)
from loratory.serving.engine_view import View
from loratory.serving.events import Decided, EventHandlers
from loratory.serving.plan import StepResult
from loratory.serving.policy import PolicyLike
from loratory.serving.policy_members import LoadedSpec, members_of
from loratory.serving.run_recording import NEVER_ENDS
from loratory.serving.views import RequestView
from loratory.serving.want import look_ahead
from loratory.sim.recorded_times import repeat_change, tokens_given

Moment = Callable[[View], None]
"""Called when the policy in force is about to be asked, with the engine as it was then."""


class DivergedError(LoratoryError):
    """The copy of the engine is not what the server's was: what the candidate would do there means nothing."""


class _Lengths(dict[str, int]):
    """Where the outputs of one step end."""

    def __missing__(self, request_id: str) -> int:
        return NEVER_ENDS


class ShadowEngine:
    """``candidate`` is told of what is there at the beginning, and then every event. ``moment`` is called before each
    choice; in a fork, `ask` carries out what the candidate would do.

    Raises `PolicyError` when the candidate fails, and `DivergedError`.
    """

    def __init__(self, begin: ShadowBegin, spec: str, candidate: PolicyLike, moment: Moment) -> None:
        self.decided: list[Decided] = []
        """What was yielded since it was last cleared, by the script or by the candidate."""
        self._moment = moment
        self._step: ShadowStep | None = None
        self._error: LoratoryError | None = None
        """What went wrong while the script was asked; raised there, it would be taken for the script's."""
        members = members_of(candidate, spec)
        self._prefetch = members.prefetch
        self.only_waiting = members.only_waiting and not members.prefetch
        policy = _Script(spec, candidate, members.observe, members.observes, members.evict, self)
        self._policy = policy
        sink = EventHandlers({Decided: self.decided.append})
        self.engine = begin.copy.engine(policy, begin.cost, sink, arriving=False, handed_over=True)

    @property
    def step_now(self) -> ShadowStep:
        """The step that is being played."""
        assert self._step is not None
        return self._step

    def play(self, step: ShadowStep) -> None:
        """Take in and do what the server's engine did in one step."""
        engine, ledger = self.engine, self.engine.ledger
        runner = engine._runner
        start_s, end_s, load_s, failed = step.step
        requests = list(reversed(step.requests))
        for change in step.changes:
            while requests and requests[-1].arrival <= change.at_s:
                engine.submit(requests.pop())
            if change.kind in ("swap", "put_back"):  # the script goes on as what the other policy yields
                self._forget_wakes()
            elif change.kind != "add" or change.values[0][0] not in ledger.adapters:  # the copy may have it already
                repeat_change(engine, change, None)
        while requests:
            engine.submit(requests.pop())
        for load in step.loads:
            if load.failed is None:
                engine.loaded(load.adapter, load.prefetch)
            else:
                engine.load_failed(load.adapter, load.failed, load.prefetch)
        if step.failed_over[:1] == (0,):
            self._forget_wakes()
        if step.consulted:
            runner.ask = True
        self._step = step
        plan = engine.plan(start_s)
        if self._error is not None:
            raise self._error
        if plan is not None:
            engine.expect_loads(plan, start_s)
            _, last = tokens_given(plan, _Lengths(step.outputs))
            engine.commit(plan, StepResult(1, last, load_s, failed), end_s)

    def ask(self) -> None:
        """Ask the candidate, and carry out what it yields: this engine is then no copy of the server's any more.

        Raises `PolicyError` when it fails.
        """
        self.decided.clear()
        self._policy.is_candidate = True
        runner, view = self.engine._runner, self.engine.view
        runner.consult(view)
        if self._prefetch:
            runner.carry_out(look_ahead(view, self._prefetch))

    # -- for the script ------------------------------------------------------------------------------------------

    def script(self, view: View) -> Schedule:
        """The choices of the step that is played, each checked for the ledger's answer."""
        step = self.step_now
        if not step.consulted:
            return
        try:
            self._moment(view)
        except LoratoryError as error:
            self._error = error
            return
        self.decided.clear()
        for place, choice in enumerate(step.choices):
            if place and place in step.failed_over:
                self._forget_wakes()
            action = self._action(choice)
            if action is None:
                if choice.outcome == OK_WORD:
                    self._diverged(f"it has no request {shortened(choice.name, 60)!r} at {step.step.start_s:.6f} s")
                    return
                continue
            outcome = yield action
            word = OK_WORD if outcome.ok else str(outcome.why)
            if word != choice.outcome:
                what = f"{choice.action} {shortened(choice.name, 60)!r} at {step.step.start_s:.6f} s"
                self._diverged(f"{what} was answered {choice.outcome!r}, and here {word!r}")
                return

    def victim(self) -> RequestView | None:
        """The request that was preempted for want of KV blocks."""
        step = self.step_now
        running = self.engine.ledger.running
        for request_id in step.victims:
            if request_id in running:
                return running[request_id].view
        return None

    def _diverged(self, what: str) -> None:
        self._error = DivergedError(f"the shadow's copy of the engine is not what the server's is: {what}")

    def _action(self, choice: Choice) -> Action | None:
        """The action of a choice; None where its request is not known."""
        word, name, values, _ = choice
        if word == "wake":
            return Wake(*values)
        if word in _OF_ADAPTERS:
            made: Action = _OF_ADAPTERS[word](name)
            return made
        sequence = self.engine.ledger.sequences.get(name)
        return None if sequence is None else _OF_REQUESTS[word](sequence.view, *values)

    def _forget_wakes(self) -> None:
        """Another policy decides from now on, and it asked for nothing yet."""
        runner = self.engine._runner
        runner.wake_times.clear()
        runner.wake_clocks.clear()
        runner.ask = True


_OF_ADAPTERS: Mapping[str, Callable[[str], Any]] = {"load": Load, "evict": Evict, "prefetch": Prefetch}
_OF_REQUESTS: Mapping[str, Callable[..., Any]] = {"admit": Admit, "preempt": Preempt, "reject": Reject}


class _Script:
    """The policy of the copy: it decides as the server's did; what it is told goes to the candidate."""

    def __init__(
        self, spec: str, candidate: PolicyLike, observe: Any, observes: Any, evict: Any, engine: ShadowEngine
    ) -> None:
        self.spec = LoadedSpec(spec)
        self.is_candidate = False
        self.evict = evict
        if observe is not None:
            self.observe = observe
            self.observes = observes
        self._candidate = candidate
        self._engine = engine

    def schedule(self, view: View) -> Generator[Action, Outcome, None]:
        """What the server's policy yielded, or what the candidate yields."""
        if self.is_candidate:
            return self._candidate.schedule(view)
        return self._engine.script(view)

    def victim(self, view: View) -> RequestView | None:
        """Whom the server preempted."""
        return self._engine.victim()
