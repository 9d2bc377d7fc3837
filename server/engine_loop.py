"""EngineLoop: the one thread that touches engine, ledger and model.

coroutines                           engine's thread
submit, abort, call   -- Mailbox ->  between two steps: each message in order
TokenStream.take     <- wake, once -  after a step: tokens and ends, for all streams of an event loop together
                        a step
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future
from math import inf
from threading import Event as Flag
from threading import Lock, Thread
from typing import TypeVar

from loratory.errors import LoratoryError, StalledError
from loratory.executor.executor import Executor
from loratory.executor.generation import Generation, SampledToken
from loratory.server.mailbox import Mailbox, Message
from loratory.server.stream import Finish, TokenStream
from loratory.serving.events import Ended
from loratory.serving.guest_errors import unexpected
from loratory.serving.request import Request, Status

T = TypeVar("T")
TokenListener = Callable[[str, float], None]
STALL_S = 10.0
"""Seconds for which a policy may leave requests waiting although nothing runs."""

LOG = logging.getLogger("loratory.server")


class EngineLoop:
    """Runs an executor's steps in a thread of its own, and brings requests in and tokens out.

    `submit`, `abort` and `call` may be called from any thread. ``on_token(request_id, at_s)`` is told of every token,
    in the engine's thread. When the executor fails, every stream ends as failed, `failure` says why, and nothing more
    is taken. The same when a policy does not come back (`Executor.on_stuck`): its thread is left behind.
    """

    def __init__(self, executor: Executor, on_token: TokenListener | None = None, stall_s: float = STALL_S) -> None:
        self.executor = executor
        self.failure = ""
        self._mailbox = Mailbox(executor.now, executor.woken.set)
        self._streams: dict[str, TokenStream] = {}
        self._touched: set[TokenStream] = set()
        self._told = on_token
        self._stall_s = stall_s
        self._stuck_since: float | None = None
        self._stopping = False
        self._left_behind = False
        """Whether the engine's thread is inside a policy that does not come back."""
        self._ended = Flag()
        self._late = Lock()
        self._thread = Thread(target=self._run, name="engine", daemon=True)
        executor.hear(self._token, self._end)
        executor.on_stuck = self._leave_behind

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, request: Request, generation: Generation, stream: TokenStream) -> None:
        """A request arrives now: its ``arrival`` is replaced by the engine's second, and its ``deadline``, which counts
        from the arrival, by the absolute one. What the executor refuses ends the stream as rejected, with the reason.
        """

        def take_in(at: float) -> None:
            due = None if request.deadline is None else at + request.deadline
            stamped = request._replace(arrival=at, deadline=due)
            if self.failure:
                self._refuse(stream, self.failure, "failed")
                return
            self._streams[request.request_id] = stream
            try:
                self.executor.submit(stamped, generation)
            except LoratoryError as error:
                del self._streams[request.request_id]
                self._refuse(stream, str(error), "rejected")

        self._put(take_in)

    def abort(self, request_id: str, why: str = "aborted by the client") -> None:
        """End a request between two steps; nothing if it has ended. Its stream gets the end."""

        def give_up(at: float) -> None:
            if not self._ended.is_set():
                self.executor.abort(request_id, why, at)

        self._put(give_up)

    def call(self, work: Callable[[Executor, float], T]) -> Future[T]:
        """``work(executor, at)`` in the engine's thread, between two steps, after all that was put before."""
        answer: Future[T] = Future()

        def carry_out(at: float) -> None:
            if not answer.set_running_or_notify_cancel():
                return
            try:
                if self._ended.is_set():
                    raise LoratoryError(self.failure)
                answer.set_result(work(self.executor, at))
            except BaseException as error:
                answer.set_exception(error)

        self._put(carry_out)
        return answer

    def _put(self, message: Message) -> None:
        self._mailbox.put(message)
        if self._ended.is_set():  # the engine's thread is gone: whoever comes late is told so here
            with self._late:
                self._carry_out_rest()

    def stop(self, wait_s: float | None = None) -> bool:
        """End after the step that runs; what is in flight then ends as aborted. True when the thread has ended."""
        self._stopping = True
        self._put(_nothing)
        if self._left_behind:
            return False
        if self._thread.is_alive():
            self._thread.join(wait_s)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        """Whether the thread runs steps."""
        return self._thread.is_alive() and not self.failure

    # -- in the engine's thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        executor = self.executor
        try:
            while not self._stopping:
                messages, now = self._mailbox.take()
                for at, message in messages:
                    message(at)
                ran = not self.failure and self._step(now)
                if self._left_behind:
                    return
                self._wake()
                if ran:
                    self._stuck_since = None
                elif not self._stopping and not self._mailbox:  # the step has cleared `woken`
                    executor.rest(self._idle_until())
        except BaseException as error:  # a fault of our own: the clients are told, and the process goes on to say it
            self.failure = unexpected(error)
            LOG.exception("the engine's thread has failed")
        finally:
            if not self._left_behind:
                self._close()

    def _leave_behind(self, why: str) -> None:
        """The engine's thread is inside the policy for good. In the thread of the policy's watch: the requests have
        ended, and whoever waits for that thread is told why it will not answer."""
        LOG.error("the engine has stopped: %s", why)
        self.failure = why
        self._left_behind = True
        for stream in list(self._streams.values()):
            stream.finish(Finish("failed", why))
            self._touched.add(stream)
        self._streams.clear()
        self._ended.set()
        with self._late:
            self._carry_out_rest()

    def _step(self, now: float) -> bool:
        try:
            return self.executor.step(now)
        except StalledError as error:
            return self._progress_stopped(str(error))
        except LoratoryError as error:
            self.failure = str(error)
            LOG.error("the engine has stopped: %s", error)
            return False

    def _idle_until(self) -> float:
        """The second until which there is nothing to do, inf: for ever. A policy that leaves requests waiting although
        nothing runs has until then, too, since it may wait for a fuller batch."""
        executor = self.executor
        wake_at = executor.engine.wake_at
        if self.failure or not executor.is_stuck:
            self._stuck_since = None
            return inf if wake_at is None else wake_at
        now = executor.now()
        if self._stuck_since is None:
            self._stuck_since = now
        if now < self._stuck_since + self._stall_s:
            return self._stuck_since + self._stall_s
        self._stuck_since = None
        waiting = executor.engine.unfinished
        self._progress_stopped(
            f"policy {executor.policy_spec} left {waiting} requests waiting for {self._stall_s:g} s, although nothing "
            "runs: let it admit them, or yield Wake"
        )
        return now

    def _progress_stopped(self, why: str) -> bool:
        """Put the policy before this one back, or else end what waits. Returns whether to go on at once."""
        executor = self.executor
        LOG.error("%s", why)
        if executor.put_back(why, executor.now()):
            return True
        for request_id in list(executor.engine.ledger.sequences):
            executor.fail(request_id, why, executor.now())
        return True

    def _close(self) -> None:
        why = self.failure or "the server is shutting down"
        executor = self.executor
        status: Status = "failed" if self.failure else "aborted"
        try:
            executor.engine.dismiss_policy()
            executor.engine.end_all(executor.now(), status, why)
        except BaseException:  # what broke may break here, too: the clients are told all the same
            LOG.exception("the engine could not end its requests")
        for stream in self._streams.values():
            stream.finish(Finish(status, why))
            self._touched.add(stream)
        self._streams.clear()
        self.failure = why
        self._ended.set()
        with self._late:
            self._carry_out_rest()

    def _carry_out_rest(self) -> None:
        """The loop has ended, and `failure` says why: tell those whose messages it has not taken."""
        messages, _ = self._mailbox.take()
        for at, message in messages:
            message(at)
        self._wake()

    def _token(self, request_id: str, token: SampledToken) -> None:
        stream = self._streams.get(request_id)
        if stream is not None:
            stream.put(token)
            if not stream.whole:
                self._touched.add(stream)
        if self._told is not None:
            self._told(request_id, token.at_s)

    def _end(self, event: Ended, _: Generation) -> None:
        stream = self._streams.pop(event.request.request_id, None)
        if stream is not None:
            stream.finish(Finish(event.status, event.why))
            self._touched.add(stream)

    def _refuse(self, stream: TokenStream, why: str, status: str) -> None:
        stream.finish(Finish("failed" if status == "failed" else "rejected", why))
        self._touched.add(stream)

    def _wake(self) -> None:
        """Wake the readers of all streams that have something new: one call for each event loop."""
        if not self._touched:
            return
        by_loop: dict[asyncio.AbstractEventLoop, list[TokenStream]] = {}
        for stream in self._touched:
            by_loop.setdefault(stream.loop, []).append(stream)
        self._touched.clear()
        for loop, streams in by_loop.items():
            try:
                loop.call_soon_threadsafe(_wake_all, streams)
            except RuntimeError:  # the event loop has been closed: nobody reads any more
                continue


def _nothing(at: float) -> None:
    """Wakes the engine's thread."""


def _wake_all(streams: list[TokenStream]) -> None:
    for stream in streams:
        stream.wake()
