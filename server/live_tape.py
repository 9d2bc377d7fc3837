"""LiveTape: what a server's engine takes in, decides and does, step by step, for those that write it down."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import NamedTuple

from loratory.serving.events import (
    Decided,
    Ended,
    EventHandlers,
    PolicySwapped,
    Preempted,
    Sink,
)
from loratory.serving.request import Request
from loratory.serving.run_recording import RecordedChange, RecordedLoad, RecordedStep


class LiveStep(NamedTuple):
    """One call of `Executor.step`, and what the engine learnt before it.

    ``consulted``: whether the policy was asked. ``decided``: what it yielded, in order. ``failed_over``: after how many
    of those another policy took over, because the one in force failed. ``put_in``: policies that came into force since
    the step before, by order or because another failed, in order. ``victims``: the requests preempted for want of KV
    blocks. ``outputs``: requests that its end completed, with their tokens. ``ended``: requests that reached a final
    status, for whatever reason. ``step`` is None for what came after the last one.
    """

    requests: tuple[Request, ...]
    loads: tuple[RecordedLoad, ...]
    changes: tuple[RecordedChange, ...]
    consulted: bool
    decided: tuple[Decided, ...]
    failed_over: tuple[int, ...]
    put_in: tuple[str, ...]
    victims: tuple[str, ...]
    step: RecordedStep | None
    outputs: tuple[tuple[str, int], ...]
    ended: tuple[Ended, ...]


Taker = Callable[[LiveStep], None]
"""Takes each step in the engine's thread: it may only put it somewhere for another thread."""


class LiveTape:
    """A `loratory.serving.run_recording.Tape` and a sink that make `LiveStep`s, and hand them to any number of takers.

    A step is handed on when the next one has been planned, because its end is known only then. All calls but
    `remove` and `close` come in the engine's thread.
    """

    def __init__(self) -> None:
        self._takers: tuple[Taker, ...] = ()
        self._changing = Lock()
        self._requests: list[Request] = []
        self._loads: list[RecordedLoad] = []
        self._changes: list[RecordedChange] = []
        self._consulted = False
        self._decided: list[Decided] = []
        self._failed_over: list[int] = []
        self._put_in: list[str] = []
        self._victims: list[str] = []
        self._outputs: list[tuple[str, int]] = []
        self._ended: list[Ended] = []
        self._planned: LiveStep | None = None
        """The last step, whose outputs and ends are those that come from now on."""
        self.sink: Sink = EventHandlers(
            {
                Decided: self._decided.append,
                Ended: self._ended.append,
                Preempted: self._on_preempted,
                PolicySwapped: self._on_swapped,
            }
        )

    def add(self, taker: Taker) -> None:
        """From the next step on, another taker. What came before is handed to the others first."""
        self._hand_on()
        with self._changing:
            self._takers = (*self._takers, taker)

    def remove(self, taker: Taker) -> None:
        """The taker gets no more steps; nothing where it is none. From any thread."""
        with self._changing:
            self._takers = tuple(each for each in self._takers if each != taker)

    def consulted(self) -> None:
        """The policy is about to be asked (`Engine.before_consult`)."""
        self._consulted = True

    def request(self, request: Request) -> None:
        """See `Tape`."""
        self._requests.append(request)

    def load(self, load: RecordedLoad) -> None:
        """See `Tape`."""
        self._loads.append(load)

    def change(self, change: RecordedChange) -> None:
        """See `Tape`."""
        self._changes.append(change)

    def output(self, request_id: str, tokens: int) -> None:
        """See `Tape`."""
        self._outputs.append((request_id, tokens))

    def step(self, step: RecordedStep) -> None:
        """See `Tape`. What was told since the last call belongs to this step, but for the ends of the last one."""
        if not self._takers:
            self._forget()
            return
        self._hand_on()
        self._planned = self._taken(step)

    def close(self) -> None:
        """Hand on what is left, once the engine's thread has ended."""
        self._hand_on()
        if self._requests or self._changes or self._ended:
            last = self._taken(None)
            for taker in self._takers:
                taker(last._replace(ended=tuple(self._ended)))
            self._ended.clear()

    def _taken(self, step: RecordedStep | None) -> LiveStep:
        taken = LiveStep(
            tuple(self._requests),
            tuple(self._loads),
            tuple(self._changes),
            self._consulted,
            tuple(self._decided),
            tuple(self._failed_over),
            tuple(self._put_in),
            tuple(self._victims),
            step,
            (),
            (),
        )
        self._forget(ends=False)
        return taken

    def _forget(self, ends: bool = True) -> None:
        """What was told so far is of no step that follows; ``ends``: nor are the ends."""
        for kept in (self._requests, self._loads, self._changes, self._decided, self._failed_over, self._victims):
            kept.clear()
        self._put_in.clear()
        self._consulted = False
        if ends:
            self._planned = None
            self._outputs.clear()
            self._ended.clear()

    def _hand_on(self) -> None:
        """The last step is whole now."""
        planned, self._planned = self._planned, None
        if planned is not None:
            whole = planned._replace(outputs=tuple(self._outputs), ended=tuple(self._ended))
            self._outputs.clear()
            self._ended.clear()
            for taker in self._takers:
                taker(whole)

    def _on_preempted(self, event: Preempted) -> None:
        if event.why == "kv":
            self._victims.append(event.request.request_id)

    def _on_swapped(self, event: PolicySwapped) -> None:
        self._put_in.append(event.policy)
        if event.why:
            self._failed_over.append(len(self._decided))
