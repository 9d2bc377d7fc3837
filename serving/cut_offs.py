"""cut_offs: a tool for policies that queue by size: K-means of sorted numbers, as the values between its groups."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise


def cut_offs(values: Sequence[float], most: int, gain: float = 0.1) -> list[float]:
    """K-means of ascending values: the numbers that separate its groups, ascending, at most ``most`` - 1 of them.

    A value is in group ``bisect_left(cut_offs, value)``. Begins with groups of equal size. Adds a group, up to
    ``most``, while that removes more than ``gain`` of the squared distances of all values from their mean. No group is
    empty.
    """
    sums = [0.0, *accumulate(values)]
    squares = [0.0, *accumulate(value * value for value in values)]

    def spread(ends: Sequence[int]) -> float:
        return sum(
            squares[end] - squares[start] - (sums[end] - sums[start]) ** 2 / (end - start)
            for start, end in pairwise(ends)
        )

    number = len(values)
    best: list[float] = []
    whole = least = spread((0, number))
    for groups in range(2, min(most, number) + 1):
        ends = [number * i // groups for i in range(groups + 1)]
        cuts: list[float] = []
        for _ in range(50):
            means = [(sums[end] - sums[start]) / (end - start) for start, end in pairwise(ends)]
            cuts = [(low + high) / 2 for low, high in pairwise(means)]
            moved = sorted({0, *(bisect_left(values, cut) for cut in cuts), number})  # an empty group is dropped
            if moved == ends:
                break
            ends = moved
        if least - spread(ends) <= gain * whole:
            break
        best, least = cuts, spread(ends)
    return best
