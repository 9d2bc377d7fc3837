"""FleetSpecs: what happens to the replicas of a cluster in the course of a run: events, and autoscaling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from loratory.errors import did_you_mean, shortened
from loratory.scenarios.roll_out_spec import RollOutSpec
from loratory.scenarios.schema_types import Count, Index, Name, NotNegative, Period, Positive, Section, wrong

KINDS = ("fail", "recover", "drain", "roll_out")


class FleetEventSpec(Section):
    """One thing that happens: to one replica, which is given by its number, counted from 0, or to adapters."""

    at_s: NotNegative = Field(description="when, s")
    fail: Index | None = Field(None, description="this replica stops, and loses its KV cache, its adapters, its steps")
    recover: Index | None = Field(None, description="this replica, which has failed, opens after `cluster.startup_s`")
    drain: Index | None = Field(None, description="this replica takes no new request, and goes when its last has ended")

    roll_out: RollOutSpec | None = Field(None, description="these adapters get a new version")

    @model_validator(mode="after")
    def _one(self) -> FleetEventSpec:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise wrong(f"needs exactly one of {', '.join(KINDS)}; it has {' and '.join(given) or 'none'}")
        return self

    @property
    def kind(self) -> Literal["fail", "recover", "drain"]:
        """What happens to a replica; of roll-outs there is no kind."""
        assert self.roll_out is None
        return "fail" if self.fail is not None else "recover" if self.recover is not None else "drain"

    @property
    def replica(self) -> int:
        """To which replica."""
        given = (place for place in (self.fail, self.recover, self.drain) if place is not None)
        return next(given)


class AutoscaleSpec(Section):
    """How many replicas there are: `cluster.replicas` at first, then as many as are needed."""

    least: Count = Field(1, description="fewest replicas")
    most: Count = Field(description="most replicas")
    by: Literal["queue", "attainment"] = Field(
        "queue", description="queue: by requests in flight a replica; attainment: by requests that were in time"
    )
    target: Positive = Field(
        ge=1e-6,
        description="queue: requests in flight a replica; attainment: share of requests whose TTFT is within the limit "
        "of slo for the highest percentile",
    )
    interval_s: Period = Field(15.0, description="time between two decisions, s")
    startup_s: NotNegative = Field(60.0, description="from the decision until a new replica can load adapters, s")
    warm_adapters: Index = Field(
        0, description="adapters that a new replica loads to the GPU before it opens: those requested most in 300 s"
    )
    scale_down_after_s: NotNegative = Field(
        300.0, description="a replica goes when fewer have been enough for this long, s"
    )

    @model_validator(mode="after")
    def _sensible(self) -> AutoscaleSpec:
        if self.least > self.most:
            raise wrong(f"is {self.least}, but most is {self.most}: lower it", "least")
        if self.by == "attainment" and self.target >= 1.0:
            raise wrong(f"is {self.target:g}, but by attainment it is a share below 1, such as 0.95", "target")
        return self


class PlacementSpec(Section):
    """Which replicas may serve an adapter: its homes. A name alone stands for ``{name: ...}``, and
    ``greedy:homes=2,every_s=30`` for ``{name: greedy, homes: 2, every_s: 30}``."""

    name: Name = Field(description="replicate_all (all replicas), greedy, bin_pack or min_cost_flow")
    homes: Count | None = Field(None, description="most homes of one adapter")
    every_s: Period | None = Field(
        None,
        description="decide again this often, s, from what arrived in the last three such periods; default: from what "
        "the whole workload asks for, at the start and when replicas come or go",
    )

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, data: Any) -> Any:
        if isinstance(data, str):
            return _read_spec(data)
        if not isinstance(data, Mapping | PlacementSpec):
            raise wrong("should be a name, such as greedy, or a mapping such as {name: greedy, homes: 2}: correct it")
        return data

    @model_validator(mode="after")
    def _read(self) -> PlacementSpec:
        for key in ("homes", "every_s"):
            if self.name == "replicate_all" and getattr(self, key) is not None:
                raise wrong("has no effect, because replicate_all makes every replica a home: remove it", key)
        return self


def _read_spec(text: str) -> dict[str, Any]:
    """A placement in the form of a router: ``greedy:homes=2``."""
    name, colon, rest = text.partition(":")
    found: dict[str, Any] = {"name": name}
    for part in rest.split(",") if colon else ():
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or key in found:
            raise wrong(f"is {shortened(text, 100)!r}: write {name}:homes=2, or {{name: {name}, homes: 2}}")
        if key not in ("homes", "every_s"):
            hint = did_you_mean(key, ("homes", "every_s"), "it takes homes and every_s")
            raise wrong(f"is {shortened(text, 100)!r}, which has no parameter {shortened(key, 60)!r}; {hint}")
        found[key] = value
    return found


Events = Annotated[list[FleetEventSpec], Field(max_length=10_000)]


def refuse_impossible(events: Sequence[FleetEventSpec], replicas: int, scaled: bool) -> None:
    """Raises the error of a validator for an event that cannot happen to ``replicas`` replicas.

    ``scaled``: an autoscaler starts and drains replicas as well, so that what they do is not known beforehand.
    """
    states = ["open"] * replicas
    for place in sorted(range(len(events)), key=lambda place: events[place].at_s):
        event = events[place]
        if event.roll_out is not None:
            continue
        kind, path = event.kind, ("events", place, event.kind)
        if event.replica >= replicas:
            known = "only replica 0" if replicas == 1 else f"replicas 0 to {replicas - 1}"
            raise wrong(f"is replica {event.replica}, but there are {known}: give one of these", *path)
        state = states[event.replica]
        if kind == "recover" and state != "failed":
            raise wrong(f"is replica {event.replica}, which has not failed before: add a fail event", *path)
        if kind != "recover" and state != "open" and not scaled:
            after = "has failed" if state == "failed" else "is drained"
            raise wrong(f"is replica {event.replica}, which {after} before: remove one of the two events", *path)
        states[event.replica] = {"fail": "failed", "recover": "open", "drain": "drained"}[kind]
