"""model_notes and length_notes: what to know about a scenario before it runs."""

from __future__ import annotations

from loratory.scenarios.cost_spec import RooflineCostSpec
from loratory.scenarios.schema import Scenario
from loratory.serving.config import EngineConfig
from loratory.serving.workload import Workload
from loratory.sim.catalogue import ModelSpec


def model_notes(scenario: Scenario, spec: ModelSpec) -> list[str]:
    """The dtype that the models of cost and memory assume, where the checkpoint or vLLM suggest another."""
    roofline = isinstance(scenario.cost, RooflineCostSpec)
    key = "cost.dtype" if roofline else "memory.dtype"
    given = scenario.cost.dtype if isinstance(scenario.cost, RooflineCostSpec) else scenario.memory.dtype
    if given is None and spec.saved_dtype == "fp32":
        remedy = "cost: {kind: roofline, dtype: fp32}" if roofline else "memory: {dtype: fp32}"
        return [
            f"{spec.name} is saved in float32; the cost and memory models take it in bfloat16, as vLLM does; "
            f"{remedy} keeps 32 bit"
        ]
    if given == "fp32" and scenario.adapters.known_count != 0 and scenario.engine.memory == "slots":
        return [f"{key} is fp32, and vLLM's LoRA kernels take 16-bit models only: it would not serve these adapters"]
    return []


def length_notes(engine: EngineConfig, workload: Workload) -> list[str]:
    """The number of prompts that leave no room for an output token, and will be rejected."""
    pool = engine.require_blocks() * engine.block_size
    longest = pool + 1 if engine.max_model_len is None else min(engine.max_model_len, pool + 1)
    count = int((workload.prompt_tokens >= longest).sum())
    if not count:
        return []
    what = f"max_model_len {longest}" if longest == engine.max_model_len else f"the KV cache of {pool} tokens"
    return [f"{count} of {len(workload)} prompts and an output do not fit {what}: these requests will be rejected"]
