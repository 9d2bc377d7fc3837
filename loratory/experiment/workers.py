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
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, Self, TypeVar

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

    See `Workers`.
    """
    with Workers(function, jobs, name_of) as workers:
        yield from workers.results(tasks)


class Workers(Generic[A, R]):
    """Up to ``jobs`` processes that call ``function(task)``, and are kept from one `results` to the next.

    ``function`` is sent to each process once, so it may keep there what its next task needs too. It must be picklable,
    and so must tasks and results. ``attempts``: how often a task is
    tried whose process dies. However ``with`` ends, no process is left: each is in a process group of its own, which
    Ctrl-C in a terminal does not reach, and ends by itself when this process is gone.
    """

    def __init__(self, function: Callable[[A], R], jobs: int, name_of: Callable[[A], str], attempts: int = 1) -> None:
        self._function, self._name_of, self._jobs, self._attempts = function, name_of, jobs, attempts
        self._lifeline, self._held = os.pipe()
        self._workers: list[_Worker[A, R]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._held)
        os.close(self._lifeline)
        for worker in self._workers:
            worker.end()

    def results(self, tasks: Sequence[A]) -> Iterator[tuple[int, R]]:
        """(place of the task, result) of each task as it is done.

        The first exception of a call is raised here, and `WorkerDiedError`, with the task's name, when a process dies.
        """
        for _ in range(min(self._jobs, len(tasks)) - len(self._workers)):
            self._workers.append(_Worker(self._function, self._lifeline))
        queue = deque(enumerate(tasks))
        tried = [0] * len(tasks)
        self._give(queue)
        while busy := [worker for worker in self._workers if worker.place is not None]:
            for ready in wait([worker.connection for worker in busy]):
                worker = next(one for one in busy if one.connection is ready)
                place = worker.place
                assert place is not None
                answer = None
                try:
                    answer = worker.answer(self._name_of)
                except WorkerDiedError:
                    tried[place] += 1
                    if tried[place] >= self._attempts:
                        raise
                    worker.end()
                    self._workers[self._workers.index(worker)] = _Worker(self._function, self._lifeline)
                    queue.appendleft((place, tasks[place]))
                self._give(queue)
                if answer is not None:
                    yield answer

    def _give(self, queue: deque[tuple[int, A]]) -> None:
        """Let idle processes work on what is next."""
        for worker in self._workers:
            if worker.place is None and queue:
                worker.give(*queue.popleft())


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
        with suppress(OSError):  # it has died: `answer` reports that
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
