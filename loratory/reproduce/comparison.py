"""Comparison: published figures beside simulated ones, and the checks that decide whether a reproduction holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Row:
    """One published figure and its simulation.

    ``case`` names the run ("rate 2, 200 adapters"), ``metric`` the figure, with its unit ("throughput, req/s").
    ``published`` may be a word if the publication has one ("OOM"); then ``simulated`` is a word as well. ``use`` is
    "fit" if the figure was used to fit a constant, else "test": a prediction.
    """

    case: str
    metric: str
    published: float | str
    simulated: float | str
    use: Literal["fit", "test"] = "test"

    @property
    def error(self) -> float | None:
        """(simulated - published) / published; None for words and for a published 0."""
        if isinstance(self.published, str) or isinstance(self.simulated, str) or not self.published:
            return None
        return (self.simulated - self.published) / self.published


@dataclass(frozen=True, slots=True)
class Check:
    """A promise on a reproduction: ``value`` is at most ``limit`` (or at least, with ``at_least``).

    ``note`` explains a promise that is not kept, with the evidence. Such a check is a strict expected difference: its
    test fails if the value leaves ``expected`` (lowest, highest), for better or worse. ``metric``: the
    metric whose relative error ``limit`` bounds, if it does; plots show it as a band.
    """

    what: str
    value: float
    limit: float
    at_least: bool = False
    note: str = ""
    expected: tuple[float, float] | None = None
    metric: str = ""

    @property
    def holds(self) -> bool:
        """Whether the promise is kept."""
        return isfinite(self.value) and (self.value >= self.limit if self.at_least else self.value <= self.limit)

    @property
    def as_expected(self) -> bool:
        """Whether it holds, or misses exactly as its note describes."""
        if self.expected is None:
            return self.holds
        return not self.holds and self.expected[0] <= self.value <= self.expected[1]

    @property
    def verdict(self) -> Literal["holds", "expected difference", "FAILS"]:
        """The verdict in words. A check with a note also fails if its promise is kept: the note is then false."""
        if not self.as_expected:
            return "FAILS"
        return "holds" if self.expected is None else "expected difference"


@dataclass(frozen=True, slots=True)
class Reproduction:
    """The result of simulating one publication.

    ``scenarios``: its files under scenarios/published/, which anyone can run. ``fitted``: in a sentence or two, which
    constants come from where, and which published rows were used to fit. ``not_modelled``: what the system did that
    the simulation omits, and where errors are largest. ``notes``: on these measurements, one sentence each.
    """

    name: str
    title: str
    source: str
    scenarios: tuple[str, ...]
    fitted: str
    rows: tuple[Row, ...]
    checks: tuple[Check, ...]
    not_modelled: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether every check holds or misses as expected."""
        return all(check.as_expected for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the fields, with each row's error and each check's verdict."""
        rows = [asdict(row) | {"error": row.error} for row in self.rows]
        checks = [asdict(check) | {"holds": check.holds, "verdict": check.verdict} for check in self.checks]
        return asdict(self) | {"rows": rows, "checks": checks, "holds": self.holds}


def mean_error(rows: Sequence[Row], metric: str, *, symmetric: bool = False) -> float:
    """Mean absolute relative error of a metric over its test rows, as a share.

    ``symmetric``: |simulated - published| / ((simulated + published) / 2), as in Agullo et al. Raises `ValueError` if
    no test row has the metric.
    """
    errors: list[float] = []
    for row in rows:
        if row.metric != metric or row.use != "test":
            continue
        if isinstance(row.published, str) or isinstance(row.simulated, str):
            continue
        base = (row.simulated + row.published) / 2 if symmetric else row.published
        errors.append(abs(row.simulated - row.published) / base)
    if not errors:
        raise ValueError(f"no test row has the metric {metric!r}")
    return sum(errors) / len(errors)
