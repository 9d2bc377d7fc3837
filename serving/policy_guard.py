"""guard: where a policy's call into C never returns, no Python code runs: a process beside it looks on and ends it.

    the policy's process                                   the onlooker
    at each look of `loratory.serving.policy_watch`: ``.``         ->     all is well
    none for the policy's time: faulthandler's
    thread, which needs no lock of Python's,
    writes the stack; after the same time again     ->     twice the same, and a policy's code is in it:
    a thread of the C library calls _exit(1)        <-     one line on stderr, and a message

A long call of our own (numpy, pyarrow, torch) shows no policy's code on the stack, and is let be.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from loratory.serving.policy_guard_process import __file__ as _ONLOOKER  # noqa: N812 - the script it is

Leavings = Sequence[tuple[Path, Sequence[Path]]]
"""Folders to remove with all that is in them, and folders around each to remove if they are empty then."""

_WORDS = "LORATORY_LAST_WORDS"
"""Environment variable: ``PID:DESCRIPTOR``, where that process's last words go instead of stderr."""

_SIGEV_THREAD = 2
_LEAST_PATIENCE_S = 1.0
"""A process that gets no CPU for a moment must not be taken for one that hangs, however short a policy's time is."""

_MOMENTS = 20
"""Moments in the time a policy may take."""


class Guard:
    """Ends this process when the calling thread is in a policy's code and no `alive()` comes for twice ``timeout_s``,
    or for two seconds where that is more.

    ``names``: what to call the policy, and the router where there is one. ``entries``: names of functions that call
    either, by file; ``ours``: folders whose code is no policy's;
    ``passing``: files in them whose functions pass a policy's call on; ``blame_deep``: whether code that is not ours is
    taken for the policy's when the stack is so deep that its outer end is unknown. There is one guard in a process.
    Raises OSError where no process can be started.
    """

    in_use: ClassVar[bool] = False
    """Whether this process has a guard."""

    def __init__(
        self,
        names: tuple[str, str],
        timeout_s: float,
        entries: Mapping[str, Sequence[str]],
        ours: Sequence[str],
        passing: Sequence[str],
        leavings: Leavings = (),
        *,
        blame_deep: bool = True,
    ) -> None:
        self.thread = threading.get_ident()
        """The thread it is for."""
        self._alive_at = 0.0
        self._patience_s = max(timeout_s, _LEAST_PATIENCE_S)
        self._exit = _ExitByMessage.ready()
        words, queue = redirected_words(), None if self._exit is None else self._exit.queue
        known = {
            "names": names,
            "timeout_s": timeout_s,
            "thread": f"0x{self.thread:0{2 * ctypes.sizeof(ctypes.c_ulong)}x}",
            "process": os.getpid(),
            "entries": [[file, name] for file, names in entries.items() for name in names],
            "ours": list(ours),
            "passing": list(passing),
            "blame_deep": blame_deep,
            "leavings": [[str(folder), [str(parent) for parent in made]] for folder, made in leavings],
            "words": 2 if words is None else words,
            "prefix": "loratory: " if words is None else "",
            "queue": queue,
            "path": [str(Path(_ONLOOKER).parents[2]), *sys.path],
        }
        passed = [number for number in (words, queue) if number is not None]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", _ONLOOKER, json.dumps(known)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            bufsize=0,
            pass_fds=passed,
            process_group=0,
        )
        assert self._process.stdin is not None
        self._pipe = self._process.stdin.fileno()
        os.set_blocking(self._pipe, False)
        Guard.in_use = True
        self.alive()

    def renew(self) -> None:
        """The time begins anew, unless it did a moment ago: that takes a third of a millisecond."""
        if time.monotonic() - self._alive_at > self._patience_s / _MOMENTS:
            self.alive()

    def alive(self) -> None:
        """Python code runs: the time begins anew. Raises MemoryError where there is too little left for a thread."""
        self._alive_at = time.monotonic()
        try:
            faulthandler.dump_traceback_later(self._patience_s, repeat=True, file=self._pipe)
        except RuntimeError as error:  # what faulthandler says when it cannot start one
            raise MemoryError(str(error)) from error
        with suppress(OSError):
            os.write(self._pipe, b".\n")

    def stop(self) -> None:
        """Nothing is watched any more."""
        Guard.in_use = False
        faulthandler.cancel_dump_traceback_later()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        if self._exit is not None:
            self._exit.close()


class _SigEvent(ctypes.Structure):
    """sigevent(3type) of glibc and musl on Linux."""

    _fields_ = [
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("padding", ctypes.c_char * 32),
    ]


class _Attributes(ctypes.Structure):
    """mq_attr of mq_open(3)."""

    _fields_ = [("flags", ctypes.c_long), ("most", ctypes.c_long), ("size", ctypes.c_long), ("rest", ctypes.c_long * 5)]


class _ExitByMessage:
    """A message queue without a name: at its first message, the C library calls ``_exit(1)`` in a thread of its own.

    A signal would end the process as well, but with another exit code; a handler of Python's never gets to run.
    """

    def __init__(self, library: Any, queue: int) -> None:
        self._library = library
        self.queue = queue

    @classmethod
    def ready(cls) -> _ExitByMessage | None:
        """None where the system has no such queues, or no room for one."""
        if not sys.platform.startswith("linux"):
            return None
        library: Any = ctypes.CDLL(None)
        name = f"/loratory-{os.getpid()}-{secrets.token_hex(4)}".encode()
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            queue = library.mq_open(name, flags, 0o600, ctypes.byref(_Attributes(0, 1, 1)))
            if queue < 0:
                return None
            library.mq_unlink(name)
            call = _SigEvent(1, 0, _SIGEV_THREAD, ctypes.cast(library._exit, ctypes.c_void_p).value)
            made = cls(library, queue)
            if library.mq_notify(queue, ctypes.byref(call)) != 0:
                made.close()
                return None
        except AttributeError:
            return None
        return made

    def close(self) -> None:
        """Nothing comes any more."""
        self._library.mq_notify(self.queue, None)
        self._library.mq_close(self.queue)


def redirect_words(descriptor: int) -> None:
    """From now on, last words of this process go to ``descriptor``."""
    os.environ[_WORDS] = f"{os.getpid()}:{descriptor}"


def redirected_words() -> int | None:
    """The descriptor that this process's last words go to; None for stderr."""
    process, _, descriptor = os.environ.get(_WORDS, "").partition(":")
    return int(descriptor) if process == str(os.getpid()) else None
