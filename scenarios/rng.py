"""rng: the random generators of one run: one for each column of the workload, one for the noise of each replica."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

Column = Literal[
    "arrivals", "base", "adapter", "input", "output", "predicted", "deadline", "tenant", "trace", "noise", "level"
]  # fmt: skip
_KEYS = {name: index for index, name in enumerate(get_args(Column))}


class Draws:
    """Independent generators made from a run's seed; ``stream`` tells the sub-workloads of a scenario apart.

    Each column has a generator of its own, so another distribution of lengths does not reshuffle the arrivals. The
    same seed, stream and column always give the same numbers (numpy's PCG64, seeded through ``SeedSequence``). The
    simulator draws ``noise`` (its stream is the replica's number) and ``level`` for step times: no workload has them.
    """

    def __init__(self, seed: int, stream: int = 0) -> None:
        self._seed = seed
        self._stream = stream

    def rng(self, column: Column) -> np.random.Generator:
        """A fresh generator for ``column``, at its beginning."""
        return np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=(self._stream, _KEYS[column])))
