"""The memory model against vLLM's own start-up logs, its laws, and what it says when memory is short."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratory.errors import InputError
from loratory.serving.config import EngineConfig
from loratory.sim.catalogue import gpu, model
from loratory.sim.cost import MemoryOptions, MemoryPlan, adapter_tokens, kv_blocks, oversized
from loratory.sim.cost.allocator import CachingAllocator

MIB = 1 << 20
PUBLISHED = Path(__file__).resolve().parents[4] / "shared" / "published" / "agullo_h100_vllm085_kv_tokens.csv"
CELLS = [
    (8, 8, 305_104),
    (8, 128, 253_568),
    (8, 384, 154_240),
    (16, 64, 256_640),
    (16, 224, 138_272),
    (16, 256, None),
    (32, 32, 258_176),
    (32, 96, 168_064),
    (32, 128, None),
]
"""agullo_h100_vllm085_kv_tokens.csv: max_lora_rank, slots, vLLM 0.8.5's "GPU KV cache size"; None failed to start."""


def engine(**settings: object) -> EngineConfig:
    return EngineConfig.model_validate(settings)


def agullo(rank: int, slots: int) -> MemoryPlan:
    settings = engine(max_loras=slots, max_lora_rank=rank, max_num_seqs=2048)
    return kv_blocks(model("llama-3.1-8b"), gpu("h100-64gb"), settings)


@pytest.mark.parametrize(("rank", "slots", "tokens"), CELLS)
def test_kv_tokens_of_real_vllm(rank: int, slots: int, tokens: int | None) -> None:
    if tokens is None:
        with pytest.raises(InputError, match=r"a request of max_model_len 131072 needs 16\.00:"):
            agullo(rank, slots)
    else:
        assert agullo(rank, slots).kv_tokens == pytest.approx(tokens, rel=0.002)


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="the published cells are not beside this checkout")
def test_every_published_cell() -> None:
    with PUBLISHED.open() as file:
        for row in csv.DictReader(file):
            try:
                tokens = str(agullo(int(row["max_lora_rank"]), int(row["slots"])).kv_tokens)
            except InputError:
                tokens = "OOM"
            if row["kv_tokens"] == "OOM" or tokens == "OOM":
                assert tokens == row["kv_tokens"], row
            else:
                assert int(tokens) == pytest.approx(int(row["kv_tokens"]), rel=0.002), row


def test_model_loading_of_real_vllm() -> None:
    """The log of Agullo's cell rank 16, 256 slots: "Model loading took 38.5145 GiB", KV memory 14.01 GiB."""
    with pytest.raises(InputError) as error:
        agullo(16, 256)
    weights, slots = re.findall(r"(?:weights|256 slots of rank 16) \(([0-9.]+)", str(error.value))
    assert float(weights) + float(slots) == pytest.approx(38.5145, rel=0.005)
    left = re.search(r"leave ([0-9.]+) of", str(error.value))
    assert left is not None and float(left.group(1)) == pytest.approx(14.01, abs=0.03)


def test_items_sum_to_the_gpu() -> None:
    plan = agullo(16, 64)
    assert sum(plan.items().values()) == plan.total_bytes
    assert plan.num_gpu_blocks == plan.kv_bytes // (16 * 131_072)


@given(
    slots=st.integers(1, 64),
    rank=st.sampled_from([8, 16, 32]),
    seqs=st.integers(1, 1024),
    more=st.sampled_from(["max_loras", "max_lora_rank", "max_num_seqs", "gpu_memory_utilization"]),
)
def test_more_of_a_setting_never_gives_more_kv(slots: int, rank: int, seqs: int, more: str) -> None:
    spec, card = model("mistral-7b"), gpu("a100-80gb")
    base = {"max_loras": slots, "max_lora_rank": rank, "max_num_seqs": seqs, "gpu_memory_utilization": 0.9}
    changed = base | {more: base[more] / 2 if more == "gpu_memory_utilization" else base[more] * 2}
    settings = [engine(max_num_batched_tokens=2048, **values) for values in (base, changed)]
    before, after = (kv_blocks(spec, card, each).kv_tokens for each in settings)
    assert after <= before
    assert kv_blocks(spec, card, settings[0], ()).kv_tokens > before  # an engine without LoRA


def test_unified_memory_has_no_slots() -> None:
    spec, card = model("llama-2-7b"), gpu("a10g")
    plain = kv_blocks(spec, card, engine(max_model_len=2048), ())
    unified = kv_blocks(spec, card, engine(max_model_len=2048, memory="unified", max_loras=100))
    assert unified.kv_tokens == plain.kv_tokens
    assert unified.lora_bytes == 0


@pytest.mark.parametrize("rank", [8, 16, 32, 64])
def test_an_adapter_takes_four_cells_a_rank(rank: int) -> None:
    """S-LoRA (MLSys 2024): q, k, v, o adapters of Llama-7B and 13B take 4 * rank cells of the unified pool."""
    for name in ("llama-2-7b", "llama-2-13b"):
        spec = model(name)
        size = spec.adapter_bytes(rank, ["q_proj", "k_proj", "v_proj", "o_proj"])
        assert adapter_tokens(size, spec.kv_bytes_per_token()) == 4 * rank


def test_tensor_parallelism_makes_room() -> None:
    spec, card = model("llama-3.1-70b"), gpu("h100-80gb")
    four, eight = (kv_blocks(spec, card, engine(tensor_parallel_size=tp, max_loras=8)) for tp in (4, 8))
    assert eight.weights_bytes < 0.52 * four.weights_bytes
    assert eight.kv_tokens > 2 * four.kv_tokens


def test_families_without_embedding_slots_need_less() -> None:
    settings = engine(max_loras=32, max_model_len=8192)
    spec, card = model("qwen-2.5-7b"), gpu("a100-80gb")
    default = kv_blocks(spec, card, settings)
    forced = kv_blocks(spec, card, settings, options=MemoryOptions(embedding_slots=True))
    assert default.lora_bytes < forced.lora_bytes
    assert default.lora_bytes >= 32 * spec.slot_bytes(16)


def test_a_targeted_output_head_has_its_slots_in_every_family() -> None:
    """Llama's are there in any case, as in vLLM 0.8.5; Qwen's come with the target."""
    settings = engine(max_loras=32, max_model_len=8192)
    for name, more in (("llama-3.1-8b", 0), ("qwen-2.5-7b", 1)):
        spec = model(name)
        plain, head = (kv_blocks(spec, gpu("a100-80gb"), settings, targets) for targets in (["q"], ["q", "lm_head"]))
        exact = more * 32 * spec.slot_bytes(16, ["lm_head"])
        assert abs(head.lora_bytes - plain.lora_bytes - exact) < 8 * MIB, "but for what segments waste"


def test_slots_for_targets_only() -> None:
    settings = engine(max_loras=32, max_model_len=8192)
    spec, card = model("llama-3.1-8b"), gpu("a100-80gb")
    narrow = MemoryOptions(slot_modules="targets", embedding_slots=False)
    plan = kv_blocks(spec, card, settings, ["q_proj", "v_proj"], narrow)
    exact = 32 * spec.slot_bytes(16, ["q_proj", "v_proj"])
    assert exact <= plan.lora_bytes < exact + 64 * MIB


@pytest.mark.parametrize(
    ("name", "card", "settings"),
    [
        ("llama-3.1-8b", "h100-64gb", {"max_loras": 256, "max_num_seqs": 2048}),
        ("llama-2-7b", "a10g", {"max_loras": 64}),
        ("llama-3.1-8b", "l4", {}),
        ("llama-3.1-70b", "h200", {"max_loras": 4}),
        ("llama-3.1-8b", "h100-80gb", {"block_size": 7_000_000}),
    ],
)
def test_an_error_offers_only_settings_that_help(name: str, card: str, settings: dict[str, object]) -> None:
    given_settings = {"max_num_batched_tokens": 2048, **settings}
    with pytest.raises(InputError) as error:
        kv_blocks(model(name), gpu(card), engine(**given_settings))
    text = str(error.value)
    assert "\n" not in text and text.startswith(f"{name} does not fit {card}")
    assert len(text) < 330, "with the scenario's path before it, the message has at most 400 characters"
    remedies = re.findall(r"(?:raise|lower) (\w+) to ([0-9.]+)", text)
    assert remedies
    for setting, value in remedies:
        kv_blocks(model(name), gpu(card), engine(**{**given_settings, setting: float(value)}))


def test_an_error_with_no_way_out_says_so() -> None:
    with pytest.raises(InputError, match="use a larger GPU"):
        kv_blocks(model("llama-3.1-70b"), gpu("l4"), engine(tensor_parallel_size=1))


def test_the_allocator_rounds_as_pytorch_does() -> None:
    """c10/cuda/CUDACachingAllocator.cpp: 512-byte steps, 2 MiB small and 20 MiB large segments, own segments above."""
    cases = [([1], 2 * MIB), ([512 * 1024] * 4, 2 * MIB), ([2 * MIB] * 10, 20 * MIB), ([8 * MIB] * 3, 40 * MIB)]
    for sizes, reserved in [*cases, ([11 * MIB], 12 * MIB), ([28 * MIB] * 2, 56 * MIB), ([0], 0)]:
        pool = CachingAllocator()
        for size in sizes:
            pool.allocate(size)
        assert pool.reserved == reserved
        assert sum(sizes) <= pool.allocated <= pool.reserved


@given(st.integers(1, 64), st.sampled_from([8, 16, 32]))
def test_given_blocks_are_told_of_exactly_when_they_exceed_what_the_memory_model_would_give(
    slots: int, rank: int
) -> None:
    llama, card = model("llama-3.1-8b"), gpu("h100-80gb")
    settings = engine(max_loras=slots, max_lora_rank=rank, max_model_len=1024)
    most = kv_blocks(llama, card, settings).num_gpu_blocks
    assert oversized(llama, card, settings.model_copy(update={"num_gpu_blocks": most})) is None
    said = oversized(llama, card, settings.model_copy(update={"num_gpu_blocks": most + 1}))
    assert said is not None and f"num_gpu_blocks {most + 1} " in said and f" {slots} adapter slots " in said


def test_slots_that_fit_no_gpu_are_told_of_with_given_blocks() -> None:
    said = oversized(model("llama-56m"), gpu("l4"), engine(max_loras=10**8, max_lora_rank=16, num_gpu_blocks=2048))
    assert said is not None and " 100000000 adapter slots " in said and said.endswith("and l4 has 19.83 GiB usable")
