"""ClusterSpec: how many replicas there are and of which kinds, and how requests reach them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationError, model_validator

from loratory.errors import did_you_mean
from loratory.scenarios.error_words import shown, words
from loratory.scenarios.fleet_spec import AutoscaleSpec, Events, FleetEventSpec, PlacementSpec, refuse_impossible
from loratory.scenarios.roll_out_spec import RollOutSpec
from loratory.scenarios.schema_types import Count, GuestSpec, Name, NotNegative, Period, Section, is_number, wrong
from loratory.serving.config import EngineConfig

T = TypeVar("T")


class ReplicaGroupSpec(Section):
    """Equal replicas of a fleet; what is left out is as in the scenario's ``gpu`` and ``engine``."""

    gpu: Name | None = Field(None, description="catalogue name; default: the scenario's gpu")
    count: Count = Field(1, description="replicas of this kind")
    tensor_parallel_size: Count | None = Field(None, description="GPUs of each; default: engine.tensor_parallel_size")
    engine: dict[str, Any] = Field(
        default_factory=dict, description="engine settings that differ, by the keys of the section engine"
    )

    def engine_of(self, engine: EngineConfig, place: int) -> EngineConfig:
        """The engine's settings of these replicas, the group at ``place``. Raises an error for pydantic to report."""
        if not self.engine and self.tensor_parallel_size is None:
            return engine
        path = ("cluster", "replicas", place)
        if "tensor_parallel_size" in self.engine and self.tensor_parallel_size is not None:
            raise wrong("is given beside replicas' own tensor_parallel_size: keep one", *path, "engine")
        if "as" in self.engine:
            raise wrong("has as, but a fleet runs one engine: set engine.as instead", *path, "engine")
        given = {**engine.model_dump(exclude_unset=True), **self.engine}
        if self.tensor_parallel_size is not None:
            given["tensor_parallel_size"] = self.tensor_parallel_size
        for key, value in self.engine.items():
            field = EngineConfig.model_fields.get(key)
            if isinstance(value, bool) and field is not None and field.annotation not in (bool, bool | None):
                raise wrong(f"should be a number, not {str(value).lower()}", *path, "engine", key)
        try:
            return EngineConfig(**given)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            text = words(first)
            if first["type"] == "extra_forbidden":
                hint = did_you_mean(str(first["loc"][-1]), EngineConfig.model_fields, "see docs/scenarios.md")
                text = f"is no key of engine; {hint}"
            elif not first["loc"] and (named := text.partition(" "))[0] in self.engine:
                raise wrong(named[2], *path, "engine", named[0]) from None
            raise wrong(text, *path, "engine", *first["loc"]) from None


def _kind(value: Any) -> str:
    return "list" if isinstance(value, list | tuple) else "number"


def _number_or_list(value: Any) -> Any:
    if isinstance(value, int | float | list | tuple) or is_number(value):
        return value
    kinds = "a list of kinds such as {gpu: a100-80gb, count: 2}"
    raise wrong(f"should be a number of replicas, or {kinds}, not {shown(value)}")


Replicas = Annotated[
    Annotated[Count, Tag("number")] | Annotated[list[ReplicaGroupSpec], Field(min_length=1), Tag("list")],
    Discriminator(_kind),
    BeforeValidator(_number_or_list),
]


class ClusterSpec(Section):
    """How many replicas there are, and which router sends requests to them."""

    replicas: Replicas = Field(1, description="engines, each on its own GPUs: a number, or a list of kinds")
    router: GuestSpec = Field(
        "round_robin", description="a router's name (`loratory routers`), or path/file.py:ClassName, and its parameters"
    )
    metrics_delay_s: NotNegative = Field(0.0, description="how late the router sees what replicas report, s")
    metrics_interval_s: Period | None = Field(
        None, description="the router sees reports as they were at the last multiple of this, s; default: as they come"
    )
    events: Events | None = Field(
        None, description="at a time, replicas fail, recover or are drained, or adapters get a new version"
    )
    on_failure: Literal["resend", "fail"] = Field(
        "resend", description="requests in flight on a replica that fails are sent to another one, or fail"
    )
    startup_s: NotNegative = Field(0.0, description="from a recover event until the replica takes requests, s")
    autoscale: AutoscaleSpec | None = Field(None, description="replicas that start and go with the load")
    placement: PlacementSpec | None = Field(
        None, description="which replicas may serve an adapter: greedy, bin_pack, min_cost_flow; default: all"
    )

    @model_validator(mode="after")
    def _consistent(self) -> ClusterSpec:
        scale, events = self.autoscale, self.events or []
        if scale is not None and not scale.least <= self.count <= scale.most:
            raise wrong(
                f"is {self.count}, but cluster.autoscale allows {scale.least} to {scale.most}: give one of these",
                "replicas",
            )
        refuse_impossible(events, self.most_replicas, scale is not None)
        return self

    @property
    def changes(self) -> bool:
        """Whether replicas come or go in the course of a run, or adapters get new versions."""
        return bool(self.events) or self.autoscale is not None

    @property
    def replica_events(self) -> list[FleetEventSpec]:
        """Those of the events that happen to a replica."""
        return [event for event in self.events or () if event.roll_out is None]

    @property
    def roll_outs(self) -> dict[int, tuple[float, RollOutSpec]]:
        """The others, by their place among the events: when they begin, and what they do."""
        events = enumerate(self.events or ())
        return {place: (event.at_s, event.roll_out) for place, event in events if event.roll_out is not None}

    @property
    def most_replicas(self) -> int:
        """How many replicas there may be at once."""
        return self.count if self.autoscale is None else self.autoscale.most

    @property
    def groups(self) -> list[ReplicaGroupSpec]:
        """The replicas by kind; one kind where ``replicas`` is a number."""
        return [ReplicaGroupSpec(count=self.replicas)] if isinstance(self.replicas, int) else self.replicas

    @property
    def count(self) -> int:
        """Replicas of all kinds."""
        return sum(group.count for group in self.groups)


def of_each(cluster: ClusterSpec, kinds: Sequence[T]) -> list[T]:
    """What each replica is of these, one for each kind; those that an autoscaler may add are like the last."""
    each = [kind for kind, group in zip(kinds, cluster.groups, strict=True) for _ in range(group.count)]
    return each + [each[-1]] * (cluster.most_replicas - len(each))
