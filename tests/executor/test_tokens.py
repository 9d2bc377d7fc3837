"""What the executor generates: request by request the tokens of transformers + PEFT, whatever shares the batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from bench_machine import Oracle, Zoo, assert_nothing_leaked, prompt_of, run
from hypothesis import given
from hypothesis import strategies as st
from lab import examples
from roster import POLICIES

from loratory.executor.batch import Batch, Chunk
from loratory.executor.block_tables import BlockTables
from loratory.executor.lora import CPULoRA, LoRASlots
from loratory.executor.lora.shapes import LoRAShapes
from loratory.serving.config import EngineConfig
from loratory.testing import ToyCost, workload

NAMES = (None, "a1", "a2", "a3", "a4", "a5")

ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "at": st.floats(0, 1.5, allow_nan=False).map(lambda at: round(at, 2)),
            "adapter": st.sampled_from((None, 1, 2, 3, 4, 5)),
            "prompt": st.integers(1, 40),
            "out": st.integers(1, 9),
        }
    ),
    min_size=1,
    max_size=14,
)
CONFIGS = st.builds(
    lambda loras, seqs, budget, blocks, loading, batching: EngineConfig(
        max_loras=loras,
        max_cpu_loras=loras + 1,
        max_lora_rank=8,
        max_num_seqs=seqs,
        max_num_batched_tokens=max(budget, seqs),
        num_gpu_blocks=blocks,
        block_size=4,
        adapter_loading=loading,
        batching=batching,
    ),
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(4, 64),
    st.integers(13, 40),
    st.sampled_from(["sync", "async"]),
    st.sampled_from(["chunked", "chunked", "separate"]),
)


def _rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(({**row, "cap": row["out"]} for row in rows), key=lambda row: row["at"])


@given(rows=ROWS, config=CONFIGS, policy=st.sampled_from(["fifo", "affinity", "fifo-prefetch"]))
@examples(12)
def test_tokens_are_those_of_transformers_and_peft(
    zoo: Zoo, oracle: Oracle, rows: list[dict[str, Any]], config: EngineConfig, policy: str
) -> None:
    """Mixed batches, chunked prefill, preemption, eviction and reload, slots used again: no token changes."""
    rows = _rows(rows)
    work = workload(rows, zoo.adapters)
    ran = run(zoo.machine(config), zoo.adapters, work, POLICIES[policy](), ToyCost())
    for index, row in enumerate(rows):
        name = NAMES[row["adapter"] or 0]
        status, why = ran.ends[str(index)]
        assert status == "completed", why
        expected = oracle.tokens(prompt_of(index, row["prompt"], zoo.config.shape.vocab), name, row["out"])
        assert ran.tokens[str(index)] == expected, (index, name)
    assert_nothing_leaked(ran)


@given(rows=ROWS, config=CONFIGS)
@examples(8)
def test_padded_decode_batches_give_the_same_tokens(
    llama: Zoo, rows: list[dict[str, Any]], config: EngineConfig
) -> None:
    """What CUDA graphs replay: static buffers, batches padded with rows that nobody reads."""
    work = workload(_rows(rows), llama.adapters)
    plain = run(llama.machine(config, graphs=False), llama.adapters, work, POLICIES["fifo"](), ToyCost())
    padded = run(llama.machine(config, graphs=True), llama.adapters, work, POLICIES["fifo"](), ToyCost())
    assert padded.tokens == plain.tokens


def test_a_preempted_request_goes_on_where_it_was(llama: Zoo) -> None:
    """A pool too small for all that run: the ledger preempts, and outputs are those of a run with room for all."""
    rows = [{"at": 0.0, "adapter": (None, 1, 2)[i % 3], "prompt": 10 + i, "out": 24, "cap": 24} for i in range(6)]
    work = workload(rows, llama.adapters)
    sizes = {"max_loras": 2, "max_lora_rank": 8, "max_num_seqs": 6, "max_num_batched_tokens": 64, "block_size": 4}
    tight = run(
        llama.machine(EngineConfig(**sizes, num_gpu_blocks=20)), llama.adapters, work, POLICIES["fifo"](), ToyCost()
    )
    roomy = run(
        llama.machine(EngineConfig(**sizes, num_gpu_blocks=120)), llama.adapters, work, POLICIES["fifo"](), ToyCost()
    )
    assert len(tight.executor.recording().steps) > len(roomy.executor.recording().steps)
    assert tight.tokens == roomy.tokens and all(len(tokens) == 24 for tokens in tight.tokens.values())
    assert_nothing_leaked(tight)


def test_a_base_request_is_untouched_by_adapters_beside_it(llama: Zoo) -> None:
    """With every slot full of adapters, base rows give what they give alone, to the last bit of their logits."""
    config = EngineConfig(
        max_loras=3, max_lora_rank=8, max_num_seqs=8, max_num_batched_tokens=64, num_gpu_blocks=100, block_size=4
    )
    rows = [{"at": 0.0, "adapter": (1, 2, 3, None)[i % 4], "prompt": 9, "out": 12, "cap": 12} for i in range(8)]
    mixed = run(llama.machine(config), llama.adapters, workload(rows, llama.adapters), POLICIES["fifo"](), ToyCost())
    bare = [{**row, "adapter": None} for row in rows]
    alone = run(llama.machine(config), llama.adapters, workload(bare, llama.adapters), POLICIES["fifo"](), ToyCost())
    for index in (3, 7):
        assert mixed.tokens[str(index)] == alone.tokens[str(index)]
    assert all(mixed.tokens[str(i)] != alone.tokens[str(i)] for i in (0, 1, 2, 4, 5, 6)), "the adapters do something"


def test_float32_logits_are_those_of_peft(zoo: Zoo, oracle: Oracle) -> None:
    """1e-4 of the largest logit, for base and every adapter, over a prompt prefilled in two chunks."""
    for name, found, expected in _logits(zoo, oracle, "float32"):
        error = float((found - expected).abs().max() / expected.abs().max())
        assert error < 1e-4, (name, error)


def test_bfloat16_logits_are_near_the_float32_ones(zoo: Zoo, oracle: Oracle) -> None:
    """Relative error (norms) of 2e-2, or where bfloat16 costs PEFT more than that here, no more than it costs PEFT.

    For base and every adapter, over a prompt prefilled in two chunks. A third is allowed for chance.
    """
    peft = Oracle(zoo, torch.bfloat16)
    for name, found, expected in _logits(zoo, oracle, "bfloat16"):
        same = peft.logits(prompt_of(5, 24, zoo.config.shape.vocab), name)[10:]
        error, theirs = (float((logits - expected).norm() / expected.norm()) for logits in (found, same))
        assert error < max(2e-2, 1.33 * theirs), (name, error, theirs)


def _logits(zoo: Zoo, oracle: Oracle, dtype: str) -> Iterator[tuple[str | None, torch.Tensor, torch.Tensor]]:
    """For base and every adapter: its name, our logits of the second chunk of a prompt, and the oracle's."""
    machine = zoo.machine(EngineConfig(max_loras=5, max_lora_rank=8, num_gpu_blocks=32, block_size=4), dtype)
    slots = LoRASlots(LoRAShapes(machine.model.shape), 5, 8, machine.model.dtype)
    for slot, name in enumerate(zoo.files):
        slots.write(slot, machine.read(name))
    lora, kv, tables = CPULoRA(slots), machine.model.new_cache(32, 4), BlockTables(32, 4)
    prompt = prompt_of(5, 24, zoo.config.shape.vocab)
    for slot, name in enumerate((None, *zoo.files), -1):
        row = np.array([tables.grow("it", len(prompt))])
        for start, end in ((0, 10), (10, 24)):
            count = end - start
            batch = Batch(
                token_ids=torch.tensor(prompt[start:end]),
                positions=torch.arange(start, end),
                slots=torch.full((count,), slot),
                decodes=0,
                chunks=(Chunk(0, count, start),),
                block_tables=tables.select(row),
                kv_lengths=(end,),
                sample_rows=torch.arange(count),
            )
            found = machine.model.forward(batch, kv, lora)
        yield name, found, oracle.logits(prompt, name)[10:]
        tables.free("it")
