"""AdminState: what an operator changes while a server runs: the policy, a shadow, and the history of both."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from loratory.errors import InputError, LoratoryError, PolicyError, shortened
from loratory.executor.executor import Executor
from loratory.experiment.policy_spec import PolicyFactory, policy_factory
from loratory.server.admin_types import ShadowState, SwapAnswer, SwapEntry
from loratory.server.engine_loop import EngineLoop
from loratory.server.live_tape import LiveTape
from loratory.server.policy_files import allowed_spec, file_digest, policy_roots
from loratory.server.policy_trial import ANSWER_S, try_policy
from loratory.server.settings import ServerSettings
from loratory.server.shadow import Shadow
from loratory.serving.engine_copy import EngineCopy
from loratory.serving.events import EventHandlers, PolicySwapped, Sink
from loratory.serving.plan import CostView

T = TypeVar("T")
LOG = logging.getLogger("loratory.server")

_MOST_SWAPS = 1000
"""Swaps that the history keeps."""


class AdminState:
    """Puts policies in and beside the live one, one change after the other.

    ``folder``: where a shadow writes, None without a recording. `attach` gives it the engine; its coroutines belong to
    one event loop.
    """

    def __init__(self, settings: ServerSettings, cost: CostView, tape: LiveTape, folder: Path | None) -> None:
        self._settings = settings
        self._cost = cost
        self._tape = tape
        self._folder = folder
        self._roots = policy_roots(settings.policy_roots)
        self._history: deque[SwapEntry] = deque(maxlen=_MOST_SWAPS)
        self._loop: EngineLoop | None = None
        self._shadow: Shadow | None = None
        self._changing = asyncio.Lock()
        self.sink: Sink = EventHandlers({PolicySwapped: self._swapped})

    def attach(self, loop: EngineLoop) -> None:
        """The loop whose engine it changes."""
        self._loop = loop

    @property
    def history(self) -> list[SwapEntry]:
        """Policies that were put in so far, the last one last."""
        return list(self._history)

    @property
    def shadow(self) -> ShadowState | None:
        """How the shadow does, also after its end; None if there was none, or it was ended by order."""
        shadow = self._shadow
        if shadow is None:
            return None
        status = shadow.status
        return ShadowState(
            policy=status.spec,
            running=status.running,
            ended=status.ended,
            compared=status.compared,
            same=status.same,
            left_out=dict(status.left_out),
            behind_s=status.behind_s,
        )

    async def swap(self, spec: str) -> SwapAnswer:
        """Try a policy, and put it in between two steps.

        Raises `InputError` or `PolicyError` with the reason where it is refused; then nothing changes.
        """
        spec = allowed_spec(spec.strip(), self._roots)
        async with self._changing:
            begun = time.perf_counter()
            digest = file_digest(spec)
            await self._try(spec)
            make = await asyncio.to_thread(policy_factory, spec, self._settings.policy_timeout_s)
            if file_digest(spec) != digest:
                raise PolicyError(
                    f"policy {shortened(spec, 100)}: its file has changed while it was tried: put it in again"
                )
            trial_s = time.perf_counter() - begun
            before, at_s = await self.in_engine(lambda executor, at: _swap(executor, spec, make, at))
            LOG.info("policy %s is in force, in place of %s", spec, before)
            return SwapAnswer(before=before, policy=spec, at_s=at_s, trial_s=trial_s, shadow=None)

    async def set_shadow(self, spec: str | None) -> ShadowState | None:
        """Ask a policy beside the live one from now on, in place of the shadow there was; None: ask no other.

        It is tried first, as one that is put in. Raises `InputError` or `PolicyError` where that cannot be.
        """
        if spec is not None:
            spec = allowed_spec(spec.strip(), self._roots)
        return await self.put_beside(spec)

    async def put_beside(self, spec: str | None) -> ShadowState | None:
        """`set_shadow` for a spec of the command line, which may name any file."""
        async with self._changing:
            fresh: Shadow | None = None
            if spec is not None:
                if self._folder is None:
                    raise InputError("a shadow writes beside the recording: start the server with --record DIR")
                await self._try(spec)
                answer_s = self._settings.policy_timeout_s
                fresh = await asyncio.to_thread(Shadow, spec, self._folder, answer_s, self._settings.shadow_share)
            before, self._shadow = self._shadow, None
            if before is not None:
                await asyncio.to_thread(before.stop)
            if fresh is not None:
                begin = fresh.start
                try:
                    await self.in_engine(lambda executor, _: begin(executor.engine, self._cost, self._tape))
                except BaseException:
                    await asyncio.to_thread(fresh.stop)
                    raise
                self._shadow = fresh
                LOG.info("policy %s is asked beside %s", spec, self._loop and self._loop.executor.policy_spec)
            return self.shadow

    async def in_engine(self, work: Callable[[Executor, float], T]) -> T:
        """``work(executor, at)`` in the engine's thread. Raises `LoratoryError` where it has ended."""
        if self._loop is None:
            raise LoratoryError("the server has not started")
        answer: Future[T] = self._loop.call(work)
        return await asyncio.wrap_future(answer)

    def close(self) -> None:
        """End the shadow, once the engine's thread has ended."""
        shadow = self._shadow
        if shadow is not None:
            shadow.stop()

    async def _try(self, spec: str) -> None:
        """Run a candidate's trial over a copy of the engine. Raises as `try_policy`."""
        copy = await self.in_engine(lambda executor, _: EngineCopy.of(executor.engine))
        answer_s = min(ANSWER_S, self._settings.policy_timeout_s)
        await asyncio.to_thread(try_policy, spec, copy, self._cost, self._settings.trial_s, answer_s)

    def _swapped(self, event: PolicySwapped) -> None:
        self._history.append(SwapEntry(at_s=event.now, policy=event.policy, why=event.why))
        if event.why:
            LOG.error("policy %s is in force again: %s", event.policy, event.why)


def _swap(executor: Executor, spec: str, make: PolicyFactory, at: float) -> tuple[str, float]:
    before = executor.policy_spec
    executor.swap(spec, make, at)
    return before, at
