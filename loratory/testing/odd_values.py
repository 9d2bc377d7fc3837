"""odd_values: actions that hold what no action should, for tests of an engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from loratory.policy import Admit, Evict, Load, Preempt, Prefetch, Reject, View, Wake


class Unprintable:
    """An object that cannot be shown, hashed or compared."""

    request_id: list[int] = []
    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        raise ValueError("unprintable on purpose")

    __repr__ = __str__


class LyingInt(int):
    """A number of tokens that is less than any budget, or so it answers."""

    def __lt__(self, other: object) -> bool:
        return True

    def __gt__(self, other: object) -> bool:
        return False


class LyingFloat(float):
    """A second that is always ahead, or so it answers."""

    def __gt__(self, other: object) -> bool:
        return True

    def __float__(self) -> float:
        return -1.0


class OtherText(str):
    """A text with a hash of its own, which no table finds under its letters."""

    __slots__ = ()

    def __hash__(self) -> int:
        return 1


class YieldsOnRequest:
    """Yields one action made from the first waiting request."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self.make = make

    def schedule(self, view: View) -> Any:
        for request in list(view.waiting)[:1]:
            yield self.make(request)


ODD: dict[str, Callable[[Any], Any]] = {
    "load-list": lambda request: Load(["a1"]),  # type: ignore[arg-type]
    "evict-dict": lambda request: Evict({}),  # type: ignore[arg-type]
    "prefetch-unprintable": lambda request: Prefetch(Unprintable()),  # type: ignore[arg-type]
    "admit-unhashable": lambda request: Admit(Unprintable()),  # type: ignore[arg-type]
    "preempt-unhashable": lambda request: Preempt(Unprintable()),  # type: ignore[arg-type]
    "reject-unprintable": lambda request: Reject(request, Unprintable()),  # type: ignore[arg-type]
    "wake-word": lambda request: Wake(at="soon"),  # type: ignore[arg-type]
    "wake-steps-word": lambda request: Wake(after_steps="3"),  # type: ignore[arg-type]
    "wake-steps-nan": lambda request: Wake(after_steps=float("nan")),  # type: ignore[arg-type]
    "wake-steps-infinite": lambda request: Wake(after_steps=float("inf")),  # type: ignore[arg-type]
    "wake-steps-half": lambda request: Wake(after_steps=0.5),  # type: ignore[arg-type]
    "wake-lying": lambda request: Wake(at=LyingFloat(0.0)),
    "wake-steps-lying": lambda request: Wake(after_steps=LyingInt(-5)),
    "load-other-text": lambda request: Load(OtherText("a1")),
    "yields-unprintable": lambda request: Unprintable(),
}
"""Actions whose arguments are of the wrong kind: refused, or the policy's error, never a crash of ours."""
