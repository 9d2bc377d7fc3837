"""resolve: from a scenario to what a backend needs: engine settings, cost model, adapters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, get_args

from loratory.errors import InputError
from loratory.experiment.memory_remedies import Remedies
from loratory.experiment.notes.model_notes import clipping_notes, model_notes
from loratory.experiment.roll_outs import roll_outs
from loratory.models.released import known_as
from loratory.scenarios.build import build_adapters
from loratory.scenarios.cluster_spec import ReplicaGroupSpec
from loratory.scenarios.cost_spec import OF_A_MODEL, TiersSpec, cost_dtype
from loratory.scenarios.noise_spec import NoiseSpec
from loratory.scenarios.registry_adapters import other_base
from loratory.scenarios.schema import Scenario
from loratory.scenarios.schema_types import Section
from loratory.serving.config import EngineConfig
from loratory.serving.lora import Adapter
from loratory.serving.vllm_limits import vllm_notes
from loratory.sim.catalogue import GPU, ModelSpec, dtype_bytes, gpu, model, resolve_targets
from loratory.sim.cost import CostModel, MemoryOptions, MemoryPlan, ProfileCost, cost_model, kv_blocks, oversized
from loratory.sim.cost.base import fitted_ranges
from loratory.sim.fleet_options import RollOut
from loratory.sim.noise import NoiseOptions

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kind:
    """Equal replicas of a fleet: their GPU, engine, cost model and memory, as in `Built`. ``label`` tells it from the
    other kinds: ``h100-80gb, max_loras 64``."""

    label: str
    gpu: str
    count: int
    engine: EngineConfig
    cost: CostModel
    kv_bytes_per_token: int
    memory: MemoryPlan | None


@dataclass(frozen=True, slots=True)
class Built:
    """A scenario's fixed parts: the same for each policy and seed. Of a fleet with several ``kinds`` of replicas,
    ``engine``, ``cost``, ``kv_bytes_per_token`` and ``memory`` are those of the first.

    ``engine`` has a number of KV blocks; ``memory`` is how it was computed, None where the scenario sets it.
    ``kv_bytes_per_token``: of one replica. ``dtype``: of the weights of linear layers. ``notes``: one sentence each,
    for the report. ``noise``: of step times, None where the scenario has none. ``roll_outs``: new versions of adapters.
    """

    engine: EngineConfig
    model: ModelSpec
    cost: CostModel
    adapters: tuple[Adapter, ...]
    kv_bytes_per_token: int
    memory: MemoryPlan | None
    dtype: str
    kv_cache_dtype: str
    notes: tuple[str, ...] = ()
    noise: NoiseOptions | None = None
    kinds: tuple[Kind, ...] = ()
    roll_outs: tuple[RollOut, ...] = ()

    @property
    def versions(self) -> tuple[Adapter, ...]:
        """The adapters, and the new versions that come in the course of a run."""
        return (*self.adapters, *(order.new for order in self.roll_outs))

    @property
    def mixed(self) -> bool:
        """Whether the fleet has replicas of several kinds."""
        return len(self.kinds) > 1

    @property
    def gpus(self) -> int:
        """GPUs of all replicas."""
        return sum(kind.count * kind.engine.tensor_parallel_size for kind in self.kinds)


def build(scenario: Scenario, source: str | None = None) -> Built:
    """Resolve a scenario's model, GPU, cost model, KV blocks and adapters. ``source``: its file, named in errors.

    Raises `InputError`, with the key, for an unknown model or GPU, a model that does not fit, and bad adapters.
    """
    return _build(scenario) if source is None else _at(source, lambda: _build(scenario))


def _build(scenario: Scenario) -> Built:
    _at("gpu", lambda: gpu(scenario.gpu))  # also where every kind of replica names its own
    made = [_kind(scenario, group, place) for place, group in enumerate(scenario.cluster.groups)]
    notes = tuple(dict.fromkeys(note for built, _ in made for note in built.notes))
    orders = roll_outs(scenario.cluster, made[0][0].adapters)
    return replace(made[0][0], notes=notes, kinds=tuple(kind for _, kind in made), roll_outs=orders)


def _kind(scenario: Scenario, group: ReplicaGroupSpec, place: int) -> tuple[Built, Kind]:
    """A fleet's group of replicas, built as a scenario of its own."""
    engine, card = group.engine_of(scenario.engine, place), group.gpu or scenario.gpu
    if card == scenario.gpu and engine == scenario.engine:
        built = _build_one(scenario)  # errors name the scenario's own keys
    else:
        own = scenario.model_copy(update={"gpu": card, "engine": engine})
        built = _at(f"cluster.replicas.{place}", lambda: _build_one(own))
    width, kv_bytes = engine.tensor_parallel_size, built.kv_bytes_per_token
    differing = [f"{key} {value}" for key, value in group.engine.items() if key != "tensor_parallel_size"]
    label = ", ".join([f"{width} x {card}" if width > 1 else card, *differing])
    return built, Kind(label, card, group.count, built.engine, built.cost, kv_bytes, built.memory)


def _build_one(scenario: Scenario) -> Built:
    """A scenario with replicas of one kind, those of its ``gpu`` and ``engine``."""
    spec = _at("model", lambda: model(scenario.model))
    card = _at("gpu", lambda: gpu(scenario.gpu))
    engine = _planning(_limited(scenario.engine, spec))
    targets = scenario.adapters.target_modules
    _at("adapters.target_modules", lambda: resolve_targets(targets))
    used = targets if scenario.adapters.known_count != 0 else ()
    options = _memory_options(scenario)
    if options.dtype is not None:
        _at(
            "cost.dtype" if scenario.memory.dtype is None else "memory.dtype",
            lambda: _computes(card, str(options.dtype), scenario),
        )
    wide = spec.wide_dtype(options.dtype)
    cache = options.kv_cache_dtype or wide
    kv_bytes = spec.kv_bytes_per_token(dtype=cache)
    adapters = build_adapters(scenario, lambda rank: spec.adapter_bytes(rank, targets, wide), dtype_bytes(wide))
    memory = excess = None
    if engine.num_gpu_blocks is not None:
        excess = _at("engine", lambda: oversized(spec, card, engine, used, options))
    else:
        runs = Remedies(scenario, engine, adapters).runs
        memory = _at("engine", lambda: kv_blocks(spec, card, engine, used, options, runs))
    sized = engine if memory is None else engine.model_copy(update={"num_gpu_blocks": memory.num_gpu_blocks})
    cost: CostModel = cost_model(scenario.cost.kind, spec, card, sized, _cost_options(scenario))
    noise = _noise(scenario.cost.noise, cost)
    if scenario.tiers.host_bandwidth_bytes_s is not None or scenario.tiers.host_latency_s is not None:
        cost = HostLinkCost(cost, scenario.tiers)
    notes = [
        excess,
        other_base(scenario.adapters.records or (), (spec.name, spec.source, *_further_names(scenario.model))),
        spec.context.note if scenario.engine.max_model_len is None else None,
        *model_notes(scenario, spec),
        *clipping_notes(scenario),
        *vllm_notes(engine, bool(used)),
    ]
    given = tuple(note for note in notes if note)
    return Built(sized, spec, cost, adapters, kv_bytes, memory, options.dtype or spec.dtype, cache, given, noise)


def _further_names(given: str) -> tuple[str, ...]:
    """Names by which adapters may know a model that is a folder or its config.json, besides the folder's own."""
    place = Path(given)
    return known_as(place) if place.is_dir() else known_as(place.parent) if place.name == "config.json" else ()


def _computes(card: GPU, dtype: str, scenario: Scenario) -> None:
    """Raises `InputError` where the GPU cannot compute in a dtype, with those that it can and that may be given."""
    if dtype not in card.flops:
        section: Section = scenario.memory if scenario.memory.dtype is not None else scenario.cost
        words = get_args(get_args(type(section).model_fields["dtype"].annotation)[0])
        known = ", ".join(each for each in card.flops if each in words)
        raise InputError(f"GPU {card.name} has no {dtype} arithmetic: use one of {known}")


def _memory_options(scenario: Scenario) -> MemoryOptions:
    """The settings of the memory model; ``cost.dtype`` is the dtype of the weights, for time and memory alike."""
    given = scenario.memory.model_dump(exclude_none=True)
    if (dtype := cost_dtype(scenario.cost)) is not None:
        given["dtype"] = dtype
    return MemoryOptions.model_validate(given)


def _cost_options(scenario: Scenario) -> dict[str, object]:
    options = {k: v for k, v in scenario.cost.model_dump(exclude_none=True).items() if k not in ("kind", "noise")}
    if isinstance(scenario.cost, OF_A_MODEL):
        options["target_modules"] = scenario.adapters.target_modules
        if scenario.memory.kv_cache_dtype is not None:
            options["kv_cache_dtype"] = scenario.memory.kv_cache_dtype
    options["transfers"] = _below_gpu(scenario.tiers)
    return options


def _limited(engine: EngineConfig, spec: ModelSpec) -> EngineConfig:
    """The engine's settings with the model's context limit where they name none. Raises `InputError` beyond it."""
    length, limit = engine.max_model_len, spec.context.most
    if length is not None and length > limit:
        why = " (its sliding window)" if limit == spec.context.window else ""
        raise InputError(
            f"engine.max_model_len is {length}, but {spec.name} takes at most {limit} tokens{why}: lower it to "
            f"{limit}, or leave it out"
        )
    return engine if length is not None else engine.model_copy(update={"max_model_len": spec.context.default})


def _noise(given: NoiseSpec | None, cost: CostModel) -> NoiseOptions | None:
    """The scenario's ``cost.noise``, with the profile's residuals; None where it has no effect.

    Raises `InputError` for a profile without residuals.
    """
    if given is None or not given.has_an_effect:
        return None
    residuals = cost.profile.residuals if isinstance(cost, ProfileCost) else None
    if given.residuals and residuals is None:
        raise InputError(
            f"cost.noise.residuals needs what was measured, and {cost.source.partition(':')[0]} does not hold it: "
            "measure anew with `loratory profile`, or give cost.noise.cv instead"
        )
    return NoiseOptions(
        given.cv,
        given.run_cv,
        given.stall_rate_hz,
        given.stall_s,
        *((residuals.decode, residuals.prefill) if given.residuals and residuals is not None else ()),
    )


def _planning(engine: EngineConfig) -> EngineConfig:
    """The engine's settings with ``async_scheduling`` as the modelled engine has it on a GPU, where they do not say."""
    return engine.model_copy(update={"async_scheduling": engine.plans_ahead})


def _below_gpu(tiers: TiersSpec) -> dict[str, float]:
    given = {
        "disk_fixed_s": tiers.disk_latency_s,
        "disk_bytes_per_s": tiers.disk_bandwidth_bytes_s,
        "disk_first_read_s": tiers.disk_first_read_s,
        "remote_fixed_s": tiers.remote_latency_s,
        "remote_bytes_per_s": tiers.remote_bandwidth_bytes_s,
        "remote_concurrency": tiers.remote_concurrency,
    }
    return {key: value for key, value in given.items() if value is not None}


class HostLinkCost:
    """A cost model with the host-to-GPU link of the scenario's ``tiers`` section."""

    def __init__(self, cost: CostModel, tiers: TiersSpec) -> None:
        self._cost = cost
        self._latency_s = tiers.host_latency_s or 0.0
        self._bandwidth = tiers.host_bandwidth_bytes_s
        self.name = cost.name
        self.source = f"{cost.source}; host link of the scenario"
        self.known_error = cost.known_error
        self.warnings = cost.warnings
        self.fitted = fitted_ranges(cost)
        self.below = cost.below
        self.step_seconds = cost.step_seconds
        self.decode_line = cost.decode_line
        self.explain = cost.explain

    def load_seconds(self, adapter: Adapter, tier: str) -> float:
        """Seconds of the hop that starts at ``tier``."""
        if tier != "host":
            return self._cost.load_seconds(adapter, tier)
        if self._bandwidth is None:
            return self._latency_s + self._cost.load_seconds(adapter, tier)
        return self._latency_s + adapter.bytes / self._bandwidth


def _at(key: str, make: Callable[[], T]) -> T:
    """``make()``; an `InputError` of it gets the scenario key in front."""
    try:
        return make()
    except InputError as error:
        raise InputError(f"{key}: {error}") from error
