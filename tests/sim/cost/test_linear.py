"""The linear model with S-LoRA's published constants, and what a mixed step means."""

from __future__ import annotations

import pytest

from loratory.serving.lora import Adapter, LoRARequest
from loratory.serving.plan import BatchShape
from loratory.sim.cost import LinearCost, LinearOptions

A10G = {
    "decode_base_s": 16.30e-3,
    "decode_per_seq_s": 0.2450e-3,
    "decode_per_kv_token_s": 2.02e-6,
    "decode_floor_s": 36e-3,
    "prefill_base_s": 0.45e-3,
    "prefill_per_token_s": 0.2137e-3,
    "lora_step_s": 2.2e-3,
    "per_rank_s": 0.0108e-3,
    "load_per_rank_s": 0.56e-3,
}
"""Constants that fit the A10G profile of VTC's artifact (OSDI 2024), and S-LoRA's LoRA terms (MLSys 2024)."""

PROFILE = [
    (64, 64, 78, 0.013689, 0.038316),
    (64, 128, 52, 0.013959, 0.095248),
    (64, 256, 31, 0.014861, 0.300263),
    (256, 64, 31, 0.054748, 0.081883),
    (256, 128, 26, 0.054276, 0.190231),
    (256, 256, 19, 0.055843, 0.501119),
    (512, 64, 17, 0.110525, 0.147561),
    (512, 128, 15, 0.109787, 0.333001),
    (512, 256, 13, 0.109093, 0.760355),
]
"""vtc_osdi24_a10g_profile.csv: input, output tokens, batch size, prefill and decode seconds per request."""


@pytest.mark.parametrize(("inputs", "outputs", "batch", "prefill_s", "decode_s"), PROFILE)
def test_published_constants_reproduce_the_profile(
    inputs: int, outputs: int, batch: int, prefill_s: float, decode_s: float
) -> None:
    cost = LinearCost.from_options(A10G)
    prefill = BatchShape(prefill_tokens=batch * inputs, prefill_seqs=batch)
    assert cost.step_seconds(prefill) / batch == pytest.approx(prefill_s, rel=0.10)
    line = cost.decode_line(BatchShape(decode_seqs=batch))
    assert line is not None
    steps = [line.seconds(batch * (inputs + step)) for step in range(1, outputs)]
    assert sum(steps) / batch == pytest.approx(decode_s, rel=0.12)


def test_a_mixed_step_has_one_base() -> None:
    cost = LinearCost(
        LinearOptions(decode_base_s=3.0, prefill_base_s=5.0, decode_per_seq_s=0.1, prefill_per_token_s=0.01)
    )
    mixed = BatchShape(prefill_tokens=10, prefill_seqs=1, decode_seqs=2, kv_tokens=7)
    assert cost.step_seconds(mixed) == pytest.approx(5.0 + 0.2 + 0.1)
    assert cost.step_seconds(BatchShape(prefill_tokens=10, prefill_seqs=1)) == pytest.approx(5.1)
    assert cost.step_seconds(BatchShape(decode_seqs=2)) == pytest.approx(3.2)


def test_the_floor_bounds_decode_steps_and_lora_comes_on_top() -> None:
    cost = LinearCost.from_options(A10G)
    one = BatchShape(decode_seqs=1, kv_tokens=10)
    assert cost.step_seconds(one) == pytest.approx(36e-3)
    assert cost.explain(one)["floor"] > 0
    with_lora = one._replace(distinct_adapters=1, sum_ranks=8, lora_tokens=1, lora_token_ranks=8)
    assert cost.step_seconds(with_lora) == pytest.approx(36e-3 + 2.2e-3 + 8 * 0.0108e-3)
    assert cost.step_seconds(BatchShape(prefill_tokens=8, prefill_seqs=1)) < 36e-3


def test_the_largest_rank_of_the_batch_is_paid_for_every_token_where_kernels_pad() -> None:
    cost = LinearCost.from_options({"lora_decode_max_rank_s": 0.5})
    assert cost.step_seconds(BatchShape(decode_seqs=3, distinct_adapters=2, max_rank=8, lora_tokens=3)) == 0.5 * 8 * 3
    assert cost.step_seconds(BatchShape(decode_seqs=3)) == 0.0


def test_the_gemm_floor_bounds_all_but_attention() -> None:
    cost = LinearCost.from_options(
        {"decode_base_s": 1.0, "decode_per_seq_s": 0.5, "decode_per_kv_token_s": 0.1, "decode_gemm_floor_s": 3.0}
    )
    assert cost.step_seconds(BatchShape(decode_seqs=2, kv_tokens=10)) == pytest.approx(3.0 + 1.0)
    assert cost.step_seconds(BatchShape(decode_seqs=8, kv_tokens=10)) == pytest.approx(5.0 + 1.0)
    with_prefill = BatchShape(decode_seqs=2, kv_tokens=10, prefill_tokens=1, prefill_seqs=1)
    assert cost.step_seconds(with_prefill) == pytest.approx(3.0 + 1.0)


def test_loads_follow_the_rank() -> None:
    cost = LinearCost.from_options(A10G | {"transfers": {"disk_fixed_s": 0.5, "disk_bytes_per_s": 100.0}})
    adapter = Adapter(LoRARequest("a", 1, "a"), 8, 200)
    assert cost.load_seconds(adapter, "host") == pytest.approx(8 * 0.56e-3)
    assert cost.load_seconds(adapter, "disk") == pytest.approx(2.5)


def test_the_scenario_may_name_the_source() -> None:
    assert LinearCost.from_options({"source": "VTC artifact"}).source == "VTC artifact"


def test_slots_cost_by_the_token_whatever_is_in_them() -> None:
    options = {"decode_base_s": 0.01, "decode_floor_s": 0.02, "slot_token_s": 1e-6}
    narrow, wide = (LinearCost.from_options(options, slots) for slots in (8, 128))
    shape = BatchShape(prefill_tokens=90, prefill_seqs=1, decode_seqs=10)
    assert wide.step_seconds(shape) - narrow.step_seconds(shape) == pytest.approx(120 * 100 * 1e-6)
    assert wide.explain(shape)["lora_slots"] == pytest.approx(128 * 100 * 1e-6)
