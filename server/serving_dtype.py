"""serving_dtype: the dtype in which a server computes where it may choose."""

from __future__ import annotations

import torch

from loratory.executor.checkpoint import resolve_dtype
from loratory.executor.model_config import ModelConfig


def serving_dtype(dtype: str, config: ModelConfig, device: str) -> torch.dtype:
    """``auto`` is the checkpoint's own dtype, but float32 on a CPU without instructions for that one, which would
    emulate it several times more slowly and round more. Raises `InputError` for another name."""
    chosen = resolve_dtype(dtype, config)
    if dtype == "auto" and device == "cpu" and chosen != torch.float32 and not _cpu_computes(chosen):
        return torch.float32
    return chosen


def _cpu_computes(dtype: torch.dtype) -> bool:
    ops = torch.ops.mkldnn
    return bool(ops._is_mkldnn_bf16_supported() if dtype == torch.bfloat16 else ops._is_mkldnn_fp16_supported())
