"""Lengths: how many tokens a prompt or an output has."""

from __future__ import annotations

from math import erfc
from typing import ClassVar

import numpy as np
from pydantic import Field, model_validator

from loratory.errors import InputError
from loratory.scenarios.rng import Draws
from loratory.scenarios.samples import read_samples
from loratory.scenarios.schema_types import Count, FileRef, Name, OneOf, Positive, Section, wrong
from loratory.serving.workload import Floats, Ints

_LARGEST_CV = 1e100
"""Its square must be finite."""


class Lognormal(Section):
    """A lognormal, given by its own mean and coefficient of variation (not those of its logarithm)."""

    mean: Positive = Field(description="mean, before rounding and clipping")
    cv: Positive = Field(description="standard deviation / mean")
    min: Positive | None = Field(None, description="smaller draws are raised to this; by default the smallest possible")
    max: Positive | None = Field(None, description="larger draws are lowered to this; by default no limit")

    @model_validator(mode="after")
    def _ordered(self) -> Lognormal:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise wrong(f"has min {self.min} above max {self.max}: swap them")
        if self.cv > _LARGEST_CV:
            raise wrong(f"is {self.cv:g}, too large to compute with: lower it", "cv")
        return self

    def parameters(self) -> tuple[float, float]:
        """Mean and standard deviation of the logarithm."""
        variance = float(np.log1p(self.cv**2))
        return float(np.log(self.mean)) - variance / 2, variance**0.5

    def clipped_mean(self) -> float:
        """The mean after draws beyond ``min`` and ``max`` are moved there, in the unit of ``mean``."""
        below, sum_below = self._up_to(self.min) if self.min else (0.0, 0.0)
        to_max, sum_to_max = self._up_to(self.max) if self.max else (1.0, 1.0)
        return (self.min or 0.0) * below + self.mean * (sum_to_max - sum_below) + (self.max or 0.0) * (1.0 - to_max)

    def _up_to(self, limit: float) -> tuple[float, float]:
        """The share that draws of at most ``limit`` are of all draws, and the share of their sum in that of all."""
        mu, sigma = self.parameters()
        if not sigma:
            return (float(self.mean <= limit),) * 2
        z = (float(np.log(limit)) - mu) / sigma
        return 0.5 * erfc(-z / 2**0.5), 0.5 * erfc((sigma - z) / 2**0.5)


class Empirical(Section):
    """Measured lengths, drawn from a file; every row is equally likely."""

    file: FileRef = Field(description="CSV, JSON, Parquet, or text with one number per line")
    column: Name | None = Field(None, description="column to read, if the file has several")


class Lengths(OneOf):
    """A distribution of token counts; each draw is a whole number of at least 1. A plain number means ``fixed``."""

    shorthand: ClassVar = {int: "fixed", float: "fixed"}

    fixed: Count | None = Field(None, description="every length is this number of tokens")
    uniform: tuple[Count, Count] | None = Field(None, description="[lo, hi], both included")
    lognormal: Lognormal | None = Field(None, description="{mean, cv, min, max}")
    empirical: Empirical | None = Field(None, description="a file of lengths, or {file, column}")

    @model_validator(mode="before")
    @classmethod
    def _file_alone(cls, data: object) -> object:
        if isinstance(data, dict) and isinstance(data.get("empirical"), str):
            return {**data, "empirical": {"file": data["empirical"]}}
        return data

    @model_validator(mode="after")
    def _ordered(self) -> Lengths:
        if self.uniform is not None and self.uniform[0] > self.uniform[1]:
            raise wrong(f"has lo {self.uniform[0]} above hi {self.uniform[1]}: swap them", "uniform")
        return self

    def draw(self, rng: np.random.Generator, n: int) -> Ints:
        """``n`` lengths, tokens, each at least 1. Raises `InputError` if an empirical file holds no lengths."""
        if self.fixed is not None:
            return np.full(n, self.fixed, dtype=np.int64)
        if self.uniform is not None:
            lo, hi = self.uniform
            return rng.integers(lo, hi, size=n, endpoint=True, dtype=np.int64)
        if self.lognormal is not None:
            mu, sigma = self.lognormal.parameters()
            drawn = np.rint(rng.lognormal(mu, sigma, n))
            lo = max(1.0, np.ceil(self.lognormal.min or 1.0))
            return np.clip(drawn, lo, max(lo, np.floor(self.lognormal.max or 2.0**53))).astype(np.int64)
        assert self.empirical is not None
        values = read_samples(self.empirical.file, self.empirical.column)
        return values[rng.integers(0, len(values), size=n)]


def draw_pairs(prompt: Lengths, output: Lengths, draws: Draws, n: int) -> tuple[Ints, Ints]:
    """``n`` prompt and ``n`` output lengths, tokens: independent, unless both are ``empirical`` and name one file.

    Then a request gets both lengths from one row, which keeps the correlation between them (such as long prompts with
    short outputs). Raises `InputError` when the columns of that file are not equally long.
    """
    first, second = prompt.empirical, output.empirical
    if first is None or second is None or first.file != second.file:
        return prompt.draw(draws.rng("input"), n), output.draw(draws.rng("output"), n)
    inputs, outputs = read_samples(first.file, first.column), read_samples(second.file, second.column)
    if len(inputs) != len(outputs):
        raise InputError(
            f"{first.file} has {len(inputs)} prompt and {len(outputs)} output lengths, which are drawn in pairs: "
            "give both in each row"
        )
    rows = draws.rng("input").integers(0, len(inputs), size=n)
    return inputs[rows], outputs[rows]


class Seconds(OneOf):
    """A distribution of durations, seconds. A plain number means ``fixed``."""

    shorthand: ClassVar = {int: "fixed", float: "fixed"}

    fixed: Positive | None = Field(None, description="every duration, s")
    uniform: tuple[Positive, Positive] | None = Field(None, description="[lo, hi], s")
    lognormal: Lognormal | None = Field(None, description="{mean, cv, min, max}, s")

    @model_validator(mode="after")
    def _ordered(self) -> Seconds:
        if self.uniform is not None and self.uniform[0] > self.uniform[1]:
            raise wrong(f"has lo {self.uniform[0]} above hi {self.uniform[1]}: swap them", "uniform")
        return self

    def draw(self, rng: np.random.Generator, n: int) -> Floats:
        """``n`` durations in seconds."""
        if self.fixed is not None:
            return np.full(n, self.fixed, dtype=np.float64)
        if self.uniform is not None:
            return rng.uniform(*self.uniform, size=n)
        assert self.lognormal is not None
        mu, sigma = self.lognormal.parameters()
        return np.clip(rng.lognormal(mu, sigma, n), self.lognormal.min or 0.0, self.lognormal.max or np.inf)
