"""PlanOutcome: what a question of a plan found, before it is put into words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from loratory.plan.bounds import By
from loratory.plan.candidate import Candidate
from loratory.plan.verdict import Judgement


@dataclass(frozen=True, slots=True)
class Tried:
    """A candidate, and what its runs say."""

    candidate: Candidate
    judgement: Judgement


@dataclass(frozen=True, slots=True)
class Discarded:
    """A combination of settings that was not simulated, by what, and why."""

    settings: dict[str, Any]
    label: str
    by: By
    reason: str


@dataclass(frozen=True, slots=True)
class LoadCurve:
    """Candidates along a quantity. ``largest``: its largest value at which the SLO is met, ``missed_at``: the smallest
    above it at which it is not; None where there is none."""

    label: str
    x: str
    points: Sequence[tuple[float, Tried]]
    largest: float | None = None
    missed_at: float | None = None


@dataclass(frozen=True, slots=True)
class Growth:
    """How far one factor of the load can grow. ``holds_to`` and ``breaks_at`` are values of the factor."""

    factor: str
    now: float
    unit: str
    points: Sequence[tuple[float, Tried]] = ()
    holds_to: float | None = None
    breaks_at: float | None = None
    breaks_first: str | None = None
    note: str = ""


@dataclass(slots=True)
class PlanOutcome:
    """The answer of a question. ``best`` is None where no candidate is good; then ``nearest`` came nearest.

    ``binding``: what stands in the way of a better answer, in words. ``fixed``: for `autoscale`, the cheapest fleet
    that stays and meets the SLO.
    """

    best: Tried | None
    tried: list[Tried] = field(default_factory=list)
    discarded: list[Discarded] = field(default_factory=list)
    curves: list[LoadCurve] = field(default_factory=list)
    growth: list[Growth] = field(default_factory=list)
    nearest: Tried | None = None
    binding: str | None = None
    fixed: Tried | None = None
    too_close: bool = False
    notes: list[str] = field(default_factory=list)
