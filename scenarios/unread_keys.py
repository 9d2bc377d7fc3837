"""Unread keys: keys that have no effect because of another key of the scenario; each is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from pydantic import BaseModel

from loratory.scenarios.adapters_spec import AdaptersSpec
from loratory.scenarios.cost_spec import OF_A_MODEL, TiersSpec
from loratory.scenarios.schema_types import Section, wrong
from loratory.scenarios.slo import SloSpec
from loratory.scenarios.tenants import TenantsSpec
from loratory.scenarios.workload_spec import WorkloadSpec
from loratory.serving.config import EngineConfig

_Rule = tuple[tuple[str, ...], bool, str]
"""A key's path, whether it has no effect, and why."""


class Sections(Protocol):
    """The sections of a `Scenario` whose keys can make each other ineffective."""

    @property
    def workload(self) -> WorkloadSpec:
        """The stream of requests."""

    @property
    def adapters(self) -> AdaptersSpec:
        """The LoRA adapters."""

    @property
    def tenants(self) -> TenantsSpec:
        """The tenants."""

    @property
    def engine(self) -> EngineConfig:
        """Settings of the engine."""

    @property
    def cost(self) -> Section:
        """The cost model."""

    @property
    def tiers(self) -> TiersSpec:
        """The storage below the GPU."""

    @property
    def slo(self) -> SloSpec:
        """The service levels."""


_OF_TRACES = (
    "format", "columns", "time_unit", "rate_scale", "window", "adapter_from", "zero_tokens", "prefix_cache",
    "block_tokens",
)  # fmt: skip


def refuse_unread(scenario: Sections) -> None:
    """Raises the error of a validator for the first key that is given but has no effect."""
    for path, unread, why in _rules(scenario):
        if unread and _given(scenario, path):
            raise wrong(why, *path)
    engine, key = scenario.engine, "long_prefill_threshold_alone"
    if not engine.long_prefill_token_threshold and engine.long_prefill_threshold_alone != engine.modelled.settings[key]:
        raise wrong("needs engine.long_prefill_token_threshold above 0: add that, or remove it", "engine", key)


def _rules(scenario: Sections) -> Iterator[_Rule]:
    workload = scenario.workload
    trace = workload.trace is not None
    for key in _OF_TRACES:
        yield ("workload", key), not trace, "needs workload.trace, which is missing: add that, or remove it"
    if trace:
        yield from _trace_rules(scenario)
    streams = workload.streams or []
    for here, there in (
        ("workload.input_tokens", "input_tokens"),
        ("workload.output_tokens", "output_tokens"),
        ("workload.deadline_s", "deadline_s"),
        ("adapters.popularity", "popularity"),
        ("adapters.base_share", "base_share"),
    ):
        every = bool(streams) and all(getattr(stream, there) is not None for stream in streams)
        yield tuple(here.split(".")), every, f"is not used, because every stream has its own {there}: remove it"
    vtc = workload.generator == "vtc"
    for key in ("popularity", "base_share"):
        yield (
            ("adapters", key),
            vtc,
            "is not used, because workload.generator is vtc, whose requests are for the base model: remove it",
        )
    start = scenario.adapters.initial_tier
    none = scenario.adapters.known_count == 0
    yield ("tiers", "disk_first_read_s"), none, _NO_ADAPTERS
    yield (
        ("tiers", "disk_first_read_s"),
        start != "disk",
        f"is not used, because adapters.initial_tier is {start}, where adapters have been read: remove one of them",
    )
    yield ("adapters", "base_share"), none, _NO_ADAPTERS
    yield from _cost_rules(scenario, none)
    limits = scenario.slo.limits()
    yield (
        ("slo", "attainment"),
        not limits,
        "is the share of requests within the limits of slo, but slo has none: add one, such as ttft_p99_s",
    )


_NO_ADAPTERS = "is not used, because adapters.count is 0: remove it"


def _cost_rules(scenario: Sections, none: bool) -> Iterator[_Rule]:
    """Keys of cost models that price a model's kernels; the constants of a linear one describe a machine."""
    cost, alone = scenario.cost, scenario.engine.tensor_parallel_size == 1
    if not isinstance(cost, OF_A_MODEL):
        return
    for key in type(cost).model_fields:
        if key.startswith("lora_") or key == "load_copy_s":
            yield ("cost", key), none, _NO_ADAPTERS
    if "all_reduce_latency_s" in type(cost).model_fields:
        why = "is not used, because engine.tensor_parallel_size is 1: raise that, or remove it"
        yield ("cost", "all_reduce_latency_s"), alone, why


def _trace_rules(scenario: Sections) -> Iterator[_Rule]:
    workload = scenario.workload
    arrivals, source = workload.arrivals is not None, workload.adapter_from
    prompts, outputs = workload.input_tokens is not None, workload.output_tokens is not None
    replaced = "is not used, because workload.{} replaces the trace's own: remove one of them".format
    yield ("workload", "rate_scale"), arrivals, replaced("arrivals")
    yield ("workload", "columns", "time"), arrivals and workload.window is None, replaced("arrivals")
    yield ("workload", "columns", "input"), prompts, replaced("input_tokens")
    yield ("workload", "columns", "output"), outputs, replaced("output_tokens")
    yield (
        ("workload", "prefix_cache"),
        prompts,
        "is not possible, because input_tokens replaces the prompts whose blocks it counts: remove one of them",
    )
    yield (
        ("workload", "block_tokens"),
        not workload.prefix_cache,
        "needs prefix_cache: true, which is missing: add that, or remove it",
    )
    yield (
        ("workload", "columns", "hash_ids"),
        not workload.prefix_cache,
        "needs prefix_cache: true, which is missing: add that, or remove it",
    )
    yield (
        ("workload", "columns", "cached"),
        workload.prefix_cache,
        "is not used, because prefix_cache counts cached tokens itself: remove one of them",
    )
    yield (
        ("workload", "columns", "max_tokens"),
        workload.max_tokens != "trace",
        "is not used, because workload.max_tokens is not trace: set that, or remove it",
    )
    yield ("workload", "columns", "deadline"), workload.deadline_s is not None, replaced("deadline_s")
    chosen = f"is not used, because adapter_from is {source}{{}}: remove it".format
    yield ("workload", "columns", "adapter"), source not in ("auto", "column"), chosen("")
    yield ("workload", "columns", "client"), source != "client", chosen("")
    tenant = source == "tenant" or bool(scenario.tenants.map.trace)
    yield ("workload", "columns", "tenant"), not tenant, chosen(" and tenants.map is not trace")


def _given(scenario: Sections, path: tuple[str, ...]) -> bool:
    """Whether a key has another value than its default."""
    here: Any = scenario
    for key in path[:-1]:
        here = getattr(here, key)
    assert isinstance(here, BaseModel)
    default = type(here).model_fields[path[-1]].get_default(call_default_factory=True)
    return bool(getattr(here, path[-1]) != default)
