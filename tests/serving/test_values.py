"""LoRARequest, Adapter, Request, EngineConfig, Workload: what they accept, and what they say when they do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import examples
from pydantic import ValidationError

from loratory.errors import InputError, LoratoryError, PolicyError
from loratory.serving.config import EngineConfig
from loratory.serving.ledger import Ledger
from loratory.serving.lora import Adapter, LoRARequest
from loratory.serving.request import Request
from loratory.serving.request_maker import RequestMaker
from loratory.serving.workload import Workload
from loratory.testing import ToyCost, adapter

FIELDS = st.tuples(
    st.sampled_from(["a", "b"]), st.integers(1, 2), st.sampled_from(["p", "q"]), st.sampled_from([None, "m"])
)


@examples(60)
@given(one=FIELDS, two=FIELDS)
def test_lora_requests_are_equal_only_when_all_fields_are(one: tuple[Any, ...], two: tuple[Any, ...]) -> None:
    left, right = LoRARequest(*one), LoRARequest(*two)
    assert (left == right) == (one == two)
    if one == two:
        assert hash(left) == hash(right)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (("", 1, "p"), "lora_name"),
        (("  ", 1, "p"), "lora_name"),
        ((None, 1, "p"), "lora_name"),
        (("a", 0, "p"), "lora_int_id"),
        (("a", -1, "p"), "lora_int_id"),
        (("a", 1.0, "p"), "lora_int_id"),
        (("a", True, "p"), "lora_int_id"),
        (("a", "1", "p"), "lora_int_id"),
        (("a", 1, ""), "lora_path"),
        (("a", 1, None), "lora_path"),
    ],
)
def test_a_bad_lora_request_says_which_field(fields: tuple[Any, ...], says: str) -> None:
    with pytest.raises(InputError, match=says):
        LoRARequest(*fields)


def test_values_are_frozen() -> None:
    request = Request("r", None, 0, 1, 1)
    for value, name in ((LoRARequest("a", 1, "p"), "lora_int_id"), (adapter(1), "rank"), (request, "arrival")):
        with pytest.raises(AttributeError):
            setattr(value, name, 5)
    with pytest.raises(ValidationError):
        EngineConfig().max_loras = 3


@pytest.mark.parametrize(("rank", "size"), [(0, 1), (-4, 1), (8, -1)])
def test_an_adapter_has_a_rank_and_a_size(rank: int, size: int) -> None:
    with pytest.raises(InputError):
        Adapter(LoRARequest("a", 1, "p"), rank, size)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt_tokens": 0},
        {"max_tokens": 0},
        {"cached_tokens": -1},
        {"cached_tokens": 4},
        {"cached_tokens": 9},
        {"weight": 0.0},
        {"weight": -1.0},
        {"weight": float("nan")},
    ],
)
def test_a_request_no_engine_could_serve_is_refused(change: dict[str, Any]) -> None:
    good = {"prompt_tokens": 4, "max_tokens": 4, "cached_tokens": 3}
    assert Request("r", None, 0.0, **good).weight == 1.0
    with pytest.raises(InputError, match="'r'"):
        Request("r", None, 0.0, **{**good, **change})


VALUES: dict[str, Any] = {
    "request_id": "one",
    "adapter": "sql",
    "arrival": 100.0,
    "prompt_tokens": 11,
    "max_tokens": 70,
    "tenant": "acme",
    "predicted_tokens": 13,
    "cached_tokens": 5,
    "priority": -3,
    "deadline": 900.5,
    "weight": 2.5,
}
"""Of every field of a request, none equal to another."""


def test_every_value_of_a_request_is_in_its_own_field() -> None:
    assert Request(**VALUES)._asdict() == Request(*VALUES.values())._asdict() == VALUES


def test_every_column_of_a_workload_is_in_its_own_field() -> None:
    first = {"prompt_tokens": 2, "max_tokens": 1, "predicted_tokens": 1, "cached_tokens": 1, "priority": 0}
    column: dict[str, Any] = {name: np.array([value, VALUES[name]]) for name, value in first.items()}
    workload = Workload(
        arrival=np.array([1.0, VALUES["arrival"]]),
        adapter=np.array([-1, 2]),
        tenant=np.array([0, 1]),
        output_tokens=np.array([1, 17]),
        adapters=("x", "y", VALUES["adapter"]),
        tenants=("default", VALUES["tenant"]),
        tenant_weights=(1.0, VALUES["weight"]),
        deadline=np.array([np.inf, VALUES["deadline"] - VALUES["arrival"]]),
        **column,
    )
    request, output_tokens = RequestMaker(workload).make(1)
    assert request._asdict() == {**VALUES, "request_id": "1"} and output_tokens == 17


def test_a_request_without_adapter_is_for_the_base_model() -> None:
    request = Request("r", None, 0.0, 4, 4)
    assert request.adapter is None and request.weight == 1.0 and request.tenant == "default"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_num_seqs": 512, "max_num_batched_tokens": 256}, "max_num_batched_tokens"),
        ({"max_loras": 8, "max_cpu_loras": 4}, "max_cpu_loras"),
        ({"max_loras": 0}, "max_loras"),
        ({"block_size": 0}, "block_size"),
        ({"num_gpu_blocks": 0}, "num_gpu_blocks"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization"),
        ({"max_model_len": 1}, "max_model_len"),
        ({"adapter_loading": "lazy"}, "adapter_loading"),
        ({"memory": "paged"}, "memory"),
        ({"eviction": "random"}, "eviction"),
        ({"max_lora": 3}, "max_lora"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        EngineConfig(**settings)


def test_defaults_are_vllms() -> None:
    """vllm/engine/arg_utils.py and vllm/config."""
    config = EngineConfig()
    assert (config.max_num_batched_tokens, config.max_num_seqs, config.block_size) == (2048, 256, 16)
    assert (config.max_loras, config.max_lora_rank, config.max_cpu_loras) == (1, 16, None)
    assert config.gpu_memory_utilization == 0.9 and config.enable_chunked_prefill
    assert config.host_slots == 1 and EngineConfig(max_loras=4).host_slots == 4
    assert EngineConfig(max_loras=4, max_cpu_loras=9).host_slots == 9


def test_without_blocks_the_engine_says_what_to_set() -> None:
    with pytest.raises(InputError, match="num_gpu_blocks"):
        EngineConfig().require_blocks()


def _ledger(adapters: tuple[Adapter, ...], kv_bytes: int | None = None, **settings: Any) -> Ledger:
    return Ledger(EngineConfig(num_gpu_blocks=20, **settings), adapters, ToyCost(), kv_bytes)


@pytest.mark.parametrize(
    ("adapters", "settings", "says"),
    [
        ((adapter(1, rank=32),), {}, "max_lora_rank"),
        ((adapter(1), adapter(1)), {}, "unique"),
        ((adapter(1), Adapter(LoRARequest("other", 1, "p"), 8, 1)), {}, "lora_int_id"),
        ((adapter(1, pinned=True), adapter(2)), {"max_loras": 1}, "pinned"),
        ((adapter(1, pinned=True), adapter(2, pinned=True)), {"max_loras": 1}, "pinned"),
        ((adapter(1),), {"memory": "unified"}, "kv_bytes_per_token"),
    ],
)
def test_adapters_that_can_never_be_served_are_refused(
    adapters: tuple[Adapter, ...], settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        _ledger(adapters, **settings)


def test_a_pool_full_of_adapters_is_refused() -> None:
    with pytest.raises(InputError, match="num_gpu_blocks"):
        _ledger((adapter(1, size=20 * 16 * 10),), 10, memory="unified")


def test_errors_have_the_exit_codes_of_the_command_line() -> None:
    assert (InputError.exit_code, PolicyError.exit_code, LoratoryError.exit_code) == (2, 1, 1)


def _columns(n: int, **changes: Any) -> dict[str, Any]:
    ones = np.ones(n, dtype=np.int64)
    return {
        "arrival": np.arange(n, dtype=np.float64),
        "adapter": -ones,
        "tenant": 0 * ones,
        "prompt_tokens": ones,
        "output_tokens": ones,
        "max_tokens": ones,
        "adapters": (),
        **changes,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"arrival": np.array([0.0, 2.0, 1.0])},
        {"prompt_tokens": np.array([1, 0, 1])},
        {"output_tokens": np.array([1, -1, 1])},
        {"max_tokens": np.array([0, 1, 1])},
        {"tenant": np.array([0, 0])},
        {"deadline": np.array([1.0])},
        {"concurrency": 0},
        {"cached_tokens": np.array([0, 1, 0])},
        {"cached_tokens": np.array([0, -1, 0])},
        {"tenant_weights": (0.0,)},
        {"tenant_weights": (float("nan"),)},
    ],
)
def test_a_workload_that_disagrees_with_itself_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Workload(**_columns(3, **changes))


def test_a_workload_makes_its_requests() -> None:
    work = Workload(
        **_columns(
            3,
            adapter=np.array([-1, 0, 1]),
            adapters=("x", "y"),
            tenant=np.array([0, 1, 1]),
            tenants=("p", "q"),
            tenant_weights=(1.0, 3.0),
            deadline=np.array([np.inf, 2.0, 0.5]),
            priority=np.array([0, 1, 2]),
        )
    )
    first, second, third = (work.request(i) for i in range(3))
    assert (first.adapter, first.tenant, first.weight, first.deadline) == (None, "p", 1.0, None)
    assert (second.adapter, second.tenant, second.weight, second.deadline) == ("x", "q", 3.0, 3.0)
    assert (third.adapter, third.priority, third.deadline) == ("y", 2, 2.5)
    assert work.request(2, arrival=10.0).deadline == 10.5
    maker = RequestMaker(work)
    assert [maker.make(i) for i in (0, 2, 1, 1)] == [(work.request(i), 1) for i in (0, 2, 1, 1)]
