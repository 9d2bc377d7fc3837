"""Child process: what the processes in which a server runs candidates have in common."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress


def environment() -> dict[str, str]:
    """That of this process; libraries there need one thread, and find the modules that this process finds."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, **threads, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def how_it_ended(code: int, words: bytes) -> str:
    """How a process ended that has not said so itself: by a signal, or by its last line, or by its exit code."""
    lines = words.decode(errors="replace").strip().splitlines()
    last = lines[-1].removeprefix("loratory: ").strip() if lines else ""
    if code < 0:
        with suppress(ValueError):
            return f"it ended its process by {signal.Signals(-code).name}"
    return last or f"it ended its process with exit code {code}"
