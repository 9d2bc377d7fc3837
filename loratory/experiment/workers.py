"""workers: calls shared among processes; one that dies is reported in one line, and none outlives its caller."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from loratory.errors import LoratoryError
from loratory.serving.guest_errors import unexpected
from loratory.serving.policy_guard import redirect_words

A = TypeVar("A")
R = TypeVar("R")

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from loratory.experiment.workers import serve; serve(*map(int, sys.argv[2:]))"
)
_SECONDS_TO_END = 5.0


class WorkerDiedError(LoratoryError):
    """A process ended without an answer."""


def shared(
    function: Callable[[A], R], tasks: Sequence[A], jobs: int, name_of: Callable[[A], str]
) -> Iterator[tuple[int, R]]:
    """Call ``function(task)`` for each task, in ``jobs`` processes; yields (place of the task, result) as each is done.

    ``function`` is sent to each process once, so it may keep there what its next task needs too. It must be picklable,
    and so must tasks and results. The first exception of a call is raised here, and `WorkerDiedError`, with
    ``name_of(task)``, when a process dies. However this ends, no process is left: each is in a process group of its
    own, which Ctrl-C in a terminal does not reach, and ends by itself when this process is gone.
    """
    lifeline, held = os.pipe()
    workers: list[_Worker[A, R]] = []
    try:
        queue = iter(enumerate(tasks))
        for _ in range(min(jobs, len(tasks))):
            workers.append(_Worker(function, lifeline))
            workers[-1].give(*next(queue))
        while busy := [worker for worker in workers if worker.place is not None]:
            for ready in wait([worker.connection for worker in busy]):
                worker = next(one for one in busy if one.connection is ready)
                answer = worker.answer(name_of)
                following = next(queue, None)
                if following is not None:
                    worker.give(*following)
                yield answer
    finally:
        os.close(held)
        os.close(lifeline)
        for worker in workers:
            worker.end()


class _Worker(Generic[A, R]):
    """One process: it gets the function once, then a task at a time, and answers each."""

    def __init__(self, function: Callable[[A], R], lifeline: int) -> None:
        ours, theirs = socket.socketpair()
        self._words, words = os.pipe()
        os.set_blocking(self._words, False)
        passed = (theirs.fileno(), lifeline, words)
        with theirs, os.fdopen(words, "wb"):
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(sys.path), *map(str, passed)],
                stdin=subprocess.DEVNULL,
                stdout=sys.__stderr__.fileno() if sys.__stderr__ is not None else None,
                pass_fds=passed,
                process_group=0,
            )
        self.connection: Connection[Any, Any] = Connection(ours.detach())
        with suppress(OSError):
            self.connection.send(function)
        self._task: A | None = None
        self.place: int | None = None
        """Which task it works on; None when it is idle."""

    def give(self, place: int, task: A) -> None:
        """Let it work on a task."""
        self.place, self._task = place, task
        with suppress(OSError):  # it has died: `answer` reports that
            self.connection.send(task)

    def answer(self, name_of: Callable[[A], str]) -> tuple[int, R]:
        """The result of its task. Raises what the call raised, or `WorkerDiedError`."""
        place, task = self.place, self._task
        assert place is not None and task is not None
        try:
            ok, result = self.connection.recv()
        except (EOFError, OSError):
            raise WorkerDiedError(self._last_words() or f"{name_of(task)}: {self._how_it_died()}") from None
        self.place = self._task = None
        if not ok:
            raise result
        return place, result

    def _last_words(self) -> str:
        try:
            return os.read(self._words, 4096).decode(errors="replace").strip()
        except BlockingIOError:
            return ""

    def _how_it_died(self) -> str:
        code = self._process.wait()
        if code >= 0:
            return f"its process ended with exit code {code} before the run was over: look for what the policy calls"
        name = signal.Signals(-code).name
        hint = ": the machine may be out of memory; try a lower --jobs" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"

    def end(self) -> None:
        """End the process; by force if it is at work, or does not end by itself."""
        self.connection.close()
        if self.place is not None:
            self._process.terminate()
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._words)


def serve(descriptor: int, lifeline: int, words: int) -> None:
    """What a worker's process does: answer tasks until there are no more, or until its caller is gone."""
    redirect_words(words)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    connection: Connection[Any, Any] = Connection(descriptor)
    try:
        function: Callable[[Any], Any] = connection.recv()
    except (EOFError, OSError):
        return
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):
            return
        answer: tuple[bool, Any]
        try:
            answer = (True, function(task))
        except LoratoryError as error:
            answer = (False, error)
        except Exception as error:
            answer = (False, LoratoryError(unexpected(error)))
        try:
            connection.send(answer)
        except OSError:
            return
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            connection.send((False, LoratoryError(unexpected(error))))


def _end_with(lifeline: int, exit_now: Callable[[int], Any] = os._exit) -> None:
    """End this process when the other end of a pipe is closed, as it is when the caller has ended."""
    os.read(lifeline, 1)
    exit_now(1)
