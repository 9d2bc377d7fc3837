"""Buckets: a histogram as plain numbers, which costs an observation next to nothing."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Buckets:
    """How many observations fell into each bucket, and their sum. A bucket has the values up to its bound, inclusive.

    One thread observes; any thread may read: `read` takes the counts first, so that its total is that of its buckets.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        """One for each bound, and one for what is above all of them."""
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count ``value``, that many times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def read(self) -> tuple[list[int], float]:
        """The counts up to each bound, the last of which is the total, and the sum."""
        total, upto = 0, []
        for count in self.counts.copy():
            total += count
            upto.append(total)
        return upto, self.sum


def one_two_five(most: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50 ... up to ``most``: vLLM's bounds of token counts (vllm/v1/metrics/loggers.py).

    >>> one_two_five(100)
    (1, 2, 5, 10, 20, 50, 100)
    """
    bounds: list[float] = []
    power = 1
    while True:
        for digit in (1, 2, 5):
            if digit * power > most:
                return tuple(bounds)
            bounds.append(digit * power)
        power *= 10


TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
          160.0, 640.0, 2560.0)  # fmt: skip
TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
REQUEST_S = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
             960.0, 1920.0, 7680.0)  # fmt: skip
STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""vLLM's bounds, so that its dashboards and alerts read these histograms as they are."""

WAIT_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0)
LOAD_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
STEP_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
EACH_TTFT_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
EACH_TPOT_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 1.0, 2.5)
"""Bounds of our own; the last two, of histograms that each adapter or tenant has, are few."""
