"""interruption: Ctrl-C, SIGTERM and SIGHUP end a command in good order: files are closed, folders removed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from loratory.errors import Interruption
from loratory.serving.policy_watch import PolicyWatch

_exit = os._exit
"""Python's own, whatever a `PolicyWatch` puts in its place."""

_ENOUGH = 3
"""The number of signals that end the process at once, in case cleaning up hangs."""


@contextmanager
def interruptible(*also: str) -> Iterator[list[int]]:
    """Within, Ctrl-C raises `Interruption`, and so do the signals named: ``interruptible("SIGTERM")``.

    The first signal raises it; further ones do not disturb what is being cleaned up, the third ends the process. A
    signal that is ignored or has a handler of its own stays as it is, and so do all in a thread that is not the main
    one. Yields the list of the signals received.
    """
    received: list[int] = []
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", *also):
            number = getattr(signal, name, None)
            if number is None:
                continue
            handler = signal.getsignal(number)
            if handler in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = handler

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) >= _ENOUGH:
            _exit(128 + number)
        if len(received) == 1:
            order = Interruption(number)
            watch = PolicyWatch.armed()
            if watch is not None:
                watch.insist(order)
            raise order

    for number in before:
        signal.signal(number, stop)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
