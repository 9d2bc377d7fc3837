"""Noise of step times: the mean stays, stalls add what they should, and jumps change nothing."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import examples, run
from roster import POLICIES

from loratory.serving.config import EngineConfig
from loratory.sim.noise import BLOCK, CHUNK, NoiseOptions, StepNoise, level_of
from loratory.testing import ToyCost, World, assert_run, workload, worlds

SEEDS = st.integers(0, 2**32 - 1)
POOL = st.lists(st.floats(0.2, 5.0), min_size=1, max_size=200).map(tuple)


def options() -> st.SearchStrategy[NoiseOptions]:
    """Noise of every kind; stalls so often that small worlds have some."""
    scatter = st.one_of(
        st.fixed_dictionaries({"cv": st.sampled_from([0.0, 0.05, 0.7])}),
        st.fixed_dictionaries({"decode": POOL, "prefill": st.one_of(st.just(()), POOL)}),
    )
    stalls = st.sampled_from([{}, {"stall_rate_hz": 20.0, "stall_s": 0.03}, {"stall_rate_hz": 900.0, "stall_s": 0.01}])
    return st.builds(lambda one, two: NoiseOptions(**one, **two), scatter, stalls)


def made(given: NoiseOptions, seed: int, replica: int = 0) -> StepNoise:
    return StepNoise(given, np.random.default_rng((seed, replica)))


@pytest.mark.parametrize("policy", POLICIES)
@examples(12)
@given(world=worlds(), given_noise=options(), seed=SEEDS, data=st.data())
def test_jumping_and_stepping_are_the_same_with_noise(
    policy: str, world: World, given_noise: NoiseOptions, seed: int, data: st.DataObject
) -> None:
    settings = data.draw(
        st.sampled_from([{}, {}, {"cutoff_s": 0.11}, {"replicas": 2, "router": "least_loaded"}]), label="options"
    )
    jumped, stepped = (
        run(world, policy, jump=jump, check_books=False, noise=lambda i: made(given_noise, seed, i), **settings)
        for jump in (True, False)
    )
    assert jumped.decisions == stepped.decisions
    assert sorted(jumped.of("Ended")) == sorted(stepped.of("Ended"))
    assert jumped.outcome == stepped.outcome


@examples(30)
@given(world=worlds(), policy=st.sampled_from(sorted(POLICIES)), given_noise=options(), seed=SEEDS)
def test_books_balance_with_noise(world: World, policy: str, given_noise: NoiseOptions, seed: int) -> None:
    assert_run(run(world, policy, noise=lambda i: made(given_noise, seed, i)))


@examples(40)
@given(given_noise=options(), seed=SEEDS, cuts=st.lists(st.integers(1, 900), min_size=1, max_size=30))
def test_a_step_has_its_noise_however_far_a_jump_looked_ahead(
    given_noise: NoiseOptions, seed: int, cuts: list[int]
) -> None:
    """Looking ahead 1,500 steps and taking some of them is the same as taking them one by one."""
    plain, ahead = made(given_noise, seed), made(given_noise, seed)
    for steps in cuts:
        first = ahead.taken
        seen = [ahead.decode_seconds(first + n, 0.02) for n in range(1500)]
        taken = []
        for _ in range(steps):
            taken.append(plain.decode_seconds(plain.taken, 0.02))
            plain.taken += 1
        ahead.taken += steps
        assert taken == seen[:steps]
    assert plain.prefill_seconds(0.3) == ahead.prefill_seconds(0.3)


def seconds_of(noise: StepNoise, steps: int, seconds: float = 0.02) -> np.ndarray:
    found = []
    for _ in range(steps):
        found.append(noise.decode_seconds(noise.taken, seconds))
        noise.taken += 1
    return np.array(found)


@pytest.mark.parametrize("cv", [0.02, 0.3, 1.0])
def test_scatter_keeps_the_mean_and_has_the_given_width(cv: float) -> None:
    factors = seconds_of(made(NoiseOptions(cv=cv), 3), 200_000) / 0.02
    assert abs(factors.mean() - 1.0) < 4 * cv / sqrt(len(factors))
    assert factors.std() == pytest.approx(cv, rel=0.05)
    assert factors.min() > 0.0
    assert abs(np.corrcoef(factors[1:], factors[:-1])[0, 1]) < 0.01


@pytest.mark.parametrize("cv", [0.02, 0.3])
def test_the_level_of_runs_has_mean_one_and_the_given_width(cv: float) -> None:
    levels = np.array([level_of(NoiseOptions(run_cv=cv), np.random.default_rng(seed)) for seed in range(20_000)])
    assert abs(levels.mean() - 1.0) < 4 * cv / sqrt(len(levels))
    assert levels.std() == pytest.approx(cv, rel=0.05)
    assert level_of(NoiseOptions(cv=0.3), np.random.default_rng(0)) == 1.0


def test_a_level_is_a_factor_on_every_step() -> None:
    given_noise, steps = NoiseOptions(cv=0.1), 2 * CHUNK
    plain = seconds_of(StepNoise(given_noise, np.random.default_rng(5)), steps)
    slower = seconds_of(StepNoise(given_noise, np.random.default_rng(5), level=1.07), steps)
    assert slower == pytest.approx(1.07 * plain)


@pytest.mark.parametrize("seconds", [0.001, 0.05, 3.0, 900.0])
def test_stalls_add_their_rate_times_their_length(seconds: float) -> None:
    """A step of 900 s has 1,800 stalls; the count of a Poisson process has a variance equal to its mean."""
    rate, length, steps = 2.0, 0.25, 20_000
    added = seconds_of(made(NoiseOptions(stall_rate_hz=rate, stall_s=length), 4), steps, seconds) - seconds
    expected = rate * seconds * steps
    assert abs(added.sum() / length - expected) < 4 * sqrt(expected)
    assert (added / length) == pytest.approx(np.rint(added / length), abs=1e-6)


@examples(40)
@given(decode=POOL, prefill=POOL, seed=SEEDS)
def test_residuals_are_drawn_evenly_and_scaled_to_mean_one(
    decode: tuple[float, ...], prefill: tuple[float, ...], seed: int
) -> None:
    given_noise = NoiseOptions(decode=decode, prefill=prefill)
    drawn = seconds_of(made(given_noise, seed), 4 * CHUNK) / 0.02
    scaled = np.array(decode) / np.mean(decode)
    assert set(np.round(drawn, 9)) <= set(np.round(scaled, 9))
    blocks = drawn.reshape(-1, BLOCK).mean(axis=1)
    assert abs(blocks.mean() - 1.0) < 5 * blocks.std() / sqrt(len(blocks)) + 1e-9
    prefills = made(given_noise, seed)
    found = np.array([prefills.prefill_seconds(0.5) for _ in range(500)]) / 0.5
    assert set(np.round(found, 9)) <= set(np.round(np.array(prefill) / np.mean(prefill), 9))


def test_slow_moments_of_residuals_stay_together() -> None:
    """A hundred slow steps in a row are drawn as runs of slow steps, not one by one."""
    pool = (*([1.0] * 900), *([3.0] * 100))
    drawn = seconds_of(made(NoiseOptions(decode=pool), 1), 20 * CHUNK)
    slow = drawn > drawn.min() * 1.5
    assert slow.mean() == pytest.approx(0.1, abs=0.03)
    assert slow[1:][slow[:-1]].mean() > 0.95


def test_seeds_and_replicas_have_their_own_noise() -> None:
    given_noise = NoiseOptions(cv=0.1)
    found = [seconds_of(made(given_noise, *which), 100).tolist() for which in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert found[0] == found[3] and found[0] != found[1] != found[2] != found[0]


WAYS = [{}, *([{"async_scheduling": True}] if "async_scheduling" in EngineConfig.model_fields else [])]


@pytest.mark.parametrize("config", WAYS)
@pytest.mark.parametrize("jump", [True, False])
def test_every_step_has_noise(config: dict[str, bool], jump: bool) -> None:
    """With a level of 2 each step takes twice as long, those with prompt tokens and those that only decode."""
    rows = [{"at": 0.0, "prompt": 40, "out": 30}, {"at": 0.0, "prompt": 9, "out": 12}]
    world = World(workload(rows), (), EngineConfig(max_num_seqs=4, num_gpu_blocks=99, **config), ToyCost())
    twice = StepNoise(NoiseOptions(), np.random.default_rng(0), level=2.0)
    plain, slow = (run(world, "fifo", jump=jump, noise=noise) for noise in (None, lambda _: twice))
    for kind in ("Stepped", "Ended"):
        assert [event[1] * 2 for event in plain.of(kind)] == pytest.approx([event[1] for event in slow.of(kind)])
    assert len(plain.of("Stepped")) == len(slow.of("Stepped"))
