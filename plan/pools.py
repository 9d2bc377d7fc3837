"""Pools: where a plan's runs are done: in this process, in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from loratory.experiment.workers import Workers
from loratory.plan.evaluate import Evaluation, evaluate
from loratory.plan.measure import Measured

ATTEMPTS = 3
"""How often a run is tried whose process dies."""


class Pool(Protocol):
    """Does runs. Their results depend neither on where that is, nor on the order in which they are done."""

    def results(self, asked: Sequence[Evaluation]) -> Iterator[tuple[int, Measured]]:
        """(place in ``asked``, result) of each run as it is done. A run whose process dies is done again."""


class ThisProcess:
    """One run after the other, in this process."""

    def results(self, asked: Sequence[Evaluation]) -> Iterator[tuple[int, Measured]]:
        """See `Pool`."""
        for place, each in enumerate(asked):
            yield place, evaluate(each)


@contextmanager
def pool(jobs: int = 1, ray: str | None = None) -> Iterator[Pool]:
    """Processes of this machine, or with ``ray`` (``auto`` or an address) the workers of a Ray cluster.

    Raises `InputError` where Ray is asked for and is not installed, or cannot be reached.
    """
    if ray is not None:
        from loratory.plan.ray_pool import ray_pool

        with ray_pool(ray) as cluster:
            yield cluster
    elif jobs <= 1:
        yield ThisProcess()
    else:
        with Workers(evaluate, jobs, lambda asked: asked.name, ATTEMPTS) as workers:
            yield workers
