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
from traceback import walk_tb
from types import FrameType, TracebackType
from typing import NoReturn, Self

from loratory.errors import InputError, LoratoryError, PolicyError, PolicyTimeout, error_line, shortened
from loratory.serving.guest_errors import is_order, outward, place_of, raised
from loratory.serving.policy_calls import (
    PolicyCall,
    consultation,
    in_files,
    is_our_class,
    is_shipped,
    named,
    policy_call,
)
from loratory.serving.policy_guard import Guard, Leavings, redirected_words
from loratory.serving.policy_guard_process import MEND, late_text

POLICY_TIMEOUT_S = 10.0
"""Seconds a policy may take for one answer."""

_LONGEST_S = 86_400.0
_TICKS = 20
"""Looks at the stack in the time a policy may take."""

_PATIENCE = 5
"""Looks after which a policy that catches every exception thrown at it takes the process down with it."""

_SPARE_BYTES = 16_000_000


class PolicyWatch:
    """Stops a policy's code that takes longer than ``timeout_s`` for one answer, with `PolicyTimeout` raised inside it.

        with PolicyWatch("mine.py:Mine", 10.0):
            simulate(...)

    It looks at the stack twenty times in ``timeout_s``: when it finds the same call of the policy, still without an
    answer, at each of these looks, the time is over. So it costs the run nothing, however often the policy is asked;
    only time inside one call counts, and none in which the process was suspended. In the main thread the looks are
    SIGALRM's; where the caller uses that signal, or in another thread, they are a thread's, which cannot end a call
    into the system (a sleep) before it returns. A single call into C that keeps Python from looking for twice
    ``timeout_s`` ends the process, by `loratory.serving.policy_guard`; policies that come with Loratory have no guard.
    Where the watch is to ``keep`` what it needs, the answers to one question may not take longer together, either: a
    live engine cannot wait for a policy that yields on and on.

    Meanwhile ``os._exit`` called by a policy raises SystemExit. A policy that cannot be stopped, because it catches
    what is raised in it over and over or sleeps where no signal reaches it, ends the process, too. Either way it is one
    line and exit code 1, and ``leavings`` are removed before. ``on_stuck``: called with that line before the process
    ends; the process does not end where only a thread of the caller's is stuck.

    ``word``: what kind of guest ``policy`` names, "policy" or "router". ``router``: that of the same run, whose code is
    watched like the policy's, and blamed by its own name.

    Each thread has its own watch, and one watch in a process has the guard. In a thread that has a watch, another
    changes nothing. A watch that is to ``keep`` what it needs (memory, a thread, the guard) can be entered often, as
    around each step of a live engine, and has it until `close`.
    """

    def __init__(
        self,
        policy: str,
        timeout_s: float = POLICY_TIMEOUT_S,
        leavings: Leavings = (),
        *,
        on_stuck: Callable[[str], None] | None = None,
        keep: bool = False,
        guarded: bool | None = None,
        word: str = "policy",
        router: str = "",
    ):
        if not 0.01 <= timeout_s <= _LONGEST_S:
            raise InputError(
                f"the policy timeout (--policy-timeout, policy_timeout_s) is {timeout_s:g} s: give from 0.01 to "
                f"{_LONGEST_S:,.0f} seconds"
            )
        self._name = f"{word} {shortened(policy, 100)}"
        self._router = router and f"router {shortened(router, 100)}"
        self._timeout_s = timeout_s
        self._leavings = leavings
        self._on_stuck = on_stuck
        self._keep = keep
        if guarded is None:
            guarded = not is_shipped(policy, word) or bool(router and not is_shipped(router, "router"))
        self._guarded = guarded
        self._spare: bytearray | None = None
        """Memory with which to report what happened when there is no other left."""
        self._guard: Guard | None = None
        self._call: PolicyCall | None = None
        self._looks = 0
        self._asked: FrameType | None = None
        """The consultation that the last look found."""
        self._asked_looks = 0
        self._looking = False
        self._ignored = 0
        """Looks since the order was first given that found no policy at work."""
        self._order: BaseException | None = None
        self._raised = 0
        self._has_arrived = False
        """Whether what another thread raised has come to its code: it does not in a call that does not return."""
        self._is_given_up = False
        self._inner = 0
        """How often the thread that has a watch has entered this one."""
        self._watched: int | None = None
        """The thread that the looks of another thread are for."""
        self._at_look = threading.Lock()
        self._thread: threading.Thread | None = None
        self._over = threading.Event()

    @classmethod
    def over(cls, policy: object, timeout_s: float, on_stuck: Callable[[str], None]) -> PolicyWatch:
        """The watch over a policy that has been made, to be entered around each step of its engine."""
        wrapped = inspect.getattr_static(policy, "_policy", policy) if is_our_class(type(policy)) else policy
        spec = inspect.getattr_static(wrapped, "spec", None)
        name = spec if spec and isinstance(spec, str) else type(wrapped).__name__
        return cls(name, timeout_s, on_stuck=on_stuck, keep=True, guarded=not is_our_class(type(wrapped)))

    def __enter__(self) -> Self:
        thread = threading.get_ident()
        if thread in _armed:
            self._inner += 1
            return self
        self._call, self._looks, self._ignored = None, 0, 0
        self._order, self._raised, self._has_arrived, self._is_given_up = None, 0, False, False
        self._spare = self._spare or bytearray(_SPARE_BYTES)
        with _lock:
            if self._guarded:
                self._hold_guard()
            _armed[thread] = self
            os._exit = _refuse_exit  # type: ignore[assignment]
        interval = self._timeout_s / _TICKS
        if _may_use_alarm():
            signal.signal(signal.SIGALRM, self._on_alarm)
            signal.setitimer(signal.ITIMER_REAL, interval, interval)
            return self
        self._watched = thread
        if self._thread is None:
            self._over.clear()
            self._thread = threading.Thread(target=self._look_from_outside, args=(interval,), daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None or not self._keep:
            self._spare = None  # first of all, as it takes no memory itself
        if self._inner:
            self._inner -= 1
            return
        self._disarm()
        if not self._keep:
            self.close()
        self._call = None
        late = error
        if kind is None or isinstance(error, PolicyTimeout):
            late = self._order or error  # a policy may have caught it and gone on; simpy raises a copy without its text
        if isinstance(late, PolicyTimeout):
            raise PolicyError(shortened(f"{late.name or self._name} {late.text}")) from late
        if isinstance(late, MemoryError):
            text = f"memory ran out under {self._name}"
            raise PolicyError(f"{text}: look for what it keeps, or give the process more memory") from late
        if kind is None and late is not None:
            raise late.with_traceback(None)
        if error is None or isinstance(error, LoratoryError) or is_order(error):
            return
        call = policy_call(reversed([frame for frame, _ in walk_tb(traceback)]))
        if call is not None:
            raise PolicyError(shortened(f"{named(call, self._name)}: {raised(error)}")) from error

    def close(self) -> None:
        """Let go of what the watch has kept. It can be entered again."""
        if self._thread is not None:
            self._over.set()
            if self._thread is not threading.current_thread():
                self._thread.join()
            self._thread = None
        with _lock:
            if self._guard is not None:
                self._guard.stop()
                self._guard = None
        self._spare = None

    @staticmethod
    def armed() -> PolicyWatch | None:
        """The watch that is armed in this thread."""
        return _armed.get(threading.get_ident())

    def insist(self, order: BaseException) -> None:
        """Raise ``order`` at each look until the ``with`` block is left: a policy may have caught it."""
        self._order = self._order or order

    def forgive(self) -> None:
        """The policy that was late has been dismissed, and another answers in its place: raise nothing any more."""
        with self._at_look:
            self._order, self._call, self._looks, self._raised, self._ignored = None, None, 0, 0, 0
            self._asked, self._asked_looks = None, 0
            if self._watched is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._watched), None)

    def _disarm(self) -> None:
        thread = threading.get_ident()
        if self._watched is None:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        else:
            with self._at_look:
                self._watched = None
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None)  # if one is still on its way
        with _lock:
            _armed.pop(thread, None)
            if not _armed:
                os._exit = _exit

    def _hold_guard(self) -> None:
        """Have a guard of this thread, where no other watch has one and the system has what it takes."""
        thread = threading.get_ident()
        if self._guard is not None and self._guard.thread == thread:
            self._guard.renew()
            return
        if self._guard is not None:
            self._guard.stop()
            self._guard = None
        if Guard.in_use:  # there is one timer of faulthandler's in a process
            return
        try:
            names = (self._name, self._router)
            self._guard = Guard(names, self._timeout_s, *in_files(), self._leavings, blame_deep=not self._keep)
        except (OSError, ValueError):
            self._guarded = False

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        if self._looking:
            return  # the machine is so busy that the next signal is here before this look is over
        outer = frame
        while outer is not None:  # in plain steps, which need no memory
            if outer.f_code is PolicyWatch.__exit__.__code__:
                return  # what is raised there would leave the watch armed
            outer = outer.f_back
        self._looking = True
        try:
            order = self._due(frame)
        finally:
            self._looking = False
        if order is not None:
            raise order.with_traceback(None)

    def _look_from_outside(self, interval: float) -> None:
        """The same from a thread of its own, which raises the exception in the watched one."""
        while not self._over.wait(interval):
            with self._at_look:  # the watched thread waits for the end of a look before it leaves
                if self._watched is None:
                    continue
                frame = sys._current_frames().get(self._watched)
                order = self._due(frame)
                del frame
                if order is not None:
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(
                        ctypes.c_ulong(self._watched), ctypes.py_object(self._class_that_makes(order))
                    )

    def _class_that_makes(self, order: BaseException) -> type[BaseException]:
        """A class whose objects are like ``order``: in another thread Python can only raise a class."""
        kind, watch = type(order), self

        def init(self: BaseException, *_: object) -> None:
            watch._has_arrived = True
            self.__dict__.update(order.__dict__)
            self.args = order.args

        return type(kind.__name__, (kind,), {"__init__": init})

    def _due(self, frame: FrameType | None) -> BaseException | None:
        """What is to be raised at this look, if anything."""
        if self._guard is not None:
            self._guard.alive()
        if self._order is None:
            if not self._is_late(frame):
                return None
            self._order = self._late(frame)
        if policy_call(outward(frame)) is not None:
            self._raised += 1
            if self._raised > _PATIENCE and not self._is_given_up:
                self._give_up(frame)
            return self._order
        self._ignored += 1  # it is on its way out, or the policy has caught it and the run goes on
        return self._order if self._ignored >= _TICKS else None

    def _is_late(self, frame: FrameType | None) -> bool:
        """Whether the stack shows the same unanswered call as all looks since the policy's time began."""
        call = policy_call(outward(frame))
        if self._keep:
            asked = consultation(outward(frame))
            self._asked_looks = self._asked_looks + 1 if asked is not None and asked is self._asked else 0
            self._asked = asked
        if call is None or call != self._call:
            self._call, self._looks = call, 0
        else:
            self._looks += 1
        return self._looks >= _TICKS or (call is not None and self._asked_looks >= _TICKS)

    def _late(self, frame: FrameType | None) -> PolicyTimeout:
        """What to raise."""
        late = PolicyTimeout()
        late.name = self._name if self._call is None else named(self._call, self._name)
        late.text = f"{late_text(self._timeout_s, place_of(frame))}: {MEND}"
        return late

    def _give_up(self, frame: FrameType | None) -> None:
        """The policy cannot be stopped: end the process, or leave the caller's thread behind."""
        self._is_given_up = True
        what = getattr(self._order, "text", "") or "caught the order to stop"
        if self._watched is None or self._has_arrived:
            what += "; it also caught what was raised to stop it"
        else:
            what = f"{late_text(self._timeout_s, place_of(frame))}, in a call that Python cannot interrupt: {MEND}"
        name = getattr(self._order, "name", "") or self._name
        text = shortened(f"{name} {what}")
        if self._on_stuck is not None:
            self._on_stuck(text)
            if self._watched not in (None, threading.main_thread().ident):
                return
        for folder, made in self._leavings:
            shutil.rmtree(folder, ignore_errors=True)
            for parent in made:
                with suppress(OSError):
                    parent.rmdir()
        words = redirected_words()
        if words is None:
            print(error_line(text), file=sys.stderr, flush=True)
        else:
            os.write(words, text.encode())
        _exit(1)


_armed: dict[int, PolicyWatch] = {}
"""The watch of each thread that has one."""
_lock = threading.RLock()
_exit = os._exit
"""Python's own, in place of which policies find `_refuse_exit`."""


def _refuse_exit(code: int) -> NoReturn:
    __tracebackhide__ = True
    if PolicyWatch.armed() is None or policy_call(outward(sys._getframe(1))) is None:
        _exit(code)
    raise SystemExit(code)


def _may_use_alarm() -> bool:
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        return False
    return signal.getsignal(signal.SIGALRM) is signal.SIG_DFL and signal.getitimer(signal.ITIMER_REAL)[0] == 0.0
