"""Laws every cost model keeps: positive, never cheaper when a batch grows, the decode line exact, parts sum up."""

from __future__ import annotations

import math
from importlib.util import find_spec

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratory.serving.config import EngineConfig
from loratory.serving.plan import BatchShape
from loratory.sim.catalogue import gpu, model
from loratory.sim.cost import CostModel, LinearCost, LinearOptions, Profile, ProfileCost, RooflineCost, RooflineOptions

SLORA = LinearOptions(
    decode_base_s=16.3e-3,
    decode_per_seq_s=0.245e-3,
    decode_per_kv_token_s=2.02e-6,
    decode_floor_s=36e-3,
    prefill_base_s=0.45e-3,
    prefill_per_token_s=0.2137e-3,
    prefill_attention_s=1e-9,
    lora_step_s=2.2e-3,
    per_adapter_s=1e-5,
    per_rank_s=0.0108e-3,
    lora_token_s=1e-6,
    lora_token_rank_s=1e-7,
    lora_decode_max_rank_s=1e-7,
)
FITTED = Profile(
    name="made up",
    coefficients={
        "step": 1e-3,
        "prefill_step": 2e-4,
        "lora_step": 1e-4,
        "tokens": 1e-5,
        "tokens_above_64": 2e-5,
        "tokens_above_256": 3e-5,
        "tokens_to_8": 4e-5,
        "decode_seqs_to_4": 3e-5,
        "distinct_adapters_to_2": 2e-4,
        "lora_tokens_to_16": 5e-5,
        "prefill_tokens": 1e-6,
        "prefill_attention": 1e-9,
        "prefill_seqs": 1e-6,
        "decode_seqs": 1e-6,
        "kv_tokens": 1e-7,
        "distinct_adapters": 1e-5,
        "sum_ranks": 1e-6,
        "lora_tokens": 1e-6,
        "lora_token_ranks": 1e-7,
    },
    ranges={"tokens": 512, "kv_tokens": 10_000},
)


def kernels() -> dict[str, CostModel]:
    """None where AIConfigurator's tables are not installed, as on Python 3.14."""
    if find_spec("aiconfigurator_core") is None:
        return {}
    from loratory.sim.cost.kernels import KernelsCost, KernelsOptions

    host = KernelsOptions(engine="trtllm", host_layer_s=8e-4)
    return {
        "kernels": KernelsCost(model("llama-3.1-8b"), gpu("h100-80gb")),
        "kernels tp4": KernelsCost(model("llama-3.1-70b"), gpu("a100-80gb"), tensor_parallel_size=4),
        "kernels l40s": KernelsCost(model("llama-2-7b"), gpu("l40s")),
        "kernels host": KernelsCost(model("qwen-2.5-7b"), gpu("h200"), options=host),
    }


def of_engine(
    preset: str, slots: int, rank: int, options: dict[str, object] | None = None, model_name: str = "llama-3.1-8b"
) -> RooflineCost:
    settings = {"as": preset, "max_loras": slots, "max_lora_rank": rank}
    engine = EngineConfig.model_validate(settings)
    return RooflineCost.from_options(model(model_name), gpu("h100-80gb"), engine, options or {})


def models() -> dict[str, CostModel]:
    return {
        "roofline": RooflineCost(model("llama-3.1-8b"), gpu("h100-80gb")),
        "roofline tp4": RooflineCost(model("llama-3.1-70b"), gpu("a100-80gb"), tensor_parallel_size=4),
        "roofline host": RooflineCost(
            model("llama-2-7b"), gpu("a100-80gb"), options=RooflineOptions(host_layer_s=8e-4)
        ),
        "roofline vllm-0.8.5": of_engine("vllm-0.8.5", 32, 16),
        "roofline vllm-0.32": of_engine("vllm-0.32", 32, 16),
        "roofline head": of_engine("vllm-0.8.5", 8, 64, {"target_modules": ["q_proj", "lm_head"]}),
        "linear": LinearCost(SLORA),
        "linear with slots": LinearCost(SLORA.model_copy(update={"slot_token_s": 2e-7}), max_loras=32),
        "profile": ProfileCost(FITTED),
        **kernels(),
    }


MODELS = models()
every_model = pytest.mark.parametrize("name", MODELS)


@st.composite
def shapes(draw: st.DrawFn, decode_only: bool = False) -> BatchShape:
    decodes = draw(st.integers(1 if decode_only else 0, 512))
    prefill = 0 if decode_only else draw(st.integers(0, 8192))
    prefill_seqs = draw(st.integers(1, min(prefill, 64))) if prefill else 0
    tokens = prefill + decodes
    lora_tokens = draw(st.integers(0, tokens))
    adapters = draw(st.integers(1, min(lora_tokens, 128))) if lora_tokens else 0
    rank = draw(st.sampled_from([8, 16, 64])) if adapters else 0
    return BatchShape(
        prefill_tokens=prefill,
        prefill_attention=prefill * draw(st.integers(1, 8192)) if prefill else 0.0,
        prefill_seqs=prefill_seqs,
        decode_seqs=decodes,
        kv_tokens=draw(st.integers(decodes, 1_000_000)) if decodes else 0,
        distinct_adapters=adapters,
        sum_ranks=adapters * rank,
        max_rank=rank,
        lora_tokens=lora_tokens,
        lora_token_ranks=lora_tokens * rank,
        blocked_seqs=draw(st.sampled_from([0, 0, 17, 20_000])),
    )


def approx(value: float) -> float:
    return value * (1 + 1e-12) + 1e-15


@every_model
@given(shape=shapes())
def test_a_step_that_computes_takes_time(name: str, shape: BatchShape) -> None:
    seconds = MODELS[name].step_seconds(shape)
    assert math.isfinite(seconds)
    assert seconds > 0 if shape.tokens else seconds == 0


@every_model
@given(shape=shapes(), field=st.sampled_from(BatchShape._fields), more=st.integers(1, 10_000))
def test_a_larger_batch_is_never_faster(name: str, shape: BatchShape, field: str, more: int) -> None:
    larger = shape._replace(**{field: getattr(shape, field) + more})
    assert MODELS[name].step_seconds(shape) <= approx(MODELS[name].step_seconds(larger))


@every_model
@given(shape=shapes(decode_only=True), steps=st.lists(st.integers(0, 2_000_000), min_size=1, max_size=5))
def test_the_decode_line_is_step_seconds(name: str, shape: BatchShape, steps: list[int]) -> None:
    cost = MODELS[name]
    line = cost.decode_line(shape)
    assert line is not None
    for kv_tokens in [shape.kv_tokens, *steps]:
        assert line.seconds(kv_tokens) == cost.step_seconds(shape._replace(kv_tokens=kv_tokens))
        assert line == cost.decode_line(shape._replace(kv_tokens=kv_tokens))


@every_model
@given(shape=shapes())
def test_there_is_a_decode_line_exactly_for_pure_decode(name: str, shape: BatchShape) -> None:
    pure = shape.decode_seqs > 0 and shape.prefill_tokens == 0
    assert (MODELS[name].decode_line(shape) is not None) == pure


@every_model
@given(shape=shapes())
def test_explain_adds_up(name: str, shape: BatchShape) -> None:
    cost = MODELS[name]
    parts = cost.explain(shape)
    assert all(seconds >= 0 for seconds in parts.values())
    assert math.isclose(sum(parts.values()), cost.step_seconds(shape), rel_tol=1e-9, abs_tol=1e-15)


@every_model
@given(shape=shapes(decode_only=True))
def test_adapters_cost_something_where_they_are_priced(name: str, shape: BatchShape) -> None:
    plain = shape._replace(distinct_adapters=0, sum_ranks=0, max_rank=0, lora_tokens=0, lora_token_ranks=0)
    difference = MODELS[name].step_seconds(shape) - MODELS[name].step_seconds(plain)
    if name.endswith(("host", "vllm-0.32")):  # what the host hides costs nothing
        assert difference >= 0
        return
    assert difference > 0 if shape.distinct_adapters else difference == 0


@every_model
def test_models_name_their_source(name: str) -> None:
    assert MODELS[name].source
    assert MODELS[name].name in name


@pytest.mark.parametrize("preset", ["vllm-0.8.5", "vllm-0.32"])
@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen-2.5-7b"])
@given(shape=shapes())
def test_slots_and_their_rank_cost_time_with_adapters_and_none_without(
    preset: str, name: str, shape: BatchShape
) -> None:
    """vLLM pulls 22782 and 32005: LoRA kernels are padded to max_lora_rank, and their grid spans max_loras slots."""
    few, many, padded = (
        of_engine(preset, slots, rank, model_name=name) for slots, rank in ((4, 16), (64, 16), (4, 64))
    )
    plain = shape._replace(distinct_adapters=0, sum_ranks=0, max_rank=0, lora_tokens=0, lora_token_ranks=0)
    assert few.step_seconds(plain) == many.step_seconds(plain) == padded.step_seconds(plain)
    if not shape.distinct_adapters:
        return
    lora = few.explain(shape)["lora"]
    assert many.explain(shape)["lora"] > lora < padded.explain(shape)["lora"]
    assert many.step_seconds(shape) >= few.step_seconds(shape) <= padded.step_seconds(shape)
    if preset == "vllm-0.8.5":
        assert many.step_seconds(shape) > few.step_seconds(shape) < padded.step_seconds(shape)


@given(shape=shapes())
def test_ranks_below_max_lora_rank_cost_what_it_costs(shape: BatchShape) -> None:
    cost = of_engine("vllm-0.8.5", 8, 64)
    other = shape._replace(sum_ranks=shape.sum_ranks // 2, max_rank=8, lora_token_ranks=shape.lora_token_ranks // 2)
    assert cost.step_seconds(shape) == cost.step_seconds(other)
