"""set_cpu_threads: how PyTorch's CPU threads wait for each other, set before PyTorch is imported.

A forward pass is hundreds of short products, and after each its threads wait for the slowest. GNU's OpenMP, which
PyTorch brings, lets them spin for 300,000 rounds (milliseconds) before they sleep. With a core for every thread that is
fastest. Where another program wants the cores as well, a thread that spins uses up the time in which the thread that it
waits for could run: beside two busy neighbours on two cores a run took eight times as long, not twice. Threads that
sleep at once are woken hundreds of times a step, which costs on an idle machine.

The number of rounds here was measured (bench/cpu_threads.py, bench/README.md): alone it is about as fast as 300,000,
and beside two busy neighbours a run takes 1.0 to 1.5 times as long as with half of the machine to itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Container, MutableMapping

from loratory.errors import InputError
from loratory.executor.usable_cores import bound_cores, usable_cores

SPINS = 4000
"""Rounds for which a thread spins before it sleeps: 0.1 to 0.3 ms, by how long the CPU's pause instruction takes."""

MOST_THREADS = 256
"""Threads that may be asked for on any machine."""

WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
"""Variables with which a user decides how threads wait; if one is set, none is changed."""


def set_cpu_threads(
    environment: MutableMapping[str, str] = os.environ, imported: Container[str] = sys.modules
) -> tuple[str, ...]:
    """Set how threads wait, and their number where a control group allows less than the cores; the variables set.

    Changes nothing that the user has set, and nothing once PyTorch is imported: OpenMP has read its variables then.
    """
    if "torch" in imported:
        return ()
    wanted: dict[str, str] = {}
    if not any(name in environment for name in WAITING):
        wanted["GOMP_SPINCOUNT"] = str(SPINS)
    cores = usable_cores()
    if "OMP_NUM_THREADS" not in environment and cores < bound_cores():
        wanted["OMP_NUM_THREADS"] = str(cores)
    environment.update(wanted)
    return tuple(wanted)


def check_threads(count: int | None, option: str) -> None:
    """Raises `InputError` for a number of threads that a process cannot have; ``option`` is what gave it.

    More threads than cores are slow, and may be wanted to compare; thousands end OpenMP, and with it the process.
    """
    most = max(MOST_THREADS, os.cpu_count() or 1)
    if count is not None and not 1 <= count <= most:
        raise InputError(f"{option} is {count}: give 1 to {most}; this machine has {usable_cores()} cores for it")


def use_threads(count: int | None, option: str) -> None:
    """Let PyTorch compute with so many threads; None: with as many as it chooses. Raises `InputError`."""
    check_threads(count, option)
    if count is not None:
        import torch

        torch.set_num_threads(count)
