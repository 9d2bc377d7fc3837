"""Run description: what a run simulates, in words: the first block of a report, the first lines in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from loratory.errors import several, shortened
from loratory.experiment.prepare import Prepared
from loratory.experiment.resolve import Built
from loratory.experiment.slo_targets import slo_targets
from loratory.reports.number_text import plural
from loratory.scenarios.cluster_spec import ClusterSpec, ReplicaGroupSpec
from loratory.scenarios.schema import Scenario
from loratory.serving.config import EngineConfig
from loratory.sim.cost import CostModel
from loratory.sim.cost.known_errors import together
from loratory.sim.noise import NoiseOptions

_ALWAYS = ("max_loras", "max_cpu_loras", "max_lora_rank", "max_num_seqs", "max_num_batched_tokens")
"""Engine settings that are always named; others only where they are not the default."""

_COMMON = {"evict": "lru", "prefetch": 0, "reserve": False}
"""Parameters every policy takes, with their defaults: named where they differ."""


def setup(prepared: Prepared, machine: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Facts by label, in the order to show them, from the resolved scenario: equal scenarios give equal texts.

    ``machine``: what the executor reports of itself where it ran there; None for a simulation.
    """
    scenario, built = prepared.scenario, prepared.built
    costs = [kind.cost for kind in built.kinds]
    facts = {
        "model": _model(built),
        "GPU": hardware(scenario),
        "engine": ", ".join([engine_words(built.engine), *_other_caches(built)]),
        "engine's rules": f"{built.engine.modelled.source}; not modelled: {built.engine.modelled.left_out}",
        "adapters": _adapters(scenario, built),
        "workload": _workload(scenario),
        "cost model": cost_words(scenario, costs),
        "known error": known_error_words(costs),
        "noise": noise_words(built.noise),
        "memory": phrase(scenario.memory.model_dump(exclude_none=True)),
        "storage tiers": phrase(scenario.tiers.model_dump(exclude_none=True, exclude_defaults=True)),
        "policies": "; ".join(policy_words(spec, factory.settings) for spec, factory in prepared.policies.items()),
        "SLO": _slo(scenario, built),
        "seeds": ", ".join(map(str, scenario.seeds)) + f"; warmup_s {phrase(scenario.warmup_s)}",
        "version": f"Loratory {version('loratory')}",
    }
    if machine is not None:
        named = f"{machine['device_name']} ({machine['device']}), {machine['dtype']}"
        facts["GPU"] = f"the executor on {named}, {machine['threads']} threads, torch {machine['torch']}"
        facts["cost model"] = "none: measured"
        facts["known error"] = facts["noise"] = facts["storage tiers"] = ""
    return {label: text for label, text in facts.items() if text}


def _model(built: Built) -> str:
    """``llama-3.1-8b, fp8``, with what the KV cache is in where that is not the model's own dtype."""
    cache = f", KV cache {built.kv_cache_dtype}" if built.kv_cache_dtype != built.model.dtype else ""
    return f"{built.model.name}, {built.dtype}{cache}"


def hardware(scenario: Scenario) -> str:
    """``4 replicas of 2 x a100-80gb, router lora_affinity``."""
    cluster, each = scenario.cluster, f"{scenario.engine.tensor_parallel_size} x {scenario.gpu}"
    if not isinstance(cluster.replicas, int):
        words = [_group_words(group, scenario) for group in cluster.replicas]
        return f"{cluster.count} replicas: {'; '.join(words)}; router {cluster.router}{_changes(cluster)}"
    if cluster.count == 1 and not cluster.changes:
        return each
    return f"{plural(cluster.count, 'replica')} of {each}, router {cluster.router}{_changes(cluster)}"


def _changes(cluster: ClusterSpec) -> str:
    """``, autoscaled within 2 to 8 (target 20 requests in flight a replica), 3 events of replicas``."""
    words = ""
    if (scale := cluster.autoscale) is not None:
        by = "requests in flight a replica" if scale.by == "queue" else "of requests in time"
        words += f", autoscaled within {scale.least} to {scale.most} (target {scale.target:g} {by})"
    if cluster.placement is not None:
        words += f", placement {cluster.placement.name}"
    if events := cluster.replica_events:
        words += f", {plural(len(events), 'event')} of replicas"
    count = len(cluster.roll_outs)
    return words + (f", {plural(count, 'roll-out')} of adapters" if count else "")


def _group_words(group: ReplicaGroupSpec, scenario: Scenario) -> str:
    """``3 of 2 x a100-80gb, max_loras 8``."""
    width = group.tensor_parallel_size or group.engine.get("tensor_parallel_size")
    each = f"{width or scenario.engine.tensor_parallel_size} x {group.gpu or scenario.gpu}"
    own = [f"{key} {value}" for key, value in group.engine.items() if key != "tensor_parallel_size"]
    return ", ".join([f"{group.count} of {each}", *own])


def engine_words(engine: EngineConfig) -> str:
    """The settings of an engine that matter, under the names they have in a scenario."""
    parts = [engine.modelled.title]
    fixed = {**engine.modelled.settings, "async_scheduling": engine.modelled.async_scheduling}
    for name, field in EngineConfig.model_fields.items():
        value = getattr(engine, name)
        if name in ("preset", "num_gpu_blocks", "block_size", "tensor_parallel_size") or value is None:
            continue
        if name in _ALWAYS or value != fixed.get(name, field.default):
            parts.append(f"{name} {phrase(value)}")
    blocks = engine.require_blocks()
    parts.append(f"KV cache of {blocks:,} blocks of {engine.block_size} tokens ({blocks * engine.block_size:,})")
    return ", ".join(parts)


def _other_caches(built: Built) -> list[str]:
    """The KV caches of the kinds of replicas beside the first: ``27,657 blocks (a100-80gb, max_loras 8)``."""
    first = built.kinds[0].engine if built.kinds else built.engine
    others = {kind.label: kind.engine for kind in built.kinds[1:]}
    return [
        f"{engine.require_blocks():,} blocks{_block_words(engine, first)} ({label})"
        for label, engine in others.items()
        if (engine.require_blocks(), engine.block_size) != (first.require_blocks(), first.block_size)
    ]


def _block_words(engine: EngineConfig, first: EngineConfig) -> str:
    return "" if engine.block_size == first.block_size else f" of {engine.block_size} tokens"


def noise_words(noise: NoiseOptions | None) -> str:
    """``step times with cv 0.05; stalls of 0.3 s, 0.1 per second``; nothing without noise."""
    if noise is None:
        return ""
    drawn = len(noise.decode) + len(noise.prefill)
    parts = [
        f"step times with cv {noise.cv:g}" if noise.cv else "",
        f"step times scatter like the {drawn:,} residuals of the profile" if drawn else "",
        f"the level of each run with cv {noise.run_cv:g}" if noise.run_cv else "",
        f"stalls of {noise.stall_s:g} s, {noise.stall_rate_hz:g} per second of steps" if noise.stall_s else "",
    ]
    return "; ".join(part for part in parts if part)


def policy_words(spec: str, settings: Mapping[str, Any]) -> str:
    """A policy's name with every parameter of its own, and those all policies take where they are set."""
    shown = {name: value for name, value in settings.items() if _COMMON.get(name, ...) != value}
    head, _, rest = spec.partition(":")
    first = rest.partition(":")[0]
    if first and "=" not in first:
        head = f"{Path(head).name}:{first}"
    own = ", ".join(f"{name}={_default(value)}" for name, value in shown.items())
    return f"{shortened(head, 80)} ({own})" if own else shortened(head, 80)


def phrase(value: Any) -> str:
    """A setting as words: ``lognormal mean 512, cv 1`` for ``{lognormal: {mean: 512, cv: 1.0}}``."""
    if isinstance(value, Mapping):
        parts = []
        for key, item in value.items():
            text = phrase(item)
            nested = isinstance(item, Mapping) and len(item) > 1 and len(value) > 1
            parts.append(str(key) if item is True else f"{key} ({text})" if nested else f"{key} {text}".rstrip())
        return ", ".join(parts)
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return f"[{several([phrase(item) for item in value])}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:,.10g}" if isinstance(value, int | float) else str(value)


def _default(value: Any) -> str:
    """A parameter's value as a policy's spec has it."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def known_error_words(costs: Iterable[CostModel]) -> str:
    """How far off cost models are known to be: each sentence once, with what was not measured of any of them."""
    return errors_together(cost.known_error for cost in costs)


def errors_together(sentences: Iterable[str]) -> str:
    """The same of sentences, such as those of the variants of a sweep."""
    return shortened(together(sentences), 1000)


def cost_words(scenario: Scenario, costs: Iterable[CostModel]) -> str:
    """Where the cost models of a fleet's kinds come from, each once, and the scenario's own constants."""
    told = {"kind", "profile", "source", "noise"}
    given = scenario.cost.model_dump(exclude_none=True, exclude_defaults=True, exclude=told)
    own = "" if scenario.cost.kind == "linear" else phrase(given)
    sources = dict.fromkeys(shortened(cost.source, 200) for cost in costs)
    return "; ".join(sources) + (f"; with {own}" if own else "")


def _slo(scenario: Scenario, built: Built) -> str:
    limits = phrase(scenario.slo.model_dump(exclude_none=True, exclude={"targets"}))
    return "; ".join(filter(None, [limits, *(t.words for t in slo_targets(scenario.slo, built.adapters))])) or "none"


def _adapters(scenario: Scenario, built: Built) -> str:
    spec = scenario.adapters
    if not built.adapters:
        return "none" if spec.known_count == 0 else "as the trace names them"
    ranks = sorted({adapter.rank for adapter in built.adapters})
    parts = [f"{len(built.adapters):,}{' of a registry' if spec.records is not None else ''}"]
    parts.append(f"rank{'s' if len(ranks) > 1 else ''} {several([str(rank) for rank in ranks], 8)}")
    shown = spec.model_dump(
        exclude_none=True, exclude_defaults=True, exclude={"count", "names", "registry", "records", "ranks"}
    )
    return shortened(", ".join([*parts, phrase(shown)]).removesuffix(", "), 300)


def _workload(scenario: Scenario) -> str:
    shown = scenario.workload.model_dump(exclude_none=True, exclude_defaults=True)
    if "trace" in shown:
        shown["trace"] = Path(shown["trace"]).name
    streams = shown.pop("streams", None)
    text = phrase(shown)
    if streams:
        each = [f"({phrase(stream)})" for stream in streams]
        text = "; ".join([text, f"{len(streams)} streams: {several(each, 6)}"])
    tenants = phrase(scenario.tenants.model_dump(exclude_none=True, exclude_defaults=True))
    return shortened(f"{text}; tenants: {tenants}" if tenants else text, 600)
