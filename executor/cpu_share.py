"""CPUShare: whether this process gets the CPU time it asks for, and what takes it otherwise, in one sentence.

Linux counts for every thread how long it ran, and how long it was ready to run but waited for a core
(/proc/self/task/*/schedstat). The first over the sum of both is the share that the process got: 1 on an idle machine,
1/2 where as many other threads want the same cores. Here a thread runs, too, while it spins to wait for another one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from loratory.executor.usable_cores import cpu_cgroups, usable_cores

_TASKS = Path("/proc/self/task")
_STAT = Path("/proc/stat")
_STEAL = 7
"""Place of the time that a hypervisor took among the numbers of a cpu line of /proc/stat (proc(5))."""

ENOUGH = 0.8
"""A smaller share is worth a sentence."""

LEAST_ASKED = 0.25
"""Cores that the threads must have asked for in the mean: of a server that hardly computes, the share says little."""

MUCH = 0.1
"""What a hypervisor or a limit must have taken, per second and core that was asked for, to be named as the cause."""


@dataclass(frozen=True, slots=True)
class CPUTimes:
    """Counters at second ``at_s`` of some clock, all in seconds.

    ``ran`` and ``waited``: by thread, the time on a core and in the run queue. ``stolen``: of this machine's cores
    together, what its hypervisor gave to others. ``throttled``: for how long control groups held this process up.
    """

    at_s: float
    ran: Mapping[int, float]
    waited: Mapping[int, float]
    stolen: float = 0.0
    throttled: float = 0.0


def cpu_times() -> CPUTimes:
    """The counters now; without threads where there is no /proc."""
    ran, waited = thread_times()
    return CPUTimes(time.monotonic(), ran, waited, stolen_s(), throttled_s())


def thread_times(tasks: Path = _TASKS) -> tuple[dict[int, float], dict[int, float]]:
    """By thread of this process: seconds that it has run, and that it has waited for a core."""
    ran: dict[int, float] = {}
    waited: dict[int, float] = {}
    for file in tasks.glob("*/schedstat"):
        try:
            first, second, _ = file.read_text().split()
        except (OSError, ValueError):  # the thread has ended
            continue
        thread = int(file.parent.name)
        ran[thread], waited[thread] = int(first) / 1e9, int(second) / 1e9
    return ran, waited


def stolen_s(stat: Path = _STAT) -> float:
    """Seconds that the hypervisor has taken from this machine's cores."""
    try:
        numbers = stat.read_text().splitlines()[0].split()[1:]
        return int(numbers[_STEAL]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


def throttled_s(groups: list[Path] | None = None) -> float:
    """Seconds for which the limits of control groups have held this process up, over all its cores."""
    total = 0.0
    for group in cpu_cgroups() if groups is None else groups:
        try:
            lines = [line.split() for line in (group / "cpu.stat").read_text().splitlines()]
        except OSError:
            continue
        for name, value in lines:
            if name in ("throttled_usec", "throttled_time"):
                total += int(value) / (1e6 if name == "throttled_usec" else 1e9)
    return total


class CPUShare:
    """Compares the counters from one call of `sentence` to the next, which a server makes every few seconds.

    ``threads``: how many threads compute at once. ``share`` is that of the last interval: 1.0 before the first, and
    where the threads asked for too little to tell.
    """

    def __init__(
        self, threads: int, read: Callable[[], CPUTimes] = cpu_times, cores: Callable[[], int] = usable_cores
    ) -> None:
        self.share = 1.0
        self._threads = threads
        self._read = read
        self._cores = cores
        self._before = read()

    def sentence(self) -> str:
        """What is wrong since the last call, and what to do; empty where the process got what it asked for."""
        before, now = self._before, self._read()
        self._before = now
        seconds = now.at_s - before.at_s
        ran = _grown(before.ran, now.ran)
        waited = _grown(before.waited, now.waited)
        throttled, stolen = now.throttled - before.throttled, now.stolen - before.stolen
        asked = ran + waited
        self.share = 1.0
        if seconds <= 0 or asked < LEAST_ASKED * seconds:
            return ""
        self.share = ran / asked
        cores = self._cores()
        if throttled > MUCH * asked:
            cause = f"the CPU limit of its control group held it up: raise the limit, or give --threads {cores}"
        elif stolen > MUCH * asked:
            cause = "the host of this virtual machine gave its cores to others: use another host, or fewer --threads"
        elif self.share >= ENOUGH:
            return ""
        elif self._threads > cores:
            cause = f"it computes with {_count(self._threads, 'thread')}: give --threads {cores}"
        else:
            cause = "other programs took the rest: end them, or give fewer --threads"
        return (
            f"in the last {seconds:.0f} s this process got {self.share:.0%} of the CPU time that it asked for on "
            f"{_count(cores, 'core')}; {cause}"
        )


def _grown(before: Mapping[int, float], now: Mapping[int, float]) -> float:
    """By how much the counters of the threads that are there grew; a new thread began at 0."""
    return sum(max(0.0, value - before.get(thread, 0.0)) for thread, value in now.items())


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
