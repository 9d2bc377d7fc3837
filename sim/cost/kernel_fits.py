"""Kernel fits: functions that never fall, from tables of kernel times: curves of GEMM, fitted forms of attention."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from loratory.errors import InputError
from loratory.sim.cost.nnls import nnls

Floats = NDArray[np.float64]


class Curve:
    """Seconds by one count, piecewise linear through knots that never fall.

    Beyond the last knot, seconds grow with the count in proportion, as where a GPU is fully busy.
    """

    def __init__(self, knots: Sequence[float], seconds: Sequence[float]) -> None:
        self.knots = list(knots)
        self.seconds = list(seconds)

    @classmethod
    def of(cls, counts: Sequence[float] | Floats, seconds: Sequence[float] | Floats) -> Curve:
        """Through measured points in order of ``counts``, made to rise as `rising` does."""
        return cls([float(count) for count in counts], rising(seconds))

    def at(self, count: float) -> float:
        """Seconds at ``count``; below the first knot, those of the first."""
        x, y = self.knots, self.seconds
        if count <= x[0]:
            return y[0]
        if count >= x[-1]:
            return y[-1] + max(0.0, y[-1]) * (count / x[-1] - 1.0)
        right = bisect_right(x, count)
        share = (count - x[right - 1]) / (x[right] - x[right - 1])
        return y[right - 1] + share * (y[right] - y[right - 1])


def rising(values: Sequence[float] | Floats) -> list[float]:
    """The sequence that never falls and is nearest to ``values`` in least squares.

    Neighbours that fall are pooled to their mean (pool adjacent violators: Ayer et al., Annals of Mathematical
    Statistics 26, 1955). Single kernels do run faster on a larger batch, where its tiles fit better; a cost model must
    not be such that a scheduler gains by adding tokens.
    """
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, count = float(value), 1
        while pools and pools[-1][0] > mean:
            before, many = pools.pop()
            mean, count = (before * many + mean * count) / (many + count), many + count
        pools.append((mean, count))
    return [mean for mean, count in pools for _ in range(count)]


@dataclass(frozen=True, slots=True)
class GemmTable:
    """Measured (m, k) times (k, n) products. ``size``: bytes of a number; bandwidth and FLOP/s are the datasheet's."""

    rows: pd.DataFrame
    size: int
    bytes_per_s: float
    flops: float

    def least_seconds(self, m: Floats, n: float, k: float) -> Floats:
        """Seconds by the datasheet: the larger of moving the bytes and computing."""
        moved = self.size * (m * n + m * k + n * k) / self.bytes_per_s
        least: Floats = np.maximum(moved, 2.0 * m * n * k / self.flops)
        return least

    def curve(self, n: int, k: int) -> Curve:
        """Seconds of a product of m rows, by m.

        Where (n, k) was not measured, what is taken from those that were is the share of the datasheet's speed that a
        product reaches: the mean of the four shapes nearest in (log n, log k), each by the inverse square of its
        distance, at each number of rows (AIConfigurator does the same). A share is at most 1: faster ones were read
        from the GPU's cache. A product wider than any that was measured is computed in equal parts, one after the
        other.
        Raises `InputError` below the narrowest.
        """
        widths = {"n": n, "k": k}
        parts = 1
        for axis, width in widths.items():
            least, most = int(self.rows[axis].min()), int(self.rows[axis].max())
            if width < least:
                raise InputError(
                    f"the kernel tables have no linear layer as narrow as {width}, only from {least} to {most}: "
                    "choose a larger model, or cost: {kind: roofline}"
                )
            parts *= ceil(width / most)
            widths[axis] = ceil(width / ceil(width / most))
        n, k = widths["n"], widths["k"]
        sites = self.rows[["n", "k"]].drop_duplicates().to_numpy()
        far: Floats = np.sum(np.log(sites / np.array([n, k], dtype=np.float64)) ** 2, axis=1)
        near = np.argsort(far, kind="stable")[: 1 if far.min() == 0.0 else _NEAREST]
        reached = []
        for at_n, at_k in sites[near]:
            site = self.rows[(self.rows["n"] == at_n) & (self.rows["k"] == at_k)].set_index("m")["s"]
            fastest = self.least_seconds(site.index.to_numpy(dtype=np.float64), at_n, at_k)
            reached.append(np.minimum(1.0, fastest / site))
        shares = pd.concat(reached, axis=1, join="inner")
        weights = 1.0 / np.maximum(far[near], 1e-12)
        rows_of = shares.index.to_numpy(dtype=np.float64)
        share = shares.to_numpy() @ (weights / weights.sum())
        return Curve.of(rows_of, parts * self.least_seconds(rows_of, n, k) / share)


_NEAREST = 4
"""Measured shapes from which an unmeasured one is interpolated."""


def _around(values: pd.Series, wanted: float) -> tuple[int, int]:
    """The measured values next below and next above ``wanted``."""
    return int(values[values < wanted].max()), int(values[values > wanted].min())


def total(curves: Iterable[tuple[float, Curve]]) -> Curve:
    """The sum of curves, each times a factor: exact, as it bends where one of them does."""
    every = list(curves)
    last = min(curve.knots[-1] for _, curve in every)  # beyond it, one of them is extrapolated
    knots = sorted({knot for _, curve in every for knot in curve.knots if knot <= last})
    return Curve(knots, [sum(factor * curve.at(knot) for factor, curve in every) for knot in knots])


def heads_like(rows: pd.DataFrame, heads: int, kv_heads: int) -> tuple[pd.DataFrame, str]:
    """Columns batch, length, s for a number of heads, and how they were obtained where they were not measured.

    Between measured numbers of query heads, seconds are interpolated. Otherwise, as heads do not depend on one another,
    kv_heads = c * few heads over a batch are as few heads over a batch c times as large.
    Raises `InputError` where neither is in the tables.
    """
    columns = ["batch", "length", "s"]
    same = rows[rows["kv_heads"] == kv_heads]
    if (same["heads"] == heads).any():
        return same.loc[same["heads"] == heads, columns], ""
    ratio = same["heads"] > kv_heads  # as many query heads as KV heads are other kernels
    known = same.loc[ratio, "heads"].unique()
    if heads > kv_heads and len(known) and known.min() < heads < known.max():
        low, high = _around(same.loc[ratio, "heads"], heads)
        pair = [same[same["heads"] == at].set_index(["batch", "length"])["s"] for at in (low, high)]
        both = pd.concat(pair, axis=1, join="inner", keys=["low", "high"])
        share = (heads - low) / (high - low)
        return (both["low"] * (1.0 - share) + both["high"] * share).rename("s").reset_index()[columns], ""
    for few in sorted((int(n) for n in rows["kv_heads"].unique() if kv_heads % n == 0), reverse=True):
        fewer = rows[(rows["kv_heads"] == few) & (rows["heads"] * kv_heads == heads * few)]
        fewer = fewer[(fewer["batch"] * few) % kv_heads == 0]
        if len(fewer):
            many = kv_heads // few
            note = (
                f"attention with {heads} heads and {kv_heads} KV heads was not measured: it takes the times of "
                f"{heads // many} and {few} over {many} times as many sequences"
            )
            return fewer.assign(batch=fewer["batch"] // many)[columns], note
    raise InputError(
        f"the kernel tables have no attention with {heads} heads and {kv_heads} KV heads on a GPU: "
        f"{_measured(rows, heads, kv_heads)}: choose another model, or cost: {{kind: roofline}}"
    )


def _measured(rows: pd.DataFrame, heads: int, kv_heads: int) -> str:
    """What was measured in place of a number of heads, with as many heads to a KV head if there are such rows."""
    pairs = {(int(h), int(kv)) for h, kv in rows[["heads", "kv_heads"]].drop_duplicates().to_numpy()}
    alike = sorted(kv for h, kv in pairs if h * kv_heads == heads * kv)
    if alike:
        to_one = f"{heads / kv_heads:g} head{'s' if heads > kv_heads else ''} to a KV head"
        return (
            f"with {to_one} they have {', '.join(map(str, alike))} KV heads, and no measured batch of these has as "
            f"many as a batch with {kv_heads}"
        )
    groups = sorted({h // kv for h, kv in pairs})
    return f"they have {', '.join(map(str, groups))} heads to a KV head"


@dataclass(frozen=True, slots=True)
class PrefillAttention:
    """Seconds of one layer's attention over prompts: step_s + seq_s a sequence + token_s a token + pair_s a pair.

    A pair is a prompt token and a token that it attends to, itself included. ``most_length``: the longest prompt that
    was measured. ``error``: mean absolute error over measured rows, relative to the seconds of a whole layer.
    """

    step_s: float
    seq_s: float
    token_s: float
    pair_s: float
    most_length: int
    error: float


_PROMPT = 16
"""Tokens of the shortest prompts that the fit of prefill attention is to describe."""


def prefill_attention(rows: pd.DataFrame, beside: Callable[[float], float]) -> PrefillAttention:
    """Fits measured prefill attention (columns batch, length, s) by non-negative least squares.

    Errors are relative to the row's seconds plus ``beside`` of its tokens, the rest of a layer: what counts is the
    error of the whole.
    """
    rows = rows[rows["length"] >= _PROMPT]
    b, n, s = (rows[name].to_numpy(dtype=np.float64) for name in ("batch", "length", "s"))
    features = np.stack([np.ones_like(b), b, b * n, b * n * (n + 1) / 2], axis=1)
    whole = s + np.array([beside(tokens) for tokens in (b * n).tolist()])
    weights = nnls(features / whole[:, None], s / whole)
    step, seq, token, pair = (float(weight) for weight in weights)
    error = float(np.mean(np.abs(features @ weights - s) / whole))
    return PrefillAttention(step, seq, token, pair, int(n.max()), error)


@dataclass(frozen=True, slots=True)
class DecodeAttention:
    """Seconds of one layer's attention of b sequences that read K tokens: max(floor(b), start(b) + kv_token_s * K).

    ``floor`` and ``start`` never fall with b, and ``kv_token_s`` is the same for every b, so more sequences never cost
    less. ``most_kv``: the most tokens that were measured. ``error``: as `PrefillAttention.error`.
    """

    floor: Curve
    start: Curve
    kv_token_s: float
    most_kv: int
    error: float


def decode_attention(
    rows: pd.DataFrame, beside: Callable[[float], float], least_token_s: float = 0.0
) -> DecodeAttention:
    """Fits measured decode attention (columns batch, length, s) by least squares.

    Rows that took less than ``least_token_s`` a KV token, the time to read it from memory, count as taking that: they
    read it from the GPU's cache, where a model of many layers does not keep it.

    Errors are relative to the row's seconds plus ``beside`` of its batch, the rest of a layer, and count by the square
    root of its sequences, as those of large batches are in more output tokens. For each time a token, the best floor
    and start of each batch size are found on their own; the time a token is then the one with the smallest sum of
    errors. Raises `InputError` where there are too few rows.
    """
    rows = rows.assign(s=np.maximum(rows["s"], least_token_s * rows["batch"] * rows["length"]))
    groups: list[tuple[int, Floats, Floats]] = [
        (batch, group["length"].to_numpy(dtype=np.float64) * batch, group["s"].to_numpy(dtype=np.float64))
        for batch in sorted(set(rows["batch"].tolist()))
        if len(group := rows[rows["batch"] == batch].sort_values("length")) > 2
    ]
    if not groups:
        raise InputError("the kernel tables have too few rows of decode attention: use cost: {kind: roofline}")
    by_batch: list[tuple[int, Floats, Floats, Floats]] = [
        (batch, kv, s, batch**0.5 / (s + beside(batch)) ** 2) for batch, kv, s in groups
    ]

    def hinges(slope: float) -> list[tuple[float, float, float]]:
        return [_hinge(kv, s, weight, slope) for _, kv, s, weight in by_batch]

    steepest = max(float(s[-1] / kv[-1]) for _, kv, s, _ in by_batch)
    slope = _least(lambda each: sum(error for _, _, error in hinges(each)), 0.05 * steepest, steepest)
    fitted = hinges(slope)
    batches = [batch for batch, _, _, _ in by_batch]
    floor = Curve.of(batches, [each for each, _, _ in fitted])
    start = Curve.of(batches, [each for _, each, _ in fitted])
    errors = [
        abs(max(floor.at(batch), start.at(batch) + slope * x) - y) / (y + beside(batch))
        for batch, kv, s, _ in by_batch
        for x, y in zip(kv.tolist(), s.tolist(), strict=True)
    ]
    return DecodeAttention(floor, start, slope, int(max(kv.max() for _, kv, _, _ in by_batch)), float(np.mean(errors)))


def _hinge(kv: Floats, seconds: Floats, weight: Floats, slope: float) -> tuple[float, float, float]:
    """(floor, start, weighted squared error) of max(floor, start + slope * kv): the best split into two parts.

    Rows are in order of ``kv``. For each split, the rows before it determine the floor and those after it the start,
    each as a weighted mean, which is least squares.
    """
    grown = slope * kv
    before = np.cumsum(weight)[:-1]
    flat = np.cumsum(weight * seconds)[:-1] / before
    after = np.sum(weight) - before
    above = weight * (seconds - grown)
    start = (np.sum(above) - np.cumsum(above)[:-1]) / after
    predicted = np.maximum(flat[:, None], start[:, None] + grown)  # (splits, rows)
    error = ((predicted - seconds) ** 2) @ weight
    best = int(np.argmin(error))
    return float(flat[best]), float(start[best]), float(error[best])


def _least(error: Callable[[float], float], low: float, high: float) -> float:
    """Where ``error`` is least between two positive numbers: a coarse search, then golden section."""
    grid = np.geomspace(low, high, 24)
    at = int(np.argmin([error(float(x)) for x in grid]))
    a, b = float(grid[max(0, at - 1)]), float(grid[min(len(grid) - 1, at + 1)])
    ratio = (5**0.5 - 1) / 2
    for _ in range(16):
        left, right = b - ratio * (b - a), a + ratio * (b - a)
        if error(left) <= error(right):
            b = right
        else:
            a = left
    return (a + b) / 2
