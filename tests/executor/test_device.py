"""The executor on the device that LORATORY_TEST_DEVICE names (cpu by default, cuda on a GPU) against the CPU."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from bench_machine import Oracle, Zoo, assert_nothing_leaked, prompt_of, run
from roster import POLICIES

from loratory.executor.machine import Machine
from loratory.executor.model import Model
from loratory.serving.config import EngineConfig
from loratory.testing import ToyCost, workload

DEVICE = os.environ.get("LORATORY_TEST_DEVICE", "cpu")
ROWS: list[dict[str, Any]] = [
    {"at": 0.05 * i, "adapter": (None, 1, 2, 3, 4, 5)[i % 6], "prompt": 3 + 5 * i % 41, "out": 3 + i % 9}
    for i in range(24)
]
CONFIG = EngineConfig(
    max_loras=3, max_cpu_loras=4, max_lora_rank=8, max_num_seqs=8, max_num_batched_tokens=48, num_gpu_blocks=48,
    block_size=16, max_model_len=128,
)  # fmt: skip


def _machine(zoo: Zoo, dtype: str, config: EngineConfig = CONFIG) -> Machine:
    return Machine(Model.load(zoo.folder / "model", dtype, DEVICE), config, zoo.files, graphs=True)


@pytest.mark.parametrize("loading", ["sync", "async"])
def test_float32_tokens_are_those_of_transformers_and_peft(zoo: Zoo, oracle: Oracle, loading: str) -> None:
    """Chunked prefill, graphs, eviction and reload; where the two best logits are 1e-4 apart, either may win."""
    rows = [{**row, "cap": row["out"]} for row in ROWS]
    config = CONFIG.model_copy(update={"adapter_loading": loading})
    machine = _machine(zoo, "float32", config)
    ran = run(machine, zoo.adapters, workload(rows, zoo.adapters), POLICIES["fifo"](), ToyCost())
    for index, row in enumerate(rows):
        name = None if row["adapter"] is None else f"a{row['adapter']}"
        prompt, tokens = prompt_of(index, row["prompt"], zoo.config.shape.vocab), ran.tokens[str(index)]
        assert len(tokens) == row["out"]
        for place, token in enumerate(tokens):
            logits = oracle.logits([*prompt, *tokens[:place]], name)[-1]
            assert float(logits.max() - logits[token]) <= 1e-4 * float(logits.abs().max()), (index, place)
    assert_nothing_leaked(ran)


def test_bfloat16_tokens_are_among_the_best(zoo: Zoo, oracle: Oracle) -> None:
    """Every token's float32 logit is within 5e-2 of the best: greedy choices of a 16-bit model."""
    rows = [{**row, "cap": row["out"]} for row in ROWS]
    ran = run(_machine(zoo, "bfloat16"), zoo.adapters, workload(rows, zoo.adapters), POLICIES["fifo"](), ToyCost())
    for index, row in enumerate(rows):
        name = None if row["adapter"] is None else f"a{row['adapter']}"
        prompt, tokens = prompt_of(index, row["prompt"], zoo.config.shape.vocab), ran.tokens[str(index)]
        logits = oracle.logits([*prompt, *tokens], name)[len(prompt) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(tokens).unsqueeze(1)).squeeze(1)
        short = (logits.max(-1).values - chosen) / logits.abs().max(-1).values
        assert float(short.max()) <= 5e-2, index


def test_preemption_changes_no_token(llama: Zoo) -> None:
    rows = [{"at": 0.0, "adapter": (None, 1, 2)[i % 3], "prompt": 20 + i, "out": 40, "cap": 40} for i in range(6)]
    work = workload(rows, llama.adapters)
    tight = _machine(llama, "float32", replace_blocks(14))
    roomy = _machine(llama, "float32", replace_blocks(200))
    one = run(tight, llama.adapters, work, POLICIES["fifo"](), ToyCost())
    two = run(roomy, llama.adapters, work, POLICIES["fifo"](), ToyCost())
    assert len(one.executor.recording().steps) > len(two.executor.recording().steps)
    assert one.tokens == two.tokens


def replace_blocks(blocks: int) -> EngineConfig:
    """The configuration with another pool."""
    return CONFIG.model_copy(update={"num_gpu_blocks": blocks})
