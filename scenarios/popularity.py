"""PopularitySpec: which adapter a request uses."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Discriminator, Field, Tag, model_validator

from loratory.errors import InputError
from loratory.scenarios.rng import Draws
from loratory.scenarios.schema_types import Count, Name, NotNegative, OneOf, Positive, Section, wrong
from loratory.serving.workload import Floats, Ints


class Drift(Section):
    """Zipf popularity whose ranking moves: every ``period_s`` the adapters shift by ``step`` places."""

    zipf: NotNegative = Field(1.0, description="Zipf exponent at every moment")
    period_s: Positive = Field(description="time between two shifts, s")
    step: Count = Field(
        1, description="places by which the ranking moves at a shift; the next adapter becomes the most popular"
    )


def _kind(value: Any) -> str | None:
    return "list" if isinstance(value, list | tuple) else "mapping" if isinstance(value, dict) else None


Weights = Annotated[
    Annotated[list[NotNegative], Tag("list")] | Annotated[dict[Name, NotNegative], Tag("mapping")],
    Discriminator(
        _kind, custom_error_type="weights", custom_error_message="should be a list of weights or {adapter: weight}"
    ),
]


class PopularitySpec(OneOf):
    """How requests spread over the adapters, the first being the most popular; ``uniform`` may be written alone."""

    shorthand: ClassVar = {str: "", list: "weights"}

    uniform: bool | None = Field(None, description="all adapters equally")
    zipf: NotNegative | None = Field(None, description="exponent s: the i-th adapter has weight 1 / i^s")
    power: Positive | None = Field(
        None,
        description="alpha: index floor(power(alpha) * count) as in S-LoRA; below 1 the first are the most popular",
    )
    weights: Weights | None = Field(
        None, description="one weight per adapter, as a list or by name; 0 for a name that is missing"
    )
    drift: Drift | None = Field(None, description="{zipf, period_s, step}: the ranking moves with time")

    @model_validator(mode="after")
    def _usable(self) -> PopularitySpec:
        if self.uniform is False:
            raise wrong("should be true: correct it, or choose another popularity", "uniform")
        if self.weights is not None:
            values = self.weights if isinstance(self.weights, list) else list(self.weights.values())
            if not sum(values) > 0:
                raise wrong("has no weight above 0: give at least one adapter one", "weights")
        return self

    def draw(self, rng: np.random.Generator, names: tuple[str, ...], arrival: Floats) -> Ints:
        """An index into ``names`` for each request, by its arrival (s, used by ``drift``).

        Raises `InputError` when weights and names do not match.
        """
        n, count = len(arrival), len(names)
        if self.power is not None:
            index: Ints = (rng.power(self.power, n) * count).astype(np.int64)
            return np.minimum(index, count - 1)
        if self.uniform:
            return rng.integers(0, count, size=n, dtype=np.int64)
        if self.drift is not None:
            rank = choose(rng, zipf_weights(self.drift.zipf, count), n)
            shift: Ints = np.floor(arrival / self.drift.period_s).astype(np.int64) * self.drift.step
            moved: Ints = np.mod(rank + shift, count)
            return moved
        if self.zipf is not None:
            return choose(rng, zipf_weights(self.zipf, count), n)
        return choose(rng, self._weights(names), n)

    def _weights(self, names: tuple[str, ...]) -> Floats:
        if isinstance(self.weights, dict):
            unknown = [name for name in self.weights if name not in names]
            if unknown:
                raise InputError(f"popularity.weights names {unknown[0]!r}, which is not an adapter here: correct it")
            weights = np.array([self.weights.get(name, 0.0) for name in names])
        else:
            weights = np.array(self.weights or [], dtype=np.float64)
            if len(weights) != len(names):
                raise InputError(
                    f"popularity.weights has {len(weights)} weights for {len(names)} adapters: give one per adapter"
                )
        if not weights.sum() > 0:
            raise InputError("popularity.weights has no weight above 0 for an adapter here: give one")
        return weights


def draw_adapters(
    draws: Draws, popularity: PopularitySpec, base_share: float, names: tuple[str, ...], arrival: Floats
) -> Ints:
    """An index into ``names`` for each request, -1 for the share of requests for the base model."""
    if not names:
        return np.full(len(arrival), -1, dtype=np.int64)
    adapter = popularity.draw(draws.rng("adapter"), names, arrival)
    if base_share <= 0:
        return adapter
    return np.where(draws.rng("base").random(len(arrival)) < base_share, -1, adapter)


def zipf_weights(exponent: float, count: int) -> Floats:
    """Zipf weights 1 / i^s of ``count`` items, not normalised."""
    return np.arange(1, count + 1, dtype=np.float64) ** -exponent


def choose(rng: np.random.Generator, weights: Floats, n: int) -> Ints:
    """``n`` indices drawn in proportion to ``weights``."""
    total = np.cumsum(weights)
    index: Ints = np.searchsorted(total, rng.random(n) * total[-1], side="right").astype(np.int64)
    return np.minimum(index, int(np.flatnonzero(weights)[-1]))
