"""Engine presets: which engine a configuration models, as the settings that its scheduler fixes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

PresetName = Literal["vllm-0.32", "vllm-0.8.5", "lightllm"]

DEFAULT_PRESET: PresetName = "vllm-0.32"


@dataclass(frozen=True, slots=True)
class EnginePreset:
    """An engine as it schedules by default. ``settings``: keys of `EngineConfig` that it fixes where none is given.

    ``async_scheduling``: whether the engine plans ahead by default on a GPU. ``left_out``: rules of it that are not
    modelled.
    """

    title: str
    settings: Mapping[str, object]
    async_scheduling: bool
    source: str
    left_out: str


def _settings(
    *, full_isl: bool, null_block: bool, threshold_alone: bool, batching: str = "chunked"
) -> Mapping[str, object]:
    return MappingProxyType(
        {
            "scheduler_reserve_full_isl": full_isl,
            "watermark": 0.0,
            "null_block": null_block,
            "long_prefill_threshold_alone": threshold_alone,
            "batching": batching,
        }
    )


ENGINE_PRESETS: Mapping[str, EnginePreset] = MappingProxyType(
    {
        "vllm-0.32": EnginePreset(
            "vLLM 0.32",
            _settings(full_isl=True, null_block=True, threshold_alone=False),
            True,
            "vLLM 0.32, vllm/v1/core/sched/scheduler.py and async_scheduler.py (loratory reproduce vllm-scheduler)",
            "prefix caching by blocks, speculative decoding, encoder inputs, KV connectors, prefill_schedule_interval",
        ),
        "vllm-0.8.5": EnginePreset(
            "vLLM 0.8.5 (V1)",
            _settings(full_isl=False, null_block=True, threshold_alone=True),
            False,
            "vLLM 0.8.5, vllm/v1/core/sched/scheduler.py",
            "prefix caching by blocks, speculative decoding, encoder inputs; it has no priorities and no watermark",
        ),
        "lightllm": EnginePreset(
            "LightLLM, the engine of S-LoRA and VTC",
            _settings(full_isl=False, null_block=False, threshold_alone=True, batching="separate"),
            False,
            "S-LoRA, slora/server/router/manager.py",
            "its admission rule is the policies' (slora, or reserve=true): what fits until it ends",
        ),
    }
)
