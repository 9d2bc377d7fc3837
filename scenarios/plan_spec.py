"""PlanSpec: what `loratory plan` asks of a scenario, what it may change, and what that costs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from loratory.scenarios.schema_types import Count, Name, Positive, Section, beside_the_scenario, no_bool, wrong

Ask = Literal["fleet", "autoscale", "capacity", "settings", "sensitivity"]
"""fleet: the cheapest that meets the SLO; autoscale: the cheapest bounds of an autoscaler that meet it; capacity: the
largest load that a fleet sustains; settings: the best ones for a fleet; sensitivity: what breaks first when the load
changes."""

Factor = Literal["traffic", "adapters", "skew", "rank", "burstiness"]
"""What of the load can grow."""

FACTORS: tuple[Factor, ...] = ("traffic", "adapters", "skew", "rank", "burstiness")

SHORT_KEYS = {"replicas": "cluster.replicas", "router": "cluster.router", "placement": "cluster.placement"}
"""Keys of a space that may be written without their section. ``gpu`` and ``policy`` are the others without one."""

AUTOSCALE = "cluster.autoscale"
BOUNDS = (f"{AUTOSCALE}.least", f"{AUTOSCALE}.most")
"""An autoscaler's section, and its keys that `autoscale` chooses."""

GUESTS = ("policy", "router", SHORT_KEYS["router"])
"""Keys of a space whose values may name a file with a class in it."""

SECTIONS = ("engine", "cost", "memory", "tiers", AUTOSCALE)
"""Sections of a scenario whose keys a space may have: what an operator sets. What is asked for is no setting."""

SETTINGS = ("gpu", "policy", "model", "adapters.pinned", *SHORT_KEYS, *SHORT_KEYS.values())
"""Keys that a space may have besides those of `SECTIONS`."""


class Between(Section):
    """Whole numbers from one to another."""

    least: Count = Field(1, description="the smallest")
    most: Annotated[Count, Field(le=10_000)] = Field(description="the largest")

    @model_validator(mode="after")
    def _in_order(self) -> Between:
        if self.most < self.least:
            raise wrong(f"is {self.most}, below least ({self.least}): raise it, or lower least", "most")
        return self


class Budget(Section):
    """What a fleet may cost, and how much may be simulated to find it."""

    price_per_hour: Positive | None = Field(None, description="most that a fleet may cost in an hour")
    gpus: Count | None = Field(None, description="most GPUs that a fleet may have")
    candidates: Count = Field(200, description="most combinations of settings that are tried one by one")
    requests: Count | None = Field(None, description="most requests to simulate, after which the search ends")


class PlanSeeds(Section):
    """How many seeds a candidate is run with: the scenario's first, then more while the verdict is open."""

    first: Annotated[Count, Field(le=1000)] = Field(3, description="seeds of every candidate")
    most: Annotated[Count, Field(le=1000)] = Field(
        12, description="seeds of a candidate whose interval holds the limit"
    )

    @model_validator(mode="after")
    def _in_order(self) -> PlanSeeds:
        if self.most < self.first:
            raise wrong(f"is {self.most}, below first ({self.first}): raise it, or lower first", "most")
        return self


def _kind(value: Any) -> str | None:
    if isinstance(value, dict):
        return "mapping"
    if isinstance(value, list | tuple):
        return "list"
    return "number" if isinstance(value, int) and not isinstance(value, bool) else None


Replicas = Annotated[
    Annotated[Between, Tag("mapping")] | Annotated[list[Count], Field(min_length=1), Tag("list")],
    Discriminator(
        lambda value: "mapping" if isinstance(value, Between) else _kind(value),
        custom_error_type="replicas",
        custom_error_message="should be {least, most} or a list of numbers of replicas",
    ),
]
Value = Annotated[bool | int | float | str | list[Any] | dict[str, Any] | None, BeforeValidator(lambda value: value)]


class PlanSpec(Section):
    """A capacity plan: the question, the space of candidates, prices and a budget. Every key has a default."""

    ask: Ask = Field("fleet", description="fleet (default), autoscale, capacity, settings or sensitivity")
    replicas: Replicas | None = Field(
        None, description="fleet: numbers of replicas to choose from; by default 1 to 16, within the budget"
    )
    mixed: bool = Field(False, description="fleet: also try fleets of two GPU types, of those that space has under gpu")
    space: dict[str, list[Value]] | None = Field(
        None,
        description="values to try, by key of the scenario, such as engine.max_loras: [16, 32]; also gpu, policy and "
        "router; by default policies, slots and routers",
    )
    prices: dict[Name, Positive] | None = Field(None, description="price of one GPU for an hour, by catalogue name")
    currency: Name | None = Field(None, description="of the prices, such as USD")
    budget: Budget = Field(default_factory=Budget, description="most price, GPUs, candidates, simulated requests")
    seeds: PlanSeeds = Field(default_factory=PlanSeeds, description="how many seeds decide on a candidate")
    grow: Literal["traffic", "adapters"] | None = Field(
        None, description="capacity: what grows until the SLO is missed; by default traffic"
    )
    factors: Annotated[list[Factor], Field(min_length=1)] | None = Field(
        None, description="sensitivity: what grows, of traffic, adapters, skew, rank and burstiness; by default all"
    )
    goal: str | None = Field(
        None,
        description="settings: what is best, a target of the SLO or a metric such as output_tokens_per_s; by default "
        "the distance from the SLO",
    )
    details: bool = Field(
        True, description="also curves, a heat map, sensitivity, what-ifs and regret around the best candidate"
    )

    @field_validator("space", mode="after")
    @classmethod
    def _has_values(cls, space: dict[str, list[Any]] | None, info: ValidationInfo) -> dict[str, list[Any]] | None:
        found: dict[str, list[Any]] = {}
        for key, values in (space or {}).items():
            section = AUTOSCALE if key.startswith(f"{AUTOSCALE}.") else key.partition(".")[0]
            if key not in SETTINGS and (section not in SECTIONS or section == key):
                known = f"gpu, policy, router, placement, and keys of {', '.join(SECTIONS)}"
                raise wrong(f"cannot vary: a space has {known}", key)
            if key in SHORT_KEYS and SHORT_KEYS[key] in (space or {}):
                raise wrong(f"is the same as {SHORT_KEYS[key]}: remove one of them", key)
            if not values:
                raise wrong("has no values: give at least one", key)
            if key in ("replicas", SHORT_KEYS["replicas"]):
                raise wrong("is set by plan.replicas: move the values there", key)
            if key in ("placement", SHORT_KEYS["placement"]):
                values = ["replicate_all" if value is None else value for value in values]
            elif key in GUESTS:
                values = [beside_the_scenario(value, info) if isinstance(value, str) else value for value in values]
            texts = [repr(value) for value in values]
            if len(set(texts)) != len(texts):
                raise wrong("repeats a value: keep each one once", key)
            found[key] = values
        return None if space is None else found

    @field_validator("budget", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        for item in value.values() if isinstance(value, dict) else ():
            no_bool(item)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> PlanSpec:
        if self.budget.price_per_hour is not None and self.prices is None:
            raise wrong("needs prices: add plan.prices, such as {h100-80gb: 3.0}", "budget", "price_per_hour")
        if self.currency is not None and self.prices is None:
            raise wrong("needs prices: add plan.prices, or remove it", "currency")
        if self.replicas is not None and self.ask == "autoscale":
            raise wrong("is for ask: fleet; ask: autoscale looks within cluster.autoscale's least and most", "replicas")
        if self.ask == "autoscale" and (given := [key for key in BOUNDS if key in (self.space or {})]):
            raise wrong("is what ask: autoscale chooses, within cluster.autoscale: remove it", "space", given[0])
        if self.replicas is not None and self.ask != "fleet":
            raise wrong(f"is for ask: fleet, but ask is {self.ask}: set cluster.replicas instead", "replicas")
        if self.mixed and self.ask != "fleet":
            raise wrong(f"is for ask: fleet, but ask is {self.ask}: remove it", "mixed")
        if self.mixed and len((self.space or {}).get("gpu", ())) < 2:
            raise wrong("needs two GPU types or more: give them in plan.space.gpu", "mixed")
        if self.factors is not None and self.ask != "sensitivity" and not self.details:
            raise wrong("is for ask: sensitivity or details, but details is false: remove it", "factors")
        if self.space is not None and self.ask == "sensitivity":
            raise wrong("is for other questions than sensitivity, which asks of one fleet: remove it", "space")
        if self.goal is not None and self.ask != "settings":
            raise wrong(f"is for ask: settings, but ask is {self.ask}: remove it", "goal")
        if self.grow is not None and self.ask != "capacity":
            raise wrong(f"is for ask: capacity, but ask is {self.ask}: remove it", "grow")
        return self

    def replica_counts(self) -> tuple[int, ...]:
        """Numbers of replicas to choose from, rising."""
        if self.replicas is None:
            return tuple(range(1, 17))
        if isinstance(self.replicas, Between):
            return tuple(range(self.replicas.least, self.replicas.most + 1))
        return tuple(sorted(set(self.replicas)))
