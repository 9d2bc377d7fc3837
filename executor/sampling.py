"""Sampling: the next token of each row of logits, greedy or drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from loratory.errors import InputError

_CANDIDATES = 1024
"""Largest scores that top-p considers first on a CPU; all rows are sorted in full if one row needs more."""

_STRETCH = 256
"""Columns in a stretch. Both the largest score and a draw are found in two steps: the stretch, then the column in it.

The vocabulary has 32,000 to 150,000 columns, and one sum or maximum a stretch is computed at the speed of memory, while
a running sum or an argmax over all columns is not:

    scores   [ stretch 0 | stretch 1 | stretch 2 | ... ]      150,000 columns
    sums     [    0.20        0.05        0.60     ... ]      one number each
    running  [    0.20        0.25        0.85     ... ]      a draw of 0.7 falls into stretch 2;
                                                              the running sum inside it finds the column
"""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request's tokens are chosen, in vLLM's terms.

    ``temperature`` 0 is greedy. ``top_p``: keep the smallest set of most likely tokens with this probability.
    ``top_k``: keep this many most likely tokens; 0 or -1 keeps all. Tokens as likely as the last one kept are kept as
    well. ``seed``: the same one gives the same output in any batch. ``logprobs``: tell how likely each token was, and
    so many of the most likely ones; None tells nothing. The first ``min_tokens`` tokens are none of ``barred``. Raises
    `InputError` for a value out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    logprobs: int | None = None
    min_tokens: int = 0
    barred: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf"):
            raise InputError(f"temperature is {self.temperature}: give a number of at least 0")
        if not 0.0 < self.top_p <= 1.0:
            raise InputError(f"top_p is {self.top_p}: give a number above 0 and at most 1")
        if self.top_k < -1:
            raise InputError(f"top_k is {self.top_k}: give a whole number above 0, or 0 for all tokens")
        if self.logprobs is not None and self.logprobs < 0:
            raise InputError(f"logprobs is {self.logprobs}: give a whole number of at least 0, or leave it out")
        if self.min_tokens < 0:
            raise InputError(f"min_tokens is {self.min_tokens}: give a whole number of at least 0")


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """How likely one sampled token was: natural logarithms of probabilities, before temperature, top_p and top_k.

    ``rank``: 1 for the most likely token. ``top``: the most likely tokens with theirs, best first.
    """

    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Sampled:
    """``tokens``: (S,) int64. ``broken``: (S,) bool, rows with NaN or infinity in the logits; ignore their tokens."""

    tokens: Tensor
    broken: Tensor


def sample(logits: Tensor, params: Sequence[SamplingParams], steps: Sequence[int]) -> Sampled:
    """The next token of each row of ``logits`` (S, vocab).

    ``steps``: how many tokens each request has generated. A row's result follows from its logits, its parameters, its
    seed and its step alone: the random number is a hash of seed and step, so neither the batch nor a preemption changes
    it. Nothing is copied to the host.
    """
    held = [row for row, (one, step) in enumerate(zip(params, steps, strict=True)) if step < one.min_tokens]
    if held:
        logits = logits.clone()
        for row in held:
            logits[row, list(params[row].barred)] = -torch.inf
    largest, tokens = _largest(logits)
    broken = ~torch.isfinite(largest)
    drawn = [row for row, one in enumerate(params) if one.temperature > 0]
    if not drawn:
        return Sampled(tokens, broken)
    device = logits.device
    chosen = [params[row] for row in drawn]
    rows = torch.tensor(drawn, device=device)
    temperature = torch.tensor([one.temperature for one in chosen], dtype=torch.float32, device=device)
    scores = logits.index_select(0, rows).float()
    scores = scores.sub_(largest.index_select(0, rows).unsqueeze(1)).div_(temperature.unsqueeze(1))
    top_k = [one.top_k if one.top_k > 0 else scores.shape[1] for one in chosen]
    if min(top_k) < scores.shape[1]:
        _keep_top_k(scores, top_k)
    if any(one.top_p < 1.0 for one in chosen):
        _keep_top_p(scores, torch.tensor([one.top_p for one in chosen], dtype=torch.float32, device=device))
    seeds = np.array([one.seed & 0xFFFFFFFFFFFFFFFF for one in chosen], dtype=np.uint64)
    draws = uniform(seeds, np.array([steps[row] for row in drawn], dtype=np.uint64))
    columns = _draw(scores.exp_(), torch.from_numpy(draws).to(device).unsqueeze(1))
    return Sampled(tokens.index_copy(0, rows, columns), broken)


def raw_logprobs(logits: Tensor, params: Sequence[SamplingParams]) -> dict[int, Tensor]:
    """The logarithms of all probabilities, (vocab,) float32, of each row that asks for logprobs; empty where none does.

    Raw: before temperature, top_k, top_p and `SamplingParams.barred`, as vLLM reports them.
    """
    asked = [row for row, one in enumerate(params) if one.logprobs is not None]
    if not asked:
        return {}
    rows = torch.tensor(asked, device=logits.device)
    return dict(zip(asked, torch.log_softmax(logits.index_select(0, rows).float(), -1).unbind(0), strict=True))


def token_logprobs(logprobs: Tensor, token: int, top: int) -> TokenLogprobs:
    """How likely ``token`` was among all ``logprobs`` (vocab,), with the ``top`` most likely tokens."""
    own = logprobs[token]
    rank = 1 + int((logprobs > own).sum())
    if not top:
        return TokenLogprobs(float(own), rank)
    best = logprobs.topk(min(top, len(logprobs)))
    return TokenLogprobs(float(own), rank, tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True)))


def _largest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """``logits.max(1)``: of equals the first, NaN above all.

    On a CPU in two steps (`_STRETCH`): maxima are found at the speed of memory, a column among all at an eighth of it.
    """
    vocab = logits.shape[1]
    whole = vocab - vocab % _STRETCH
    if logits.device.type != "cpu" or whole <= _STRETCH:
        top = logits.max(1)
        return top.values, top.indices
    tops = logits[:, :whole].view(len(logits), -1, _STRETCH).amax(2)
    if whole < vocab:
        tops = torch.cat((tops, logits[:, whole:].amax(1, keepdim=True)), 1)
    largest, stretch = tops.max(1)
    columns = (stretch.unsqueeze(1) * _STRETCH + torch.arange(_STRETCH)).clamp_(max=vocab - 1)
    return largest, columns.gather(1, logits.gather(1, columns).argmax(1, keepdim=True)).squeeze(1)


def _draw(weights: Tensor, places: Tensor) -> Tensor:
    """(S,) columns drawn in proportion to ``weights`` (S, vocab): where the running sum passes ``places`` (S, 1).

    In two steps (`_STRETCH`). Running sums are in float64; ``below_one`` keeps a draw from passing the last column.
    """
    below_one, vocab = 1.0 - 2.0**-50, weights.shape[1]
    weights = functional.pad(weights, (0, -weights.shape[1] % _STRETCH)).view(len(weights), -1, _STRETCH)
    sums = weights.sum(-1).cumsum(-1, dtype=torch.float64)
    target = sums[:, -1:] * places.clamp(max=below_one)
    stretch = torch.searchsorted(sums, target, right=True).clamp_(max=sums.shape[1] - 1)
    before = functional.pad(sums, (1, 0)).gather(1, stretch)
    inside = weights.gather(1, stretch.unsqueeze(2).expand(-1, -1, _STRETCH)).squeeze(1).cumsum(-1, dtype=torch.float64)
    target = torch.minimum(target - before, inside[:, -1:] * below_one).clamp_(min=0.0)
    column = torch.searchsorted(inside, target, right=True).clamp_(max=_STRETCH - 1)
    return (stretch * _STRETCH + column).squeeze(1).clamp_(max=vocab - 1)


def uniform(seeds: NDArray[np.uint64], steps: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Numbers in [0, 1), one a (seed, step): SplitMix64 (Steele et al. 2014) of the step, from a mixed seed."""
    with np.errstate(over="ignore"):
        mixed = _mix(_mix(seeds + _GOLDEN) + steps * _GOLDEN + _GOLDEN)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _keep_top_k(scores: Tensor, top_k: Sequence[int]) -> None:
    """Set scores below each row's k-th largest to -inf. One topk of the widest k serves all rows."""
    vocab = scores.shape[1]
    widest = max(k for k in top_k if k < vocab)
    last = torch.tensor([min(k, widest) - 1 for k in top_k], device=scores.device)
    threshold = scores.topk(widest, -1).values.gather(1, last.unsqueeze(1))
    every = torch.tensor([k >= vocab for k in top_k], device=scores.device).unsqueeze(1)
    scores.masked_fill_((scores < threshold) & ~every, -torch.inf)


def _keep_top_p(scores: Tensor, top_p: Tensor) -> None:
    """Set scores below the last of each row's top-p set to -inf.

    The set is a prefix of the row in descending order: the candidates whose predecessors together have less than
    top_p. It is usually short, and a partial sort of `_CANDIDATES` takes a fraction of a full one. The candidates are
    enough where their running sum reaches top_p; otherwise the row is sorted in full.

        probability   0.5   0.3   0.1   0.05 ...      descending
        before it     0     0.5   0.8   0.9           top_p = 0.85 keeps the first three

    Probabilities are relative to the sum over the whole row (``total``), so a partial sort gives the same set.
    """
    total = torch.logsumexp(scores, -1, keepdim=True)
    ordered = sums = torch.empty(0)
    # A GPU sorts faster than the host can learn whether the candidates were enough.
    few = scores.device.type == "cpu" and scores.shape[1] > _CANDIDATES
    if few:
        ordered = scores.topk(_CANDIDATES, -1).values
        sums = torch.exp(ordered - total).cumsum(-1, dtype=torch.float64)
    if not few or not bool((sums[:, -1] >= top_p).all()):
        ordered = scores.sort(-1, descending=True).values
        sums = torch.exp(ordered - total).cumsum(-1, dtype=torch.float64)
    last = (sums < top_p.unsqueeze(1)).sum(-1, keepdim=True).clamp_(max=ordered.shape[1] - 1)
    keep_all = (top_p >= 1.0).unsqueeze(1)
    scores.masked_fill_((scores < ordered.gather(1, last)) & ~keep_all, -torch.inf)
