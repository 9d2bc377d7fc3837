"""Sampling: a row's token follows from the row alone, and tokens come as often as they are likely."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import loratory.executor.sampling
from loratory.errors import InputError
from loratory.executor.sampling import SamplingParams, raw_logprobs, sample, token_logprobs, uniform

PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 5.0]),
    top_p=st.sampled_from([0.01, 0.5, 0.9, 1.0]),
    top_k=st.sampled_from([-1, 0, 1, 2, 7, 40, 1000]),
    seed=st.integers(-(2**63), 2**64),
)


def logits(rows: int, seed: int = 0, vocab: int = 50) -> torch.Tensor:
    values = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 2
    return values.bfloat16().float()  # ties, as a 16-bit head gives


def chi_squared_is_likely(seen: NDArray[Any], expected: NDArray[Any]) -> bool:
    """Whether chi-squared is within four standard deviations of its mean, the degrees of freedom."""
    freedom = len(seen) - 1
    return bool(((seen - expected) ** 2 / expected).sum() < freedom + 4 * (2 * freedom) ** 0.5)


@given(st.lists(st.tuples(PARAMS, st.integers(0, 10_000)), min_size=1, max_size=8), st.integers(0, 100))
def test_a_row_in_a_batch_equals_the_row_alone(rows: list[tuple[SamplingParams, int]], seed: int) -> None:
    scores = logits(len(rows), seed)
    params, steps = [row[0] for row in rows], [row[1] for row in rows]
    together = sample(scores, params, steps).tokens
    for index in range(len(rows)):
        alone = sample(scores[index : index + 1], params[index : index + 1], steps[index : index + 1])
        assert int(alone.tokens[0]) == int(together[index])


@given(PARAMS, st.integers(0, 100))
def test_a_token_is_among_those_kept(params: SamplingParams, seed: int) -> None:
    scores = logits(1, seed)[0]
    token = int(sample(scores[None], [params], [seed]).tokens[0])
    if params.temperature == 0 or params.top_k == 1:
        assert scores[token] == scores.max()
        return
    k = params.top_k if params.top_k > 0 else 50
    values = scores.sort(descending=True).values
    kept = scores >= values[min(k, 50) - 1]
    chance = torch.softmax((scores / params.temperature).masked_fill(~kept, -torch.inf).double(), -1)
    assert kept[token]
    assert float(chance[scores > scores[token]].sum()) < params.top_p + 1e-5


def test_tokens_come_as_often_as_they_are_likely() -> None:
    scores, draws = logits(1, 5, 12)[0], 20_000
    params = [SamplingParams(temperature=1.5, top_k=8, top_p=0.95, seed=9)] * draws
    tokens = sample(scores.expand(draws, -1), params, range(draws)).tokens
    chance = torch.softmax(scores.double() / 1.5, -1)
    order = chance.argsort(descending=True)[:8]
    best = chance[order] / chance[order].sum()
    count = int((best.cumsum(0) < 0.95).sum()) + 1
    expected = best[:count] / best[:count].sum() * draws
    seen = torch.bincount(tokens, minlength=12)
    assert int(seen.sum() - seen[order[:count]].sum()) == 0
    assert chi_squared_is_likely(seen[order[:count]].numpy(), expected.numpy())


def test_a_full_sort_and_the_largest_candidates_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    params = [SamplingParams(temperature=1.0 + index, top_p=0.9, seed=index) for index in range(20)]
    scores = logits(20)
    wanted = sample(scores, params, [0] * 20).tokens
    for count in (3, 49):
        monkeypatch.setattr(loratory.executor.sampling, "_CANDIDATES", count)
        assert torch.equal(sample(scores, params, [0] * 20).tokens, wanted)


@given(st.integers(0, 1000), st.sampled_from([3, 255, 256, 257, 600]), st.integers(0, 50))
def test_a_token_is_drawn_where_the_running_sum_passes(seed: int, vocab: int, step: int) -> None:
    scores = logits(1, seed, vocab)
    chance = torch.softmax(scores[0].double(), -1).cumsum(-1)
    draw = uniform(np.array([seed], dtype=np.uint64), np.array([step], dtype=np.uint64))[0]
    token = int(sample(scores, [SamplingParams(temperature=1.0, seed=seed)], [step]).tokens[0])
    before = float(chance[token - 1]) if token else 0.0
    assert before - 1e-6 <= draw <= float(chance[token]) + 1e-6


@settings(max_examples=20)
@given(st.lists(st.sampled_from(["nan", "inf", "all -inf", "well", "one -inf"]), min_size=1, max_size=6), st.booleans())
def test_broken_rows_are_flagged_and_others_unharmed(kinds: list[str], greedy: bool) -> None:
    scores = logits(len(kinds))
    params = [SamplingParams(temperature=0.0 if greedy else 1.0, top_p=0.9, top_k=5, seed=i) for i in range(len(kinds))]
    wanted = sample(scores, params, [3] * len(kinds)).tokens
    for index, kind in enumerate(kinds):
        if kind == "all -inf":
            scores[index] = -torch.inf
        elif kind != "well":
            scores[index, 7 if kind != "one -inf" else int(scores[index].argmin())] = float(kind.removeprefix("one "))
    found = sample(scores, params, [3] * len(kinds))
    assert found.broken.tolist() == [kind in ("nan", "inf", "all -inf") for kind in kinds]
    assert all(0 <= token < 50 for token in found.tokens.tolist())
    fine = ~found.broken
    assert torch.equal(found.tokens[fine], wanted[fine])


def test_random_numbers_are_uniform_over_seeds_and_steps() -> None:
    grid = np.arange(200, dtype=np.uint64)
    draws = uniform(np.repeat(grid, 200), np.tile(grid, 200))
    assert len(set(draws.tolist())) == draws.size
    assert chi_squared_is_likely(np.histogram(draws, 50, (0, 1))[0], np.full(50, draws.size / 50))
    square = draws.reshape(200, 200)
    assert abs(np.corrcoef(square[:, :-1].ravel(), square[:, 1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(square[:-1].ravel(), square[1:].ravel())[0, 1]) < 0.02


@pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_k": -2}])
def test_values_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(bad))} is "):
        SamplingParams(**bad)  # type: ignore[arg-type]


@given(st.integers(1, 5), st.sampled_from([1, 7, 255, 256, 257, 512, 700, 1024, 3001]), st.randoms())
def test_the_greedy_token_is_the_first_of_the_largest(rows: int, vocab: int, random: Random) -> None:
    values = [0.0, -0.0, 1.0, 1.0, -2.5, float("-inf"), float("inf"), float("nan")]
    kinds = random.choice([values[:5], values[:6], values])
    logits = torch.tensor([[random.choice(kinds) for _ in range(vocab)] for _ in range(rows)])
    found = sample(logits, [SamplingParams()] * rows, [0] * rows)
    expected = logits.max(1)
    assert found.tokens.tolist() == expected.indices.tolist()
    assert found.broken.tolist() == (~torch.isfinite(expected.values)).tolist()


@given(st.lists(PARAMS, min_size=1, max_size=5), st.data(), st.integers(0, 100))
def test_logprobs_are_those_of_the_raw_scores(rows: list[SamplingParams], data: st.DataObject, seed: int) -> None:
    asked = [data.draw(st.sampled_from([None, 0, 1, 3, 60])) for _ in rows]
    params = [replace(one, logprobs=count) for one, count in zip(rows, asked, strict=True)]
    scores = logits(len(rows), seed)
    raw = raw_logprobs(scores, params)
    tokens = sample(scores, params, [seed] * len(rows)).tokens.tolist()
    assert [*raw] == [row for row, count in enumerate(asked) if count is not None]
    for row, own in raw.items():
        told = token_logprobs(own, tokens[row], params[row].logprobs or 0)
        exact = torch.log_softmax(scores[row].double(), -1)
        assert told.logprob == pytest.approx(float(exact[tokens[row]]), abs=1e-5)
        assert told.rank == 1 + int((exact > exact[tokens[row]]).sum())
        assert len(told.top) == min(params[row].logprobs or 0, 50)
        assert [value for _, value in told.top] == pytest.approx(exact.topk(len(told.top)).values.tolist(), abs=1e-5)
        assert all(value == pytest.approx(float(exact[token]), abs=1e-5) for token, value in told.top)


@given(PARAMS, st.sets(st.integers(0, 49), min_size=1, max_size=49), st.integers(0, 6), st.integers(0, 100))
def test_barred_tokens_come_only_after_min_tokens(
    params: SamplingParams, barred: set[int], least: int, seed: int
) -> None:
    held = replace(params, min_tokens=least, barred=tuple(sorted(barred)))
    for step in range(8):
        token = int(sample(logits(1, seed), [held], [step]).tokens[0])
        if step < least:
            assert token not in barred
        else:
            assert token == int(sample(logits(1, seed), [params], [step]).tokens[0])
