"""Calls for worker processes, in a module that is quick to import."""

from __future__ import annotations

import os
import signal

from loratory.errors import InputError


def double(number: int) -> int:
    """Twice a number; 3, 4 and 5 fail, each in its own way."""
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 4:
        raise InputError("four is refused")
    if number == 5:
        raise ValueError("nobody foresaw five")
    return 2 * number
