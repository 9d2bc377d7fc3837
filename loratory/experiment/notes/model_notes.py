"""model_notes, clipping_notes and length_notes: what to know about a scenario before it runs."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

from loratory.reports.number_text import count
from loratory.scenarios.cost_spec import OF_A_MODEL, cost_dtype
from loratory.scenarios.lengths import Lengths, Lognormal, Seconds
from loratory.scenarios.schema import Scenario
from loratory.serving.config import EngineConfig
from loratory.serving.workload import Workload
from loratory.sim.catalogue import ModelSpec


def model_notes(scenario: Scenario, spec: ModelSpec) -> list[str]:
    """The dtype that the models of cost and memory assume, where the checkpoint or vLLM suggest another."""
    of_a_model = isinstance(scenario.cost, OF_A_MODEL)
    key = "cost.dtype" if of_a_model else "memory.dtype"
    given = cost_dtype(scenario.cost) if of_a_model else scenario.memory.dtype
    if given is None and spec.saved_dtype == "fp32":
        remedy = "cost: {kind: roofline, dtype: fp32}" if of_a_model else "memory: {dtype: fp32}"
        return [
            f"{spec.name} is saved in float32; the cost and memory models take it in bfloat16, as vLLM does; "
            f"{remedy} keeps 32 bit"
        ]
    if given == "fp32" and scenario.adapters.known_count != 0 and scenario.engine.memory == "slots":
        return [f"{key} is fp32, and vLLM's LoRA kernels take 16-bit models only: it would not serve these adapters"]
    return []


_MOVED = 0.1
"""A mean is reported that limits move by more than this share."""


def clipping_notes(scenario: Scenario) -> list[str]:
    """The lognormal distributions whose ``min`` or ``max`` leaves another mean than the one that is given."""
    return [
        f"{key}.lognormal has mean {count(given.mean)}, but {count(mean)} once its draws are kept within min and max"
        for key, given in _lognormals(scenario.workload, "workload")
        if abs((mean := given.clipped_mean()) / given.mean - 1.0) > _MOVED
    ]


def _lognormals(section: object, key: str) -> Iterator[tuple[str, Lognormal]]:
    """Every lognormal below a section of the scenario, with the key that holds it."""
    if isinstance(section, (Lengths, Seconds)) and section.lognormal is not None:
        yield key, section.lognormal
    elif isinstance(section, BaseModel):
        for name in type(section).model_fields:
            yield from _lognormals(getattr(section, name), f"{key}.{name}")
    elif isinstance(section, (list, tuple)):
        for place, item in enumerate(section):
            yield from _lognormals(item, f"{key}.{place}")


def length_notes(engine: EngineConfig, workload: Workload) -> list[str]:
    """The number of prompts that leave no room for an output token, and will be rejected."""
    pool = engine.require_blocks() * engine.block_size
    longest = pool + 1 if engine.max_model_len is None else min(engine.max_model_len, pool + 1)
    number = int((workload.prompt_tokens >= longest).sum())
    if not number:
        return []
    what = f"max_model_len {longest}" if longest == engine.max_model_len else f"the KV cache of {pool} tokens"
    return [f"{number} of {len(workload)} prompts and an output do not fit {what}: these requests will be rejected"]
