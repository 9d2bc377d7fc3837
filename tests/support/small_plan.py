"""small_plan: a scenario that plans in a second: a linear cost model, short requests, a handful of adapters."""

from __future__ import annotations

from typing import Any

import yaml

from loratory.plan.space import Base
from loratory.scenarios.load import load_text

SMALL: dict[str, Any] = {
    "name": "small",
    "model": "llama-3.1-8b",
    "gpu": "h100-80gb",
    "engine": {
        "max_loras": 2,
        "max_cpu_loras": 16,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 512,
        "num_gpu_blocks": 400,
        "max_model_len": 2048,
    },
    "cost": {
        "kind": "linear",
        "decode_base_s": 0.02,
        "decode_per_seq_s": 0.001,
        "decode_per_kv_token_s": 0.0,
        "prefill_base_s": 0.01,
        "prefill_per_token_s": 0.0001,
        "per_adapter_s": 0.001,
        "load_base_s": 0.05,
    },
    "adapters": {"count": 8, "popularity": {"zipf": 1.0}, "initial_tier": "host"},
    "workload": {
        "arrivals": {"poisson": 12.0},
        "input_tokens": {"uniform": [20, 200]},
        "output_tokens": {"uniform": [4, 24]},
        "requests": 150,
    },
    "policies": ["fifo"],
    "slo": {"ttft_p95_s": 0.6},
    "plan": {"replicas": {"most": 5}, "details": False},
}


def text(**changes: Any) -> str:
    """The scenario as YAML, with changed sections: a mapping is merged into the section, or with ``_replace`` takes its
    place, as anything else does."""
    values = {**SMALL}
    for key, change in changes.items():
        if isinstance(change, dict):
            kept = {} if "_replace" in change else values.get(key, {})
            change = {**kept, **{name: value for name, value in change.items() if name != "_replace"}}
        values[key] = change
    return yaml.safe_dump(values, sort_keys=False)


def small(**changes: Any) -> Base:
    """The scenario as the base of a plan."""
    found = text(**changes)
    return Base(load_text(found, "small.yaml"), found, "small.yaml")
