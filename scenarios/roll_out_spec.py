"""RollOutSpec: new versions of adapters that take over the traffic of those in force, at once or in steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from loratory.errors import did_you_mean, several
from loratory.scenarios.schema_types import Count, Name, NotNegative, Positive, Section, wrong

_ONE = "no effect, because one adapter is rolled out: remove it"


def _shape(value: Any) -> str | None:
    if isinstance(value, list | tuple):
        return "list"
    if isinstance(value, str):
        return "all" if value == "all" else "name"
    return "number" if isinstance(value, int) and not isinstance(value, bool) else None


Chosen = Annotated[
    Annotated[Literal["all"], Tag("all")]
    | Annotated[Name, Tag("name")]
    | Annotated[Count, Tag("number")]
    | Annotated[list[Name], Field(min_length=1), Tag("list")],
    Discriminator(
        _shape,
        custom_error_type="chosen",
        custom_error_message="should be an adapter's name, a list of names, a number of adapters, or all",
    ),
]


class RollOutSpec(Section):
    """A new version of each of these adapters. Adapters alone stand for ``{adapters: ...}``."""

    adapters: Chosen = Field(description="a name, a list of names, a number (the first n adapters), or all")
    steps: list[Positive] | None = Field(
        None, description="shares of the adapter's new requests that go to the new version, one after another; the "
        "last is 1. Default: [1], all at once"
    )  # fmt: skip
    every_s: Positive | None = Field(None, description="how long each step lasts, s")
    over_s: Positive | None = Field(None, description="instead of steps: the share grows evenly from 0 to 1, s")
    apart_s: NotNegative = Field(0.0, description="with several adapters: from the start of one to that of the next, s")
    preload: bool = Field(
        False, description="every replica copies the new version to host memory before traffic moves to it"
    )
    rank: Count | None = Field(None, description="rank of the new version; default: as before")

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, data: Any) -> Any:
        return data if isinstance(data, Mapping) else {"adapters": data}

    @model_validator(mode="after")
    def _sensible(self) -> RollOutSpec:
        steps = self.steps
        if steps is not None:
            if any(later <= sooner for sooner, later in pairwise(steps)):
                raise wrong(f"is {_list(steps)}: give shares that increase, such as [0.1, 0.5, 1]", "steps")
            if steps[-1] > 1.0:
                raise wrong(f"ends in {steps[-1]:g}, but shares are from 0 to 1: give such as [0.1, 0.5, 1]", "steps")
            if steps[-1] != 1.0:
                raise wrong(f"ends in {steps[-1]:g}: let the last share be 1, which ends the roll-out", "steps")
            if self.over_s is not None:
                raise wrong("cannot be combined with steps: remove one of them", "over_s")
            if len(steps) > 1 and self.every_s is None:
                raise wrong(f"has {len(steps)} shares, but every_s is missing: add how long each lasts", "steps")
        if self.every_s is not None and len(steps or ()) < 2:
            raise wrong("has no effect without two steps or more: add steps, such as [0.1, 0.5, 1]", "every_s")
        one = self.adapters if isinstance(self.adapters, list) else [self.adapters]
        if self.apart_s and len(one) == 1 and (one[0] == 1 or (isinstance(one[0], str) and self.adapters != "all")):
            raise wrong(f"has {_ONE}", "apart_s")
        return self

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of each step."""
        return tuple(self.steps or (1.0,))

    @property
    def moving_s(self) -> float:
        """From the first request that may go to the new version until all of them do, s."""
        return self.over_s or (len(self.shares) - 1) * (self.every_s or 0.0)

    def chosen(self, names: Sequence[str]) -> tuple[str, ...]:
        """Those of a scenario's adapters. Raises `LookupError` with what is wrong and how to mend it."""
        if self.adapters == "all":
            wanted = tuple(names)
        elif isinstance(self.adapters, int):
            if self.adapters > len(names):
                raise LookupError(f"is {self.adapters}, but there are {len(names)} adapters: lower it")
            wanted = tuple(names[: self.adapters])
        else:
            wanted = (self.adapters,) if isinstance(self.adapters, str) else tuple(self.adapters)
        known = set(names)
        for name in wanted:
            if name not in known:
                hint = did_you_mean(name, names[:1000], f"there are {several(names)}" if names else "there is none")
                raise LookupError(f"names the adapter {name!r}, which does not exist; {hint}")
        if len(set(wanted)) < len(wanted):
            twice = next(name for place, name in enumerate(wanted) if name in wanted[:place])
            raise LookupError(f"repeats {twice!r}: name each adapter once")
        if not wanted:
            raise LookupError("has no effect, because there are no adapters: remove it")
        return wanted


def roll_out_problem(events: Mapping[int, tuple[float, RollOutSpec]], names: Sequence[str]) -> tuple[int, str] | None:
    """The place of a roll-out that cannot be, and what is wrong with it, once the names of all adapters are known.

    ``events``: by place among the events, when one begins, and what it does.
    """
    under_way: dict[str, tuple[float, float]] = {}
    for place in sorted(events, key=lambda place: events[place][0]):
        at_s, spec = events[place]
        try:
            chosen = spec.chosen(names)
        except LookupError as error:
            return place, error.args[0]
        if spec.apart_s and len(chosen) == 1:
            return place, f"has apart_s, which has {_ONE}"
        for turn, name in enumerate(chosen):
            begin = at_s + turn * spec.apart_s
            before = under_way.get(name)
            if before is not None and (begin <= before[0] or begin < before[1]):
                return place, (
                    f"begins a roll-out of adapter {name!r} at {begin:g} s, but one that begins at {before[0]:g} s "
                    f"ends at {before[1]:g} s: let this one begin later"
                )
            under_way[name] = begin, begin + spec.moving_s
    return None


def _list(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in values) + "]"
