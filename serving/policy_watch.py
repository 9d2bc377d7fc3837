"""PolicyWatch: while it is armed, a policy that does not come back in time is stopped, and one that exits is caught."""

from __future__ import annotations

import ctypes
import inspect
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

from loratory.errors import InputError, PolicyError, PolicyTimeout, error_line, shortened
from loratory.serving.guest_errors import place_of
from loratory.serving.policy_guard import Guard, Leavings, redirected_words

POLICY_TIMEOUT_S = 10.0
"""Seconds a policy may take for one answer."""

_LONGEST_S = 86_400.0
_TICKS = 20
"""Looks at the stack in the time a policy may take."""

_PATIENCE = 5
"""Looks after which a policy that catches every exception thrown at it takes the process down with it."""

_SPARE_BYTES = 16_000_000

_OURS = frozenset({"loratory"})
_ENTRIES = {
    "loratory.serving.policy_runner": {"PolicyRunner.consult", "PolicyRunner.preempt_one"},
    "loratory.serving.event_dispatch": {"Announcer.teller.<locals>.tell", "Announcer.scorer.<locals>.score"},
    "loratory.serving.engine": {"Engine._schedule"},
    "loratory.serving.guest_errors": {"guest"},
}
"""The functions that call a policy's code, by module."""

_PASSING = "loratory.serving.reservation"
"""A module of ours whose generators pass the call on."""

_Call = tuple[FrameType, FrameType, object]


class PolicyWatch:
    """Stops a policy's code that takes longer than ``timeout_s`` for one answer, with `PolicyTimeout` raised inside it.

        with PolicyWatch("mine.py:Mine", 10.0):
            simulate(...)

    It looks at the stack twenty times in ``timeout_s``: when it finds the same call of the policy, still without an
    answer, at each of these looks, the time is over. So it costs the run nothing, however often the policy is asked;
    only time inside one call counts, and none in which the process was suspended. In the main thread the looks are
    SIGALRM's; where the caller uses that signal, or in another thread, they are a thread's, which cannot end a call
    into the system (a sleep) before it returns. A single call into C that keeps Python from looking for twice
    ``timeout_s`` ends the process, by `loratory.serving.policy_guard`; policies that come with Loratory have no
    guard.

    Meanwhile ``os._exit`` called by a policy raises SystemExit. A policy that catches what is raised in it, over and
    over, ends the process, too. Either way it is one line and exit code 1, and ``leavings`` are removed before. Watches
    do not nest: the outer counts.
    """

    def __init__(self, policy: str, timeout_s: float = POLICY_TIMEOUT_S, leavings: Leavings = ()):
        if not 0.01 <= timeout_s <= _LONGEST_S:
            raise InputError(
                f"the policy timeout (--policy-timeout, policy_timeout_s) is {timeout_s:g} s: give from 0.01 to "
                f"{_LONGEST_S:,.0f} seconds"
            )
        self._policy = policy
        self._timeout_s = timeout_s
        self._leavings = leavings
        self._spare: bytearray | None = None
        """Room to tell what happened when memory has run out."""
        self._guard: Guard | None = None
        self._call: _Call | None = None
        self._looks = 0
        self._looking = False
        self._ignored = 0
        """Looks since the order was first given that found no policy at work."""
        self._order: BaseException | None = None
        self._raised = 0
        self._nested = False
        self._thread: threading.Thread | None = None
        self._over = threading.Event()
        self._exit: Callable[[int], NoReturn] = os._exit

    def __enter__(self) -> Self:
        self._nested = PolicyWatch.armed() is not None
        if self._nested:
            return self
        self._spare = bytearray(_SPARE_BYTES)
        self._guard = self._guarded()
        self._exit, os._exit = os._exit, self._refuse_exit  # type: ignore[assignment]
        interval = self._timeout_s / _TICKS
        if _may_use_alarm():
            signal.signal(signal.SIGALRM, self._on_alarm)
            signal.setitimer(signal.ITIMER_REAL, interval, interval)
        else:
            self._thread = threading.Thread(
                target=self._look_from_outside, args=(threading.get_ident(), interval), daemon=True
            )
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._spare = None  # first of all, as it takes no memory itself
        if self._nested:
            return
        self._over.set()
        if self._thread is None:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        else:
            self._thread.join()
        if self._guard is not None:
            self._guard.stop()
        os._exit = self._exit  # type: ignore[assignment]
        self._call = None
        late = error if kind is not None else self._order  # an order that a policy has caught, and went on to the end
        if isinstance(late, PolicyTimeout):
            raise PolicyError(shortened(f"policy {shortened(self._policy, 100)} {late.text}")) from late
        if isinstance(late, MemoryError):
            text = f"memory ran out under policy {shortened(self._policy, 100)}"
            raise PolicyError(f"{text}: look for what the policy keeps, or give the process more memory") from late
        if kind is None and late is not None:
            raise late.with_traceback(None)

    @staticmethod
    def armed() -> PolicyWatch | None:
        """The watch that is armed in this process."""
        found = getattr(os._exit, "__self__", None)
        return found if isinstance(found, PolicyWatch) else None

    def _guarded(self) -> Guard | None:
        """The guard of a guest's policy, where the system has what it takes."""
        head = self._policy.partition(":")[0]
        with suppress(OSError):  # a name that is too long for a file
            if any((folder / "policies" / f"{head}.py").is_file() for folder in _folders()):
                return None
        files = {name: str(module.__file__) for name in _ENTRIES if (module := sys.modules.get(name)) is not None}
        entries = {file: [each.rpartition(".")[2] for each in _ENTRIES[name]] for name, file in files.items()}
        ours = [f"{folder}{os.sep}" for folder in _folders()]
        passing = [str(module.__file__)] if (module := sys.modules.get(_PASSING)) is not None else []
        try:
            return Guard(self._policy, self._timeout_s, entries, ours, passing, self._leavings)
        except (OSError, ValueError):
            return None

    def insist(self, order: BaseException) -> None:
        """Raise ``order`` at each look until the ``with`` block is left: a policy may have caught it."""
        self._order = self._order or order

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        if self._looking:
            return  # the machine is so busy that the next signal is here before this look is over
        self._looking = True
        try:
            order = self._due(frame)
        finally:
            self._looking = False
        if order is not None:
            raise order.with_traceback(None)

    def _look_from_outside(self, ident: int, interval: float) -> None:
        """The same from a thread of its own, which raises the exception in the watched one."""
        while not self._over.wait(interval):
            frame = sys._current_frames().get(ident)
            order = self._due(frame)
            del frame
            if order is not None:
                kind = type("PolicyTimeout", (PolicyTimeout,), {"text": getattr(order, "text", "")})
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(kind))

    def _due(self, frame: FrameType | None) -> BaseException | None:
        """What is to be raised at this look, if anything."""
        if self._guard is not None:
            self._guard.alive()
        if self._order is None:
            if not self._is_late(frame):
                return None
            self._order = self._late(frame)
        if _policy_call(frame) is not None:
            self._raised += 1
            if self._raised > _PATIENCE:
                self._give_up()
            return self._order
        self._ignored += 1  # it is on its way out, or the policy has caught it and the run goes on
        return self._order if self._ignored >= _TICKS else None

    def _is_late(self, frame: FrameType | None) -> bool:
        """Whether the stack shows the same unanswered call as all looks since the policy's time began."""
        call = _policy_call(frame)
        if call is None or call != self._call:
            self._call, self._looks = call, 0
            return False
        self._looks += 1
        return self._looks >= _TICKS

    def _late(self, frame: FrameType | None) -> PolicyTimeout:
        """What to raise."""
        late = PolicyTimeout()
        late.text = (
            f"did not come back within {self._timeout_s:g} s; it was at {place_of(frame)}: mend that, or allow more "
            "with --policy-timeout"
        )
        return late

    def _give_up(self) -> NoReturn:
        for folder, made in self._leavings:
            shutil.rmtree(folder, ignore_errors=True)
            for parent in made:
                with suppress(OSError):
                    parent.rmdir()
        what = getattr(self._order, "text", "") or "caught the order to stop"
        text = f"policy {shortened(self._policy, 100)} {what}; it also caught what was raised to stop it"
        words = redirected_words()
        if words is None:
            print(error_line(text), file=sys.stderr, flush=True)
        else:
            os.write(words, text.encode())
        self._exit(1)

    def _refuse_exit(self, code: int) -> NoReturn:
        __tracebackhide__ = True
        if _policy_call(sys._getframe(1)) is None:
            self._exit(code)
        raise SystemExit(code)


def _may_use_alarm() -> bool:
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        return False
    return signal.getsignal(signal.SIGALRM) is signal.SIG_DFL and signal.getitimer(signal.ITIMER_REAL)[0] == 0.0


def _policy_call(frame: FrameType | None) -> _Call | None:
    """The call of a policy's code that is in progress on a stack: who called, what is running, how many answers before.

    A function of `_ENTRIES` is on the stack, and right inside it code that is not ours. Generators of ours between the
    two (`loratory.serving.reservation`) pass the call on. Where the policy calls us, and we call it again (its evict
    in `want`), the outermost call counts: that is the one without an answer.
    """
    inside: list[FrameType] = []
    found: _Call | None = None
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module in _ENTRIES and frame.f_code.co_qualname in _ENTRIES[module]:
            for inner in reversed(inside):
                if not _is_ours(inner):
                    found = frame, inner, frame.f_locals.get("taken")
                    break
                if not inner.f_code.co_flags & inspect.CO_GENERATOR:
                    break
        inside.append(frame)
        frame = frame.f_back
    return found


def _folders() -> list[Path]:
    """Where our code is."""
    return [Path(folder) for name in _OURS if name in sys.modules for folder in sys.modules[name].__path__]


def _is_ours(frame: FrameType) -> bool:
    name: Any = frame.f_globals.get("__name__")
    return isinstance(name, str) and name.partition(".")[0] in _OURS
