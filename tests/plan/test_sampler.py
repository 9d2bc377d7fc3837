"""The sampler of large spaces: what it proposes, and whether it finds what is best more often than chance."""

from __future__ import annotations

import sys
from itertools import product
from typing import Any

import numpy as np
import pytest
from small_plan import small

from loratory.errors import InputError
from loratory.plan.run import plan_scenario
from loratory.plan.sampler import Sampler

SPACE: dict[str, list[Any]] = {"a": list(range(10)), "b": list(range(10)), "c": list(range(10))}
EVERY = [dict(zip(SPACE, values, strict=True)) for values in product(*SPACE.values())]


def search(best: tuple[int, ...], most: int) -> list[int]:
    """Places that the sampler proposes for a sum of squared distances from ``best``."""
    sampler = Sampler(SPACE, EVERY)
    seen: list[int] = []
    for batch in sampler.batches(most, 8):
        assert len(batch) <= 8
        seen += batch
        sampler.learn({place: cost(EVERY[place], best) for place in batch})
    return seen


def cost(settings: dict[str, Any], best: tuple[int, ...]) -> float:
    return float(sum((settings[key] - value) ** 2 for key, value in zip(SPACE, best, strict=True)))


def test_nothing_is_proposed_twice_and_the_same_every_time() -> None:
    pytest.importorskip("optuna", reason="optuna is not installed")
    seen = search((3, 7, 1), 100)
    assert len(seen) == len(set(seen)) == 100
    assert seen == search((3, 7, 1), 100)


def test_it_finds_the_optimum_in_a_tenth_of_the_space_more_often_than_chance() -> None:
    pytest.importorskip("optuna", reason="optuna is not installed")
    rng = np.random.default_rng(7)
    targets = [tuple(int(x) for x in rng.integers(0, 10, 3)) for _ in range(12)]
    found = sum(min(cost(EVERY[place], best) for place in search(best, 100)) == 0 for best in targets)
    # A random hundred of a thousand holds the optimum with probability 0.1: 5 or more of 12 happen once in 230 times.
    assert found >= 5


def test_what_cannot_be_is_never_proposed_and_everything_else_is_in_the_end() -> None:
    pytest.importorskip("optuna", reason="optuna is not installed")
    space: dict[str, list[Any]] = {"a": [1, 2, 3], "b": ["x", "y", [1, 2]]}
    good = [{"a": a, "b": b} for a, b in product(*space.values()) if (a, b) != (2, "y")]
    sampler = Sampler(space, good)
    seen: list[int] = []
    for batch in sampler.batches(50, 3):
        seen += batch
        sampler.learn(dict.fromkeys(batch[1:], 1.0))  # the first of each batch was discarded without a run
    assert sorted(seen) == list(range(8))


def test_a_space_that_is_too_large_without_optuna_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    base = small(
        plan={
            "ask": "settings",
            "replicas": None,
            "space": {"engine.max_loras": list(range(1, 9))},
            "budget": {"candidates": 4},
        }
    )
    with pytest.raises(InputError, match=r"8 combinations.*install Optuna") as error:
        plan_scenario(base)
    assert "\n" not in str(error.value)
