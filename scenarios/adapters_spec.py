"""AdaptersSpec: how many adapters there are, their ranks and popularity, and the tier they start in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from loratory.errors import InputError
from loratory.scenarios.popularity import PopularitySpec
from loratory.scenarios.registry_adapters import RecordSpec, RegistrySpec, read_records
from loratory.scenarios.schema_types import Count, Index, Name, Positive, Section, Share, is_number, wrong
from loratory.serving.lora import RestingTier


def _shape(value: Any) -> str | None:
    if isinstance(value, dict):
        return "mapping"
    if isinstance(value, list | tuple):
        return "list"
    return "number" if (isinstance(value, int | float) and not isinstance(value, bool)) or is_number(value) else None


def _rank_key(value: Any) -> Any:
    if isinstance(value, bool) or not str(value).strip().isdigit() or int(value) < 1:
        raise PydanticCustomError("rank", "{text}", {"text": f"the rank {value!r} should be a whole number above 0"})
    return int(value)


Rank = Annotated[int, BeforeValidator(_rank_key)]
Ranks = Annotated[
    Annotated[Count, Tag("number")]
    | Annotated[list[Count], Field(min_length=1), Tag("list")]
    | Annotated[dict[Rank, Positive], Field(min_length=1), Tag("mapping")],
    Discriminator(
        _shape,
        custom_error_type="ranks",
        custom_error_message="should be one rank, a list of ranks, or {rank: share}",
    ),
]


class RateGroup(Section):
    """Consecutive adapters that each have the same rate."""

    rate: Positive = Field(description="requests/s of each adapter in the group")
    count: Count | None = Field(None, description="how many adapters")
    share: Share | None = Field(None, description="or the share of all adapters")

    @model_validator(mode="after")
    def _one_size(self) -> RateGroup:
        if (self.count is None) == (self.share is None):
            raise wrong("needs either count or share, which set how many adapters have this rate")
        return self


Rates = Annotated[
    Annotated[Positive, Tag("number")]
    | Annotated[list[RateGroup], Field(min_length=1), Tag("list")]
    | Annotated[dict[Name, Positive], Field(min_length=1), Tag("mapping")],
    Discriminator(
        _shape,
        custom_error_type="rates",
        custom_error_message="should be one rate, {adapter: rate}, or a list of {count or share, rate}",
    ),
]
NamesOrCount = Annotated[
    Annotated[Index, Tag("number")] | Annotated[list[Name], Tag("list")],
    Discriminator(
        _shape, custom_error_type="names", custom_error_message="should be a number of adapters or a list of names"
    ),
]
Modules = Annotated[
    Annotated[Literal["all-linear"], Tag("word")] | Annotated[list[Name], Field(min_length=1), Tag("list")],
    Discriminator(
        lambda value: "list" if isinstance(value, list | tuple) else "word",
        custom_error_type="modules",
        custom_error_message="should be all-linear or a list of module names",
    ),
]


class AdaptersSpec(Section):
    """The adapters of a scenario. They are the same for every seed."""

    count: Index | None = Field(
        None, description="number of adapters; by default that of names, rates or the trace. 0: base model only"
    )
    names: list[Name] | None = Field(
        None,
        description="their names; by default adapter-000, adapter-001, ...; with registry, the adapters to take, as "
        "name or name@version",
    )
    registry: RegistrySpec | None = Field(
        None, description="a registry to take the adapters from, with their ids, ranks and sizes"
    )
    records: Annotated[list[RecordSpec], Field(min_length=1)] | None = Field(
        None, description="the adapters themselves; the scenario.yaml of a run with a registry has them"
    )
    ranks: Ranks = Field(
        16, description="one LoRA rank, a list that repeats over the adapters, or {rank: share}, interleaved"
    )
    popularity: PopularitySpec | None = Field(
        None, description="which adapter a request uses: uniform (default), zipf, power, weights or drift"
    )
    rates: Rates | None = Field(
        None,
        description="instead of arrivals and popularity, independent Poisson arrivals for each adapter, requests/s",
    )
    base_share: Share = Field(0.0, description="share of requests for the base model, without an adapter")
    target_modules: Modules = Field(
        "all-linear",
        description="modules the adapters change: all-linear (the layers' seven), or a list such as [q_proj, lm_head]",
    )
    pinned: NamesOrCount = Field(0, description="adapters loaded once and never evicted: the first n, or names")
    initial_tier: RestingTier = Field("disk", description="storage tier of every adapter at the start")

    @model_validator(mode="after")
    def _real(self) -> AdaptersSpec:
        """With a registry: the same section with its records, so that the registry is read only once."""
        if self.registry is None and self.records is None:
            return self
        key = "registry" if self.registry is not None else "records"
        for other in ("count", "records" if key == "registry" else "names"):
            if getattr(self, other) is not None:
                raise wrong(f"cannot be combined with {key}, which lists the adapters: remove one of them", other)
        spec, records = self.registry, self.records or []
        if spec is not None:
            if self.names is not None and (spec.tenant is not None or spec.labels):
                raise wrong(
                    "cannot be combined with tenant or labels of the registry, which also choose adapters: remove one "
                    "of them",
                    "names",
                )
            records = read_records(spec, self.names)
        for what in ("name", "lora_int_id"):
            values = [getattr(record, what) for record in records]
            if len(set(values)) != len(values):
                twice = next(value for value in values if values.count(value) > 1)
                raise wrong(f"repeats the {what} {twice!r}: each adapter needs its own", "records")
        ranks = [record.rank for record in records]
        if "ranks" in self.model_fields_set and (key == "registry" or self.ranks != ranks):
            raise wrong(f"cannot be combined with {key}, which gives each adapter's rank: remove it", "ranks")
        real: dict[str, Any] = {"registry": None, "names": None, "records": records, "ranks": ranks}
        if "target_modules" not in self.model_fields_set:
            real["target_modules"] = sorted({name for record in records for name in record.target_modules})
        return self.model_copy(update=real)

    @model_validator(mode="after")
    def _consistent(self) -> AdaptersSpec:
        if self.names is not None:
            twice = {name for name in self.names if self.names.count(name) > 1} if len(self.names) < 10_000 else set()
            if twice or len(set(self.names)) != len(self.names):
                raise wrong(f"repeats {min(twice, default='a name')!r}: name each adapter once", "names")
            if self.count is not None and self.count != len(self.names):
                raise wrong(f"is {self.count}, but names lists {len(self.names)}: remove count", "count")
        if self.rates is not None and self.popularity is not None:
            raise wrong(
                "cannot be combined with rates, which make adapters more or less popular: remove one of them",
                "popularity",
            )
        if self.rates is not None and self.base_share >= 1:
            raise wrong("should be below 1 if rates are given", "base_share")
        if self.rates is not None and self.known_count is None:
            raise wrong("has shares or one number, which need the number of adapters: add count", "rates")
        if isinstance(self.rates, list) and self.known_count is not None:
            counts = [group.count for group in self.rates if group.count is not None]
            if sum(counts) > self.known_count or (len(counts) == len(self.rates) and sum(counts) < self.known_count):
                raise wrong(
                    f"is for {sum(counts)} adapters, but there are {self.known_count}: correct one of them", "rates"
                )
            shares = sum(group.share for group in self.rates if group.share is not None)
            if shares and not 0.99 <= shares + sum(counts) / max(self.known_count, 1) <= 1.01:
                raise wrong(f"has shares that add up to {shares:g}: make them add up to 1", "rates")
        return self

    @property
    def known_count(self) -> int | None:
        """The number of adapters; None if only the trace determines it."""
        if self.records is not None:
            return len(self.records)
        if self.count is not None:
            return self.count
        if self.names is not None:
            return len(self.names)
        if isinstance(self.rates, dict):
            return len(self.rates)
        if isinstance(self.rates, list) and all(group.count is not None for group in self.rates):
            return sum(group.count or 0 for group in self.rates)
        if self.popularity is not None and isinstance(self.popularity.weights, list | dict):
            return len(self.popularity.weights)
        return None

    def known_names(self) -> tuple[str, ...] | None:
        """The adapters' names; None if only the trace determines them."""
        if self.records is not None:
            return tuple(record.name for record in self.records)
        if self.names is not None:
            return tuple(self.names)
        if isinstance(self.rates, dict) and self.count in (None, len(self.rates)):
            return tuple(self.rates)
        if self.popularity is not None and isinstance(self.popularity.weights, dict) and self.count is None:
            return tuple(self.popularity.weights)
        return None if self.known_count is None else default_names(self.known_count)

    def max_rank(self) -> int:
        """The largest rank any adapter can have."""
        return max(_rank_list(self.ranks))

    def rank_of(self, count: int) -> list[int]:
        """The rank of each of ``count`` adapters.

        Shares are interleaved (each adapter gets the rank furthest behind its share), so that rank does not follow
        popularity.
        """
        if isinstance(self.ranks, int):
            return [self.ranks] * count
        if isinstance(self.ranks, list):
            return [self.ranks[i % len(self.ranks)] for i in range(count)]
        total = sum(self.ranks.values())
        given = dict.fromkeys(self.ranks, 0)
        ranks: list[int] = []
        for i in range(1, count + 1):
            behind = {rank: share / total * i - given[rank] for rank, share in self.ranks.items()}
            rank = max(behind, key=lambda r: behind[r])
            given[rank] += 1
            ranks.append(rank)
        return ranks

    def pinned_names(self, names: Sequence[str]) -> frozenset[str]:
        """Those of ``names`` that are pinned. Raises `InputError` for a pinned name that is not among them."""
        if isinstance(self.pinned, int):
            return frozenset(names[: self.pinned])
        known = set(names)
        for name in self.pinned:
            if name not in known:
                raise InputError(
                    f"adapters.pinned names {name!r}, which is not an adapter of this scenario: correct it"
                )
        return frozenset(self.pinned)

    def rate_of(self, names: Sequence[str]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Requests/s of each adapter, if ``rates`` is given."""
        if isinstance(self.rates, dict):
            return np.array([self.rates.get(name, 0.0) for name in names])
        if isinstance(self.rates, list):
            sizes = _apportion([group.count or (group.share or 0.0) * len(names) for group in self.rates], len(names))
            return np.repeat([group.rate for group in self.rates], sizes)
        return np.full(len(names), float(self.rates or 0.0))


def default_names(count: int) -> tuple[str, ...]:
    """adapter-000, adapter-001, ...: as many digits as the last one needs, at least three."""
    width = max(3, len(str(max(count - 1, 0))))
    return tuple(f"adapter-{i:0{width}d}" for i in range(count))


def _rank_list(ranks: int | list[int] | dict[int, float]) -> list[int]:
    return [ranks] if isinstance(ranks, int) else list(ranks)


def _apportion(sizes: Sequence[float], total: int) -> list[int]:
    """Whole numbers near ``sizes`` that add up to ``total`` (largest remainder)."""
    whole = [int(size) for size in sizes]
    order = sorted(range(len(sizes)), key=lambda i: (whole[i] - sizes[i], i))
    for i in range(total - sum(whole)):
        whole[order[i % len(order)]] += 1
    return whole
