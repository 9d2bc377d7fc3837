"""TargetSpec: one target of an SLO on requests of a tenant, of a class of adapters, or of the worst of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, WithJsonSchema, model_validator

from loratory.errors import did_you_mean, several, shortened
from loratory.scenarios.schema_types import Count, Name, Positive, Section, Share, wrong
from loratory.scenarios.workload_spec import Slice

EACH = "each"
"""Written for a tenant or for adapters: the target must hold for each of them."""

BASE = "base"
"""Written for adapters: requests for the base model."""

METRICS = ("ttft", "tpot", "e2e", "queue")
"""Times that a request has, each of which ``attainment`` can limit."""

_MARK = r"mean|max|p(?!0+(\.0+)?$)\d{1,2}(\.\d+)?"


def _mark(value: Any) -> Any:
    """A mark as it is written throughout: p95 for p95.0."""
    if not isinstance(value, str) or re.fullmatch(_MARK, value) is None:
        raise wrong(f"should be mean, max or a percentile such as p95 or p99.9, not {shortened(str(value), 60)!r}")
    return f"p{float(value[1:]):.12g}" if value[0] == "p" else value


Mark = Annotated[str, BeforeValidator(_mark), WithJsonSchema({"type": "string", "pattern": f"^({_MARK})$"})]


class RankClass(Section):
    """Adapters by rank. The other ways to choose: `base`, `each`, a list of names, or `{start, count}`."""

    ranks: Annotated[list[Count], Field(min_length=1)] = Field(description="the ranks of the adapters in the class")


def _way(value: Any) -> str | None:
    if isinstance(value, list | tuple):
        return "list"
    if isinstance(value, dict):
        return "class" if "ranks" in value else "slice"
    if isinstance(value, RankClass):
        return "class"
    return "slice" if isinstance(value, Slice) else "word" if value in (BASE, EACH) else None


Class = Annotated[
    Annotated[Literal["base", "each"], Tag("word")]
    | Annotated[list[Name], Field(min_length=1), Tag("list")]
    | Annotated[RankClass, Tag("class")]
    | Annotated[Slice, Tag("slice")],
    Discriminator(
        _way,
        custom_error_type="class",
        custom_error_message="should be a list of adapter names, {start, count}, {ranks: [...]}, base or each",
    ),
]


class TargetSpec(Section):
    """One target: a time (`metric`, `mark`, `at_most_s`), or the share of requests that keep limits (`attainment`).

    It is about all requests, or those that `tenant` and `adapters` choose.
    """

    metric: Literal["ttft", "tpot", "itl", "e2e", "queue"] | None = Field(
        None, description="ttft, tpot, itl, e2e or queue"
    )
    mark: Mark | None = Field(None, description="mean, max or a percentile, such as p95 or p99.9")
    at_most_s: Positive | None = Field(None, description="the metric's mark is at most this, s")
    attainment: Share | None = Field(
        None, description="instead of a metric, least share of requests that each keep every limit below"
    )
    ttft_s: Positive | None = Field(None, description="with attainment: a request's TTFT is at most this, s")
    tpot_s: Positive | None = Field(None, description="with attainment: its TPOT is at most this, s")
    e2e_s: Positive | None = Field(None, description="with attainment: its end-to-end time is at most this, s")
    queue_s: Positive | None = Field(None, description="with attainment: its queue time is at most this, s")
    tenant: Name | None = Field(None, description="requests of this tenant; each: the target holds for every tenant")
    adapters: Class | None = Field(
        None,
        description="requests with these adapters: names, {start, count}, {ranks: [64]} or base (the base model); "
        "each: the target holds for every adapter",
    )
    over_adapters: Mark | None = Field(
        None, description="this mark over the adapters of each adapter's mark: p95 over adapters of their TTFT p95"
    )
    over_tenants: Mark | None = Field(None, description="the same over tenants")

    @property
    def within(self) -> tuple[tuple[str, float], ...]:
        """The metrics that ``attainment`` limits, with the limits in seconds."""
        given = [(metric, getattr(self, f"{metric}_s")) for metric in METRICS]
        return tuple((metric, limit) for metric, limit in given if limit is not None)

    @property
    def subject(self) -> tuple[object, ...]:
        """What is measured, without the limit: two targets with one subject would contradict or repeat each other."""
        chosen = self.adapters.model_dump_json() if isinstance(self.adapters, Section) else str(self.adapters)
        return (self.metric, self.mark, self.within, self.tenant, chosen, self.over_adapters, self.over_tenants)

    @model_validator(mode="after")
    def _consistent(self) -> TargetSpec:
        if (self.metric is None) == (self.attainment is None):
            raise wrong(
                "needs either metric with mark and at_most_s, or attainment with a limit for each request, such as "
                "ttft_s"
            )
        if self.metric is not None:
            self._check_time(self.metric)
        else:
            self._check_attainment()
        self._check_groups()
        return self

    def _check_time(self, metric: str) -> None:
        for key, example in (("mark", "p95"), ("at_most_s", "2.0")):
            if getattr(self, key) is None:
                raise wrong(f"is missing: add it beside metric, for example {key}: {example}", key)
        if self.within:
            raise wrong("is for attainment, but the target has a metric: use at_most_s", f"{self.within[0][0]}_s")
        grouped = [k for k in ("tenant", "adapters", "over_adapters", "over_tenants") if getattr(self, k) is not None]
        if metric == "itl" and grouped:
            raise wrong(
                "cannot be combined with itl, which steps have and requests do not: use metric: tpot", grouped[0]
            )

    def _check_attainment(self) -> None:
        for key in ("mark", "at_most_s", "over_adapters", "over_tenants"):
            if getattr(self, key) is not None:
                remedy = (
                    f"use {key[5:-1] if key == 'over_tenants' else key[5:]}: each" if key[0] == "o" else "remove it"
                )
                raise wrong(f"is for a metric, but the target has attainment: {remedy}", key)
        if not self.within:
            raise wrong("needs a limit that each request keeps: add ttft_s, tpot_s, e2e_s or queue_s", "attainment")
        if self.attainment == 0:
            raise wrong("is 0, which every run reaches: raise it", "attainment")

    def _check_groups(self) -> None:
        by_tenant = {"tenant": self.tenant == EACH, "over_tenants": self.over_tenants is not None}
        by_adapter = {"adapters": self.adapters == EACH, "over_adapters": self.over_adapters is not None}
        given = [key for key, grouping in (by_tenant | by_adapter).items() if grouping]
        if len(given) > 1:
            raise wrong(f"cannot be combined with {given[0]}, which groups requests too: keep one of them", given[1])
        if self.over_tenants is not None and self.tenant is not None:
            raise wrong("is over all tenants, but the target is about one: remove one of them", "over_tenants")
        if self.over_adapters is not None and self.adapters == BASE:
            raise wrong("is over adapters, but the target is about the base model: remove one of them", "over_adapters")


def members(target: TargetSpec, names: Sequence[str], ranks: Sequence[int]) -> tuple[str, ...] | None:
    """The adapters that a target chooses by list, rank or position; None if it does not. `LookupError`: see `problem`.

    ``ranks``: the rank of each of ``names``.
    """
    chosen = target.adapters
    if chosen is None or isinstance(chosen, str):
        return None
    if isinstance(chosen, Slice):
        end = chosen.start + chosen.count
        if end > len(names):
            raise LookupError(
                f"has adapters {chosen.start} to {end - 1}, but there are {len(names)}, counted from 0: lower start or "
                "count"
            )
        return tuple(names[chosen.start : end])
    if isinstance(chosen, RankClass):
        known = sorted(set(ranks))
        for rank in chosen.ranks:
            if rank not in known:
                near = f"the nearest is {min(known, key=lambda r: abs(r - rank))}" if known else "there are none"
                raise LookupError(f"has rank {rank}, which no adapter has; {near}: correct it")
        return tuple(name for name, rank in zip(names, ranks, strict=True) if rank in chosen.ranks)
    every = set(names)
    for name in chosen:
        if name not in every:
            hint = did_you_mean(name, names[:1000], f"there are {several(names) or 'none'}")
            raise LookupError(f"names the adapter {name!r}, which does not exist; {hint}")
    return tuple(chosen)


def adapter_problem(
    targets: Sequence[TargetSpec], names: Sequence[str], ranks: Sequence[int]
) -> tuple[int, str, str] | None:
    """(place, key, what is wrong) of the first target about adapters that do not exist."""
    for place, target in enumerate(targets):
        try:
            members(target, names, ranks)
        except LookupError as error:
            return place, "adapters", str(error.args[0])
        key = "over_adapters" if target.over_adapters is not None else "adapters"
        if not names and (target.over_adapters is not None or target.adapters == EACH):
            return place, key, "is about adapters, but there are none: remove it"
    return None


def tenant_problem(targets: Sequence[TargetSpec], tenants: Sequence[str]) -> tuple[int, str, str] | None:
    """(place, key, what is wrong) of the first target about a tenant that does not exist."""
    known = set(tenants)
    for place, target in enumerate(targets):
        name = target.tenant
        if name is not None and name != EACH and name not in known:
            hint = did_you_mean(name, tenants[:1000], f"there are {several(tenants)}")
            return place, "tenant", f"names the tenant {name!r}, which does not exist; {hint}"
    return None
