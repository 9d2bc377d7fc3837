"""climb: how far a quantity can grow before the SLO is missed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from math import sqrt

from loratory.errors import InputError
from loratory.plan.candidate import Candidate
from loratory.plan.outcome import Tried
from loratory.plan.verdict import Judgement


@dataclass(slots=True)
class Climb:
    """What was found. ``holds_to``: the largest value at which the SLO was met; ``breaks_at``: the smallest above it at
    which it was not; ``end``: why values beyond could not be tried."""

    points: list[tuple[float, Tried]] = field(default_factory=list)
    holds_to: float | None = None
    breaks_at: float | None = None
    end: str = ""

    @property
    def first_missed(self) -> str | None:
        """The target that is missed first."""
        broken = [tried.judgement.first_missed for x, tried in self.points if x == self.breaks_at]
        return broken[0] if broken else None


def climb(
    at: Callable[[float], Candidate], now: float, up: Sequence[float], tolerance: float, ratio: bool, down: bool
) -> Generator[Candidate, Judgement, Climb]:
    """Try ``now``, the values ``up`` until one misses the SLO, and halves between; larger values are taken to be worse.

    Where ``now`` misses it, with ``down`` go down by halves, to a thousandth of ``now``.
    ``at(x)`` makes the candidate; it raises `InputError` for a value that cannot be. With ``ratio`` the bracket is
    halved geometrically, and ``tolerance`` is the largest ratio of its ends, else their largest difference.
    """
    found = Climb()

    def attempt(x: float) -> Generator[Candidate, Judgement, bool | None]:
        try:
            candidate = at(x)
        except InputError as error:
            found.end = str(error)
            return None
        judgement = yield candidate
        found.points.append((x, Tried(candidate, judgement)))
        if judgement.verdict == "met":
            found.holds_to = x if found.holds_to is None else max(found.holds_to, x)
            return True
        found.breaks_at = x if found.breaks_at is None else min(found.breaks_at, x)
        return False

    good = yield from attempt(now)
    if good is None:
        return found
    if good:
        for x in up:
            if (yield from attempt(x)) is not True:
                break
    elif down:
        x = now / 2
        while x >= now / 1000 and not (yield from attempt(x)):
            x /= 2
    while found.holds_to is not None and found.breaks_at is not None:
        low, high = found.holds_to, found.breaks_at
        if (high <= low * tolerance if ratio and low > 0 else high - low <= tolerance) or high <= low:
            break
        middle = sqrt(low * high) if ratio and low > 0 else (low + high) / 2
        if (yield from attempt(middle)) is None:
            break
    found.points.sort(key=lambda point: point[0])
    return found
