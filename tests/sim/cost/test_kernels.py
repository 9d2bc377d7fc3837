"""Kernel tables: which there are, how they become functions of a step, and a sentence for all that is not in them."""

from __future__ import annotations

import re
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratory.errors import InputError
from loratory.serving.config import EngineConfig
from loratory.serving.lora import Adapter, LoRARequest
from loratory.serving.plan import BatchShape
from loratory.sim.catalogue import gpu, model
from loratory.sim.cost import CostModel, RooflineCost, RooflineOptions, cost_model, kernel_tables
from loratory.sim.cost.kernel_fits import (
    Curve,
    GemmTable,
    decode_attention,
    heads_like,
    prefill_attention,
    rising,
    total,
)
from loratory.sim.cost.kernel_tables import RELEASE, SYSTEMS

needs_tables = pytest.mark.skipif(
    find_spec("aiconfigurator_core") is None, reason="AIConfigurator's tables are not installed: loratory[kernels]"
)


def build(
    options: dict[str, object] | None = None, name: str = "llama-3.1-8b", card: str = "h100-80gb", tp: int = 1
) -> CostModel:
    engine = EngineConfig.model_validate({"tensor_parallel_size": tp})
    return cost_model("kernels", model(name), gpu(card), engine, options)


def decode(batch: int, context: int = 1024) -> BatchShape:
    return BatchShape(decode_seqs=batch, kv_tokens=batch * context)


def prefill(tokens: int, seqs: int = 1) -> BatchShape:
    return BatchShape(prefill_tokens=tokens, prefill_seqs=seqs, prefill_attention=tokens * (tokens / seqs + 1) / 2)


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=30))
def test_rising_is_the_nearest_sequence_that_never_falls(values: list[float]) -> None:
    found = rising(values)
    assert all(a <= b for a, b in pairwise(found))
    assert sum(found) == pytest.approx(sum(values))
    assert rising(found) == pytest.approx(found)
    error = sum((a - b) ** 2 for a, b in zip(found, values, strict=True))
    for other in (sorted(values), [min(values)] * len(values), list(np.maximum.accumulate(values))):
        assert error <= sum((a - b) ** 2 for a, b in zip(other, values, strict=True)) + 1e-12


def test_a_curve_is_straight_between_its_knots_and_in_proportion_beyond() -> None:
    curve = Curve([1, 2, 4], [1.0, 3.0, 4.0])
    assert [curve.at(x) for x in (0.5, 1, 1.5, 2, 3, 4, 8)] == [1.0, 1.0, 2.0, 3.0, 3.5, 4.0, 8.0]
    both = total([(2.0, curve), (1.0, Curve([1, 3, 5], [0.0, 1.0, 9.0]))])
    assert [both.at(x) for x in (1, 2, 3, 4)] == [2.0, 6.5, 8.0, 13.0]


def gemms() -> GemmTable:
    """Products at 80 % of 1e12 bytes/s and 1e14 FLOP/s, over a grid of powers of two."""
    bare = GemmTable(pd.DataFrame(), 2, 1e12, 1e14)
    rows = [
        (m, n, k, float(bare.least_seconds(np.array([float(m)]), n, k)[0]) / 0.8)
        for m in (1, 16, 256, 4096)
        for n in (256, 1024, 4096)
        for k in (256, 1024, 4096)
    ]
    return GemmTable(pd.DataFrame(rows, columns=["m", "n", "k", "s"]), 2, 1e12, 1e14)


@pytest.mark.parametrize(("n", "k"), [(1024, 1024), (2048, 1024), (3000, 700), (4096, 4096)])
def test_a_product_that_was_not_measured_reaches_the_share_of_its_neighbours(n: int, k: int) -> None:
    table = gemms()
    for m in (1, 16, 256, 4096):
        least = float(table.least_seconds(np.array([float(m)]), n, k)[0])
        assert table.curve(n, k).at(m) == pytest.approx(least / 0.8)


def test_a_product_wider_than_the_tables_is_computed_in_equal_parts() -> None:
    table = gemms()
    assert table.curve(8192, 4096).at(16) == pytest.approx(2 * table.curve(4096, 4096).at(16))
    with pytest.raises(InputError, match="no linear layer as narrow as 128, only from 256 to 4096"):
        table.curve(128, 1024)


def test_prefill_attention_is_recovered_from_rows_that_have_its_form() -> None:
    rows = [
        (b, n, 1e-5 + 1e-7 * b + 1e-8 * b * n + 2e-11 * b * n * (n + 1) / 2) for b in (1, 8) for n in (16, 99, 2048)
    ]
    fit = prefill_attention(pd.DataFrame(rows, columns=["batch", "length", "s"]), lambda tokens: 1e-4)
    assert (fit.step_s, fit.seq_s, fit.token_s, fit.pair_s) == pytest.approx((1e-5, 1e-7, 1e-8, 2e-11))
    assert fit.error < 1e-9 and fit.most_length == 2048


def test_decode_attention_is_recovered_from_rows_that_have_its_form() -> None:
    batches = (1, 8, 64)
    rows = [
        (b, n, max(1e-5 + 1e-7 * b, 2e-6 + 1e-7 * b + 1e-9 * b * n))
        for b in batches
        for n in (2, 16, 128, 1024, 8192, 32768)
    ]
    fit = decode_attention(pd.DataFrame(rows, columns=["batch", "length", "s"]), lambda batch: 1e-4)
    assert fit.kv_token_s == pytest.approx(1e-9, rel=1e-3)
    assert [fit.floor.at(b) for b in batches] == pytest.approx([1e-5 + 1e-7 * b for b in batches], rel=0.02)
    assert [fit.start.at(b) for b in batches] == pytest.approx([2e-6 + 1e-7 * b for b in batches], rel=0.05)
    assert fit.most_kv == 64 * 32768


def heads_table() -> pd.DataFrame:
    """Seconds = heads + batch, for some heads."""
    pairs = [(8, 8), (24, 8), (40, 8)]
    rows = [(h, kv, b, n, h + b + 0.0) for h, kv in pairs for b in (1, 4, 8) for n in (16, 64)]
    return pd.DataFrame(rows, columns=["heads", "kv_heads", "batch", "length", "s"])


def test_heads_that_were_not_measured() -> None:
    assert heads_like(heads_table(), 24, 8)[1] == ""
    between, note = heads_like(heads_table(), 32, 8)
    assert note == "" and between.set_index(["batch", "length"])["s"][4, 64] == pytest.approx(32 + 4)
    many, note = heads_like(heads_table(), 32, 32)
    assert many.set_index(["batch", "length"])["s"][2, 16] == 8 + 8, "4 times as many heads, 4 times as many sequences"
    assert "8 and 8 over 4 times as many sequences" in note
    with pytest.raises(
        InputError, match="no attention with 64 heads and 8 KV heads on a GPU: they have 1, 3, 5 heads to"
    ):
        heads_like(heads_table(), 64, 8)


def test_without_the_package_one_sentence_has_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_tables, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'needs AIConfigurator.s tables .*: run pip install "loratory\[kernels\]"'):
        build()


@needs_tables
def test_another_release_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_tables, "version", lambda name: "0.13.1")
    with pytest.raises(InputError, match=rf"is 0\.13\.1, but .* as of {re.escape(RELEASE)}: run pip install aiconf"):
        build()


@needs_tables
def test_the_extra_and_the_code_name_one_release() -> None:
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    assert f"aiconfigurator-core=={RELEASE};" in text


@needs_tables
@pytest.mark.parametrize(
    ("options", "name", "card", "tp", "message"),
    [
        ({}, "llama-3.1-8b", "a10g", 1, "have no GPU a10g, only a100-80gb, h100-80gb, h200, b200, l40s: choose one"),
        ({}, "llama-3.1-8b", "h100-64gb", 1, "have no GPU h100-64gb"),
        ({}, "llama-3.1-8b", "a100-40gb", 1, "have no GPU a100-40gb"),
        ({"engine": "vlm"}, "llama-3.1-8b", "h200", 1, "unknown engine of kernel tables 'vlm': did you mean vllm"),
        (
            {"version": "0.8.5"},
            "llama-3.1-8b",
            "h200",
            1,
            r"cost\.version is 0\.8\.5, but .* under vllm are of 0\.24\.0",
        ),
        ({"dtype": "fp32"}, "llama-3.1-8b", "h200", 1, "have no GEMM in fp32, only in bf16, fp16, fp8"),
        ({"dtype": "fp8"}, "llama-3.1-8b", "a100-80gb", 1, "have no GEMM in fp8, only in bf16, fp16"),
        (
            {"kv_cache_dtype": "fp8"},
            "llama-3.1-8b",
            "a100-80gb",
            1,
            "no attention with a KV cache in fp8, only in bf16",
        ),
        ({"dtype": "bf61"}, "llama-3.1-8b", "h200", 1, "unknown dtype 'bf61'"),
        ({}, "llama-3.1-70b", "h100-80gb", 16, r"tensor_parallel_size is 16, but .* all-reduces over 2, 4, 8 GPUs"),
        ({"memory_efficiency": 0.7}, "llama-3.1-8b", "h200", 1, "unknown key cost: 'memory_efficiency'"),
        ({"step_overhead_s": -1}, "llama-3.1-8b", "h200", 1, r"cost\.step_overhead_s is -1"),
    ],
)
def test_what_is_not_in_the_tables_is_refused_with_what_there_is(
    options: dict[str, object], name: str, card: str, tp: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build(options, name, card, tp)


@needs_tables
@pytest.mark.parametrize("card", SYSTEMS)
@pytest.mark.parametrize("engine", kernel_tables.ENGINES)
@pytest.mark.parametrize(("name", "tp"), [("llama-2-7b", 1), ("qwen-2.5-7b", 2), ("llama-3.1-70b", 8)])
def test_every_gpu_and_engine_has_tables_that_agree_with_the_datasheet(
    card: str, engine: str, name: str, tp: int
) -> None:
    """Weights are read with a third to all of the memory bandwidth; GEMM and attention are within 2.5 of roofline."""
    cost = build({"engine": engine}, name, card, tp)
    assert f"under {engine}" in cost.source
    parts = cost.explain(decode(1))
    reads = model(name).weight_bytes(tp=tp) / gpu(card).memory_bytes_per_s
    assert 0.33 < reads / (parts["linear_layers"] + parts["output_head"]) < 1.1  # the embedding is not read
    parts, roofline = (
        each.explain(decode(64)) for each in (cost, RooflineCost(model(name), gpu(card), tensor_parallel_size=tp))
    )
    for part in ("linear_layers", "decode_attention"):
        assert 0.4 < parts[part] / roofline[part] < 2.5, part


@needs_tables
def test_versions() -> None:
    assert build({"version": "0.24"}).source == build().source == build({"version": "0.24.0"}).source
    assert "0.14.0" in build(card="a100-80gb").source


@needs_tables
def test_options_that_change_a_step_and_adapters_as_roofline() -> None:
    shape = decode(16)._replace(distinct_adapters=4, sum_ranks=64, max_rank=16, lora_tokens=16, lora_token_ranks=256)
    adapter = Adapter(LoRARequest("a", 1, "a"), 16, model("llama-3.1-8b").adapter_bytes(16))
    plain, roofline = build(), RooflineCost(model("llama-3.1-8b"), gpu("h100-80gb"), engine=EngineConfig())
    assert plain.explain(shape)["lora"] == roofline.explain(shape)["lora"] > 0
    assert plain.load_seconds(adapter, "host") == roofline.load_seconds(adapter, "host")
    for key, value in {
        "step_overhead_s": 1e-3,
        "host_layer_s": 1e-3,
        "lora_kernel_s": 1e-4,
        "lora_adapter_layer_s": 1e-4,
        "lora_compute_efficiency": 0.01,
        "target_modules": ["q_proj"],
        "dtype": "fp8",
        "kv_cache_dtype": "fp8",
    }.items():
        assert build({key: value}).step_seconds(shape) != plain.step_seconds(shape), key
    for key, value in {"link_efficiency": 0.4, "load_copy_s": 1e-3}.items():
        assert build({key: value}).load_seconds(adapter, "host") > plain.load_seconds(adapter, "host"), key
    assert build({"transfers": {"disk_fixed_s": 1.0}}).below.disk_fixed_s == 1.0


@needs_tables
def test_beyond_the_tables_a_note_has_the_largest_excess() -> None:
    cost = build(card="a100-80gb")
    cost.step_seconds(prefill(8192, 8))
    cost.step_seconds(decode(256))
    assert cost.warnings == []
    for tokens in (9000, 12000, 10000):
        cost.step_seconds(prefill(tokens, 8))
    cost.step_seconds(decode(3000, 100))
    cost.decode_line(decode(100, 5000))
    cost.step_seconds(BatchShape(prefill_tokens=100, prefill_seqs=1, prefill_attention=100 * 20_000.0))
    tokens, decodes, kv, context = cost.warnings
    assert "tokens in a step reached 12,000, and up to 8,192 were measured" in tokens
    assert "decoding sequences in a step reached 3,000, and up to 2,048 were measured" in decodes
    assert "KV tokens that a step reads reached 500,000, and up to" in kv
    assert "tokens before each prompt token, on average reached 20,000, and up to 8,192" in context


@needs_tables
def test_heads_that_were_not_measured_are_noted() -> None:
    (note,) = build(name="llama-2-7b").warnings
    assert note.startswith(
        "kernels: decode attention with 32 heads and 32 KV heads was not measured: it takes the times"
    )


@needs_tables
def test_a_loose_fit_is_noted() -> None:
    heads, loose = build(name="llama-2-7b", card="a100-80gb").warnings
    assert "KV heads was not measured" in heads and "is not quite of the fitted form" in loose
    assert build(card="a100-80gb").warnings == []


@needs_tables
def test_an_unknown_error_is_called_so() -> None:
    assert build().known_error.startswith("steps of Llama-3.1-8B without adapters within 5 %")
    assert build({"engine": "sglang"}).known_error.startswith("not known: steps on h100-80gb with sglang's kernels")
    assert build({"dtype": "fp8"}).known_error.startswith(
        "not known: steps on h100-80gb with vllm's kernels in bf16 and"
    )


@needs_tables
def test_tensor_parallelism_helps_sublinearly() -> None:
    for shape in (decode(64), prefill(4096)):
        times = [build(name="llama-3.1-70b", tp=tp).step_seconds(shape) for tp in (1, 2, 4, 8)]
        for one, two in pairwise(times):
            assert one / 2 < two < one
    parts = build(name="llama-3.1-70b", tp=4).explain(prefill(4096))
    assert parts["all_reduce"] > 0 == build().explain(prefill(4096))["all_reduce"]


@needs_tables
def test_heads_that_no_table_has_are_refused_with_the_condition_that_fails() -> None:
    """Llama-2-13B's 40 KV heads: one head to a KV head was measured, but in no batch that would hold as many heads."""
    with pytest.raises(InputError) as caught:
        build(name="llama-2-13b")
    text = str(caught.value)
    assert (
        "no attention with 40 heads and 40 KV heads on a GPU: with 1 head to a KV head they have 1, 2, 4, 8 KV" in text
    )
    assert "no measured batch of these has as many as a batch with 40: choose another model" in text


@needs_tables
def test_whose_host_time_and_lora_kernels_come_on_top() -> None:
    shape = decode(16)._replace(distinct_adapters=4, sum_ranks=64, max_rank=16, lora_tokens=16, lora_token_ranks=256)
    old = build({"engine_times": "vllm-0.8.5"})
    roofline = RooflineCost(
        model("llama-3.1-8b"),
        gpu("h100-80gb"),
        engine=EngineConfig(),
        options=RooflineOptions(engine_times="vllm-0.8.5"),
    )
    assert old.explain(shape)["lora"] == roofline.explain(shape)["lora"]
    none = build({"engine_times": "none"})
    assert "host" not in none.explain(shape) and none.explain(shape)["lora"] < old.explain(shape)["lora"]
    for engine, told in (("vllm", False), ("sglang", True), ("trtllm", True)):
        note = (
            f"kernels: the kernels of the base model are {engine}'s, and host time and LoRA kernels those of vLLM 0.32"
        )
        assert any(each.startswith(note) for each in build({"engine": engine}).warnings) == told
        assert not build({"engine": engine, "engine_times": "none"}).warnings


@pytest.mark.parametrize(
    ("cost", "known"),
    [
        ("{kind: kernels, dtype: fp8}", "fp16, bf16"),
        ("{kind: roofline, dtype: fp8}", "fp32, fp16, bf16"),
    ],
)
def test_a_dtype_that_the_gpu_lacks_is_refused_with_those_that_may_be_given(cost: str, known: str) -> None:
    from loratory.experiment.resolve import build as built
    from loratory.scenarios.load import load_scenario

    with pytest.raises(InputError, match=f"a100-80gb has no fp8 arithmetic: use one of {known}$"):
        built(load_scenario("quickstart", ["gpu=a100-80gb", f"cost={cost}"]))
