"""TenantsSpec: which tenant a request belongs to, and how much of the service each tenant is owed."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from loratory.scenarios.popularity import choose
from loratory.scenarios.schema_types import Count, Name, OneOf, Positive, Section, no_bool, wrong
from loratory.serving.request import BASE_TENANT
from loratory.serving.workload import Ints

PriorityNumber = Annotated[int, BeforeValidator(no_bool)]


class TenantMap(OneOf):
    """How requests belong to tenants. ``by_adapter``, ``single`` and ``trace`` may be written alone.

    If the adapter decides, base-model requests belong to the tenant "default".
    """

    shorthand: ClassVar = {str: ""}

    by_adapter: bool | None = Field(None, description="every adapter is a tenant of its name")
    single: bool | None = Field(None, description='one tenant, "default"')
    trace: bool | None = Field(None, description="the trace's tenant column")
    groups: Count | None = Field(None, description="n tenants, tenant-0 ...; adapter i belongs to tenant i mod n")
    shares: Annotated[dict[Name, Positive], Field(min_length=1)] | None = Field(
        None, description="{tenant: share of requests}, whatever their adapter"
    )
    owners: Annotated[dict[Name, list[Name]], Field(min_length=1)] | None = Field(
        None, description='{tenant: [its adapters]}; the others belong to "default"'
    )

    @model_validator(mode="after")
    def _true(self) -> TenantMap:
        if self.value is False:
            raise wrong("should be true: correct it, or choose another map", self.kind)
        return self

    def names(self, adapters: tuple[str, ...]) -> tuple[str, ...] | None:
        """Every tenant the map can produce, "default" last unless it is the only one; None if the trace names them."""
        if self.trace:
            return None
        if self.shares is not None:
            return tuple(self.shares)
        if self.single:
            return (BASE_TENANT,)
        if self.groups is not None:
            own = tuple(f"tenant-{i}" for i in range(self.groups))
        else:
            own = adapters if self.by_adapter else tuple(self.owners or {})
        return own if BASE_TENANT in own else (*own, BASE_TENANT)

    def assign(self, adapter: Ints, adapters: tuple[str, ...], rng: np.random.Generator) -> Ints:
        """An index into `names` for each request, by its adapter (-1: base model)."""
        names = self.names(adapters)
        assert names is not None
        if self.shares is not None:
            return choose(rng, np.array(list(self.shares.values())), len(adapter))
        if self.single:
            return np.zeros(len(adapter), dtype=np.int64)
        if self.groups is not None:
            of_adapter = np.arange(len(adapters), dtype=np.int64) % self.groups
        else:
            position = {name: i for i, name in enumerate(names)}
            owner = {name: name for name in adapters}
            if self.owners is not None:
                owner = {name: tenant for tenant, owned in self.owners.items() for name in owned}
            default = position[BASE_TENANT]
            of_adapter = np.array(
                [position.get(owner.get(name, BASE_TENANT), default) for name in adapters], dtype=np.int64
            )
        return np.append(of_adapter, names.index(BASE_TENANT))[adapter]


class TenantsSpec(Section):
    """Tenants, their fair shares and their priorities."""

    map: TenantMap = Field(
        default_factory=lambda: TenantMap(by_adapter=True),
        description="by_adapter (default), single, trace, {groups: n}, {shares: {...}} or {owners: {...}}",
    )
    weights: dict[Name, Positive] = Field(
        default_factory=dict, description="{tenant: its share of service in fair policies}; by default 1 for each"
    )
    priorities: dict[Name, PriorityNumber] = Field(
        default_factory=dict, description="{tenant: priority of its requests}, lower first as in vLLM; by default 0"
    )

    def weight_of(self, names: tuple[str, ...]) -> tuple[float, ...]:
        """The weight of each tenant, or nothing if all are equal."""
        return tuple(float(self.weights.get(name, 1.0)) for name in names) if self.weights else ()

    def priority_of(self, tenant: Ints, names: tuple[str, ...]) -> Ints | None:
        """Each request's priority, or None if all are equal."""
        if not self.priorities:
            return None
        return np.array([self.priorities.get(name, 0) for name in names], dtype=np.int64)[tenant]

    def unknown(self, names: tuple[str, ...]) -> tuple[str, str] | None:
        """A key and a tenant named under it that does not exist among ``names``."""
        pairs: list[tuple[str, Any]] = [("weights", self.weights), ("priorities", self.priorities)]
        return next(((key, name) for key, table in pairs for name in table if name not in names), None)
