"""The roofline over tensor parallelism and adapters; published times are in tests/published/test_roofline.py."""

from __future__ import annotations

from itertools import pairwise

import pytest

from loratory.errors import InputError
from loratory.serving.config import EngineConfig
from loratory.serving.lora import Adapter, LoRARequest
from loratory.serving.plan import BatchShape
from loratory.sim.catalogue import gpu, model
from loratory.sim.cost import RooflineCost, cold_load_seconds


def decode(batch: int, context: int = 1024) -> BatchShape:
    return BatchShape(decode_seqs=batch, kv_tokens=batch * context)


def prefill(tokens: int) -> BatchShape:
    return BatchShape(prefill_tokens=tokens, prefill_seqs=1, prefill_attention=tokens * (tokens + 1) / 2)


def test_tensor_parallelism_helps_sublinearly() -> None:
    spec, card = model("llama-3.1-70b"), gpu("h100-80gb")
    for shape in (decode(1), decode(64), prefill(4096)):
        times = [RooflineCost(spec, card, tensor_parallel_size=tp).step_seconds(shape) for tp in (1, 2, 4, 8)]
        for one, two in pairwise(times):
            assert one / 2 < two < one


def test_slow_links_make_tensor_parallelism_cost() -> None:
    spec = model("llama-2-13b")
    parts = RooflineCost(spec, gpu("l4"), tensor_parallel_size=4).explain(prefill(2048))
    fast = RooflineCost(spec, gpu("a100-80gb"), tensor_parallel_size=4).explain(prefill(2048))
    assert parts["all_reduce"] > 5 * fast["all_reduce"] > 0
    assert RooflineCost(spec, gpu("l4")).explain(prefill(2048))["all_reduce"] == 0


def test_first_adapter_and_each_further_one() -> None:
    """Agullo et al.: the first adapter in a batch +10..15 % of the step, each further one about +1 %."""
    cost = RooflineCost(model("llama-3.1-8b"), gpu("h100-64gb"))

    def seconds(adapters: int) -> float:
        tokens = 8 if adapters else 0
        return cost.step_seconds(
            decode(8)._replace(
                distinct_adapters=adapters, sum_ranks=16 * adapters, lora_tokens=tokens, lora_token_ranks=16 * tokens
            )
        )

    assert 0.10 < seconds(1) / seconds(0) - 1 < 0.17
    assert 0.005 < (seconds(8) - seconds(1)) / 7 / seconds(0) < 0.02


def test_first_adapter_under_vllm() -> None:
    """Agullo et al.: +10..15 % of the step; each further one takes the same time, less than the first."""
    engine = EngineConfig.model_validate({"as": "vllm-0.8.5", "max_loras": 8})
    cost = RooflineCost(model("llama-3.1-8b"), gpu("h100-64gb"), engine=engine)

    def seconds(adapters: int) -> float:
        return cost.step_seconds(decode(8, 400)._replace(distinct_adapters=adapters, lora_tokens=8 * bool(adapters)))

    first = seconds(1) / seconds(0) - 1
    assert 0.10 < first < 0.16
    assert 0.02 < (seconds(8) - seconds(1)) / 7 / seconds(0) < first / 2


def test_options_of_kernels_by_slot_are_refused_where_kernels_go_by_adapter() -> None:
    for key in ("lora_block_s", "lora_idle_block_s"):
        with pytest.raises(InputError, match=f"cost.{key} has no effect"):
            RooflineCost.from_options(model("llama-2-7b"), gpu("l4"), EngineConfig(memory="unified"), {key: 1e-9})


def adapter(rank: int) -> Adapter:
    return Adapter(LoRARequest("a", 1, "a"), rank, model("llama-3.1-8b").adapter_bytes(rank))


def test_loads_are_nearly_independent_of_rank() -> None:
    """Agullo et al.: 6.4 to 8.1 ms from host to GPU, nearly independent of rank; a load has many small copies."""
    cost = RooflineCost(model("llama-3.1-8b"), gpu("h100-64gb"))
    small, large = (cost.load_seconds(adapter(rank), "host") for rank in (8, 32))
    assert 0.004 < small < large < 0.0085
    assert cost.load_seconds(adapter(8), "gpu") == 0 == cost.load_seconds(adapter(8), "loading")


def test_a_cold_load_is_the_sum_of_its_hops() -> None:
    cost = RooflineCost(model("llama-3.1-8b"), gpu("a100-80gb"))
    hops = [cost.load_seconds(adapter(16), tier) for tier in ("remote", "disk", "host")]
    assert all(seconds > 0 for seconds in hops)
    for start, tier in enumerate(("remote", "disk", "host", "gpu")):
        assert cold_load_seconds(cost, adapter(16), tier) == pytest.approx(sum(hops[start:]))


def test_a_load_is_split_over_tensor_parallel_gpus() -> None:
    spec = model("llama-3.1-70b")
    one, four = (RooflineCost(spec, gpu("h100-80gb"), tensor_parallel_size=tp) for tp in (1, 4))
    big = Adapter(LoRARequest("b", 2, "b"), 64, spec.adapter_bytes(64))
    assert one.load_seconds(big, "host") / 4 < four.load_seconds(big, "host") < one.load_seconds(big, "host")


def test_uncalibrated_gpus_say_so() -> None:
    assert RooflineCost(model("llama-2-7b"), gpu("a100-80gb")).warnings == []
    (warning,) = RooflineCost(model("llama-2-7b"), gpu("mi300x")).warnings
    assert "mi300x" in warning and "cost.memory_efficiency" in warning


def test_narrow_adapters_are_cheaper() -> None:
    spec, card = model("llama-2-7b"), gpu("a100-80gb")
    narrow = RooflineCost.from_options(spec, card, None, {"target_modules": ["q_proj", "v_proj"]})
    wide = RooflineCost.from_options(spec, card, None, {})
    shape = decode(16)._replace(distinct_adapters=4, sum_ranks=64, lora_tokens=16, lora_token_ranks=256)
    assert narrow.explain(shape)["lora"] < wide.explain(shape)["lora"]


def test_an_output_head_costs_what_it_reads_and_computes_on_sampled_positions_alone() -> None:
    spec, card = model("llama-3.1-8b"), gpu("a100-80gb")

    def cost(*targets: str) -> RooflineCost:
        return RooflineCost.from_options(spec, card, None, {"target_modules": list(targets)})

    def more(shape: BatchShape) -> float:
        return cost("q", "lm_head").step_seconds(shape) - cost("q").step_seconds(shape)

    decoding = decode(8)._replace(distinct_adapters=1, sum_ranks=16, lora_tokens=8, lora_token_ranks=128)
    chunk = prefill(2048)._replace(distinct_adapters=1, sum_ranks=16, lora_tokens=2048, lora_token_ranks=2048 * 16)
    assert more(decode(8)) == more(prefill(2048)) == 0.0
    assert 0.0 < more(chunk) < more(decoding) < cost("q").step_seconds(decoding)
    sizes = [Adapter(LoRARequest("a", 1, "a"), 16, spec.adapter_bytes(16, t)) for t in (["q"], ["q", "lm_head"])]
    before, after = (cost(*t).load_seconds(a, "host") for t, a in zip((["q"], ["q", "lm_head"]), sizes, strict=True))
    assert before < after


def test_a_tp_that_does_not_divide_is_refused() -> None:
    with pytest.raises(InputError, match="tensor_parallel_size 3"):
        RooflineCost(model("llama-2-7b"), gpu("l4"), tensor_parallel_size=3)
