"""flags: commands to paste that start the planned engine in vLLM, SGLang and Loratory, and what they leave out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from loratory.experiment.policy_spec import policy_factory
from loratory.experiment.resolve import Built
from loratory.plan.candidate import placement_words
from loratory.plan.command_text import hub_name, model_note
from loratory.plan.hpa import autoscaler_notes, autoscaler_yaml
from loratory.plan.loratory_flags import checkpoint, loratory_command, loratory_command_notes
from loratory.plan.sglang_flags import SGLANG_VERSION, sglang_command, sglang_command_notes
from loratory.plan.vllm_flags import VLLM_VERSION, vllm_command, vllm_command_notes
from loratory.scenarios.cluster_spec import ClusterSpec
from loratory.scenarios.schema import Scenario
from loratory.serving.engine_presets import DEFAULT_PRESET

_ROUTERS: Mapping[str, str] = {
    "round_robin": "any load balancer that takes the replicas in turn",
    "least_loaded": "a load balancer that counts connections, such as nginx with least_conn",
    "lora_affinity": (
        "the LoRA affinity of llm-d and the Gateway API Inference Extension comes nearest; the routers of SGLang and "
        "vLLM (cache_aware) follow prompts that share a prefix, not adapters"
    ),
    "rendezvous": (
        "a load balancer that hashes the adapter's name, such as nginx with hash and consistent, or vLLM's production "
        "stack with --routing-logic session and the adapter's name as the key"
    ),
}


def flags(scenario: Scenario, built: Built) -> dict[str, Any]:
    """``vllm``, ``sglang`` and ``loratory``: one command each, for one replica; ``notes``: sentences on them. With an
    autoscaler by queue also ``kubernetes``, its manifest.

    ``scenario`` is a candidate of a plan, with one policy; ``built`` is what `resolve.build` makes of it. The commands
    are quoted for a POSIX shell. The notes name what the servers do otherwise than planned.
    """
    if built.mixed:
        return _of_kinds(scenario, built)
    factory = policy_factory(scenario.policies[0])
    # A spec such as my_file.py:Fifo is no policy of ours, whatever its class is called.
    name = factory.spec.partition(":")[0]
    settings = factory.settings
    return {
        "vllm": vllm_command(scenario, built, settings if name == "priority" else None),
        "sglang": sglang_command(scenario, built, name, settings),
        "loratory": loratory_command(scenario, built),
        **_autoscaler(scenario),
        "notes": [
            *_fleet_notes(scenario),
            *_policy_notes(factory.spec, name, settings),
            *_engine_notes(scenario, built, settings),
            *vllm_command_notes(built),
            *sglang_command_notes(scenario, built),
            *_start_notes(scenario, built),
        ],
    }


def _of_kinds(scenario: Scenario, built: Built) -> dict[str, Any]:
    """The commands of every kind of replica, each under a line that says which."""
    found: dict[str, list[str]] = {"vllm": [], "sglang": [], "loratory": []}
    notes: dict[str, None] = dict.fromkeys(_fleet_notes(scenario))
    for place, (kind, group) in enumerate(zip(built.kinds, scenario.cluster.groups, strict=True)):
        engine = group.engine_of(scenario.engine, place)
        alone = scenario.model_copy(update={"gpu": kind.gpu, "engine": engine, "cluster": ClusterSpec()})
        own = replace(
            built,
            engine=kind.engine,
            cost=kind.cost,
            kv_bytes_per_token=kind.kv_bytes_per_token,
            memory=kind.memory,
            kinds=(kind,),
        )
        each = flags(alone, own)
        for server, lines in found.items():
            lines.append(f"# {kind.count} x {kind.label}\n{each[server]}")
        notes.update(dict.fromkeys(each["notes"]))
    commands = {server: "\n".join(lines) for server, lines in found.items()}
    return {**commands, **_autoscaler(scenario), "notes": list(notes)}


def _autoscaler(scenario: Scenario) -> dict[str, str]:
    """The manifest of an autoscaler, where the fleet has one that Kubernetes can be."""
    scale = scenario.cluster.autoscale
    made = None if scale is None else autoscaler_yaml(scale)
    return {} if made is None else {"kubernetes": made}


def _fleet_notes(scenario: Scenario) -> list[str]:
    cluster, width = scenario.cluster, scenario.engine.tensor_parallel_size
    notes = []
    gpus = "GPU" if width == 1 else f"{width} GPUs"
    if cluster.autoscale is not None:
        scale = cluster.autoscale
        notes.append(
            f"The plan has {scale.least} to {scale.most} replicas: a command starts one, with its own {gpus}. A new "
            f"one is taken to need {scale.startup_s:g} s."
        )
        notes += autoscaler_notes(scale)
    elif cluster.count > 1:
        notes.append(
            f"The plan has {cluster.count} replicas: run a command {cluster.count} times, each with its own "
            f"{gpus} and port."
        )
    if cluster.most_replicas > 1:
        advice = _ROUTERS.get(cluster.router, "put it in front of the replicas")
        notes.append(f"The router is {cluster.router}, which none of the commands starts: {advice}.")
        if cluster.placement is not None and cluster.placement.name != "replicate_all":
            words = placement_words(cluster.placement.model_dump())
            notes.append(
                f"The placement is {words}: the router sends an adapter's requests only to the replicas that it chose, "
                "which none of the commands does."
            )
    return notes


def _policy_notes(spec: str, name: str, settings: Mapping[str, Any]) -> list[str]:
    notes = []
    if name == "fifo":
        if settings["strict"]:
            notes.append(
                "vLLM and SGLang pass over a request whose adapter finds no slot; fifo:strict=true waits for it."
            )
    elif name == "priority":
        if settings["aging_s"]:
            notes.append(
                "vLLM and SGLang have priorities without ageing (aging_s), so a low priority can wait for ever there."
            )
    elif name == "drain":
        notes.append("vLLM has no counterpart of drain and serves first come, first served; SGLang's command drains.")
    else:
        notes.append(
            f"The policy {spec} exists in neither vLLM nor SGLang, which serve first come, first served, or by "
            "priority: the plan's figures hold with this policy, and may not without it."
        )
    if settings.get("prefetch"):
        notes.append("vLLM and SGLang do not prefetch the adapters of waiting requests.")
    if settings.get("reserve"):
        notes.append("vLLM and SGLang do not reserve KV blocks for a request's whole output (reserve=true).")
    return notes


def _engine_notes(scenario: Scenario, built: Built, settings: Mapping[str, Any]) -> list[str]:
    engine, notes = built.engine, []
    if engine.preset != DEFAULT_PRESET:
        notes.append(
            f"The plan models {engine.modelled.title}: the commands bring vLLM {VLLM_VERSION} and SGLang "
            f"{SGLANG_VERSION} as near to it as their options allow."
        )
    evict = settings.get("evict", "lru")
    eviction = engine.eviction if evict == "lru" else evict
    if built.adapters and eviction != "lru":
        other = "SGLang has it as well" if eviction == engine.eviction == "fifo" else "so does SGLang by default"
        notes.append(f"The plan evicts adapters by {eviction}, and vLLM evicts the least recently used; {other}.")
    if engine.adapter_loading == "async":
        notes.append("vLLM has no adapter_loading async: a step of its waits for the adapter that it loads.")
    if engine.memory == "unified":
        notes.append(
            "vLLM, SGLang and loratory serve have no unified memory: they reserve adapter slots, which leaves less for "
            "the KV cache."
        )
    if engine.batching == "separate":
        notes.append("vLLM does not batch prefill apart from decode (batching separate); SGLang's command does.")
    if scenario.engine.num_gpu_blocks is not None:
        notes.append(
            f"The plan sets engine.num_gpu_blocks to {scenario.engine.num_gpu_blocks:,} instead of computing it: the "
            "commands override what vLLM and SGLang would measure."
        )
    if scenario.adapters.pinned:
        notes.append(
            "The plan pins adapters: SGLang does so with pinned in the JSON form of --lora-paths, vLLM has no option "
            "for it."
        )
    if not scenario.workload.prefix_cache:
        notes.append(
            "The plan counts no prefix caching, which vLLM and SGLang have on by default: prompts that share a prefix "
            "cost less there."
        )
    return notes


def _start_notes(scenario: Scenario, built: Built) -> list[str]:
    notes = [model_note(scenario, built.model)]
    if hub_name(built.model) == (name := checkpoint(scenario, built)):
        notes.append(f"loratory serve reads a folder: `hf download {name} --local-dir {name}` makes it.")
    notes += loratory_command_notes(scenario, built)
    if built.adapters:
        notes.append(
            "Adapters come with --lora-modules NAME=PATH in vLLM and Loratory, with --lora-paths NAME=PATH in SGLang."
        )
    return notes
