"""vllm_notes: settings that the engine here runs with and vLLM would refuse to start with."""

from __future__ import annotations

from loratory.serving.config import EngineConfig

LORA_RANKS: tuple[int, ...] = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's ``--max-lora-rank`` takes (vllm/config/lora.py, ``MaxLoRARanks``)."""

BLOCK_SIZES: tuple[int, ...] = (1, 8, 16, 32, 64, 128, 256)
"""What vLLM's ``--block-size`` takes (vllm/config/cache.py, ``BlockSize``, before it was left to the attention)."""


def vllm_notes(engine: EngineConfig, adapters: bool) -> list[str]:
    """One sentence for each setting; none where ``memory`` or ``batching`` make it another engine than vLLM.

    ``adapters``: whether there are any. Settings that no engine can run are refused by `EngineConfig` instead.
    """
    if engine.memory != "slots" or engine.batching != "chunked":
        return []
    notes = []
    if adapters and engine.max_lora_rank not in LORA_RANKS:
        larger = next((rank for rank in LORA_RANKS if rank > engine.max_lora_rank), None)
        remedy = f"set it to {larger}, whose slots are larger" if larger else f"its largest is {LORA_RANKS[-1]}"
        known = ", ".join(map(str, LORA_RANKS))
        notes.append(f"engine.max_lora_rank is {engine.max_lora_rank}, and vLLM takes {known} only: {remedy}")
    if engine.block_size not in BLOCK_SIZES:
        known = ", ".join(map(str, BLOCK_SIZES))
        notes.append(f"engine.block_size is {engine.block_size}, and vLLM takes {known} only: set one of them")
    max_len = engine.max_model_len
    if not engine.enable_chunked_prefill and max_len is not None and engine.max_num_batched_tokens < max_len:
        notes.append(
            f"engine.max_num_batched_tokens is {engine.max_num_batched_tokens}, below max_model_len {max_len}, "
            "and vLLM does not start like that without chunked prefill: raise it, or lower engine.max_model_len"
        )
    return notes
