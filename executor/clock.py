"""Clock: what an executor takes for time, and how it waits."""

from __future__ import annotations

import time
from math import inf
from threading import Event as Flag
from typing import Protocol


class Clock(Protocol):
    """Seconds since some start."""

    def now(self) -> float:
        """The present second."""

    def wait(self, until: float, woken: Flag) -> None:
        """Return at second ``until`` (inf: never), or earlier once ``woken`` is set."""


class RealClock:
    """Seconds since `start`, or since it was made."""

    def __init__(self) -> None:
        self._zero = time.perf_counter()

    def start(self) -> None:
        """It is second 0 now."""
        self._zero = time.perf_counter()

    def now(self) -> float:
        """See `Clock.now`."""
        return time.perf_counter() - self._zero

    def wait(self, until: float, woken: Flag) -> None:
        """See `Clock.wait`."""
        seconds = until - self.now()
        if seconds > 0:
            woken.wait(None if until == inf else seconds)
