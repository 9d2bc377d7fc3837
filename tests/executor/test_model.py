"""The model equals transformers for every family, and a sequence's logits do not depend on its batch."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from passes import Passes, relative_error
from torch import Tensor

from loratory.executor.attention.cpu import CPUAttention, faster_decode
from loratory.executor.attention.decode import Decode, Heads, length_groups
from loratory.executor.attention.decode_gathered import GatheredDecode
from loratory.executor.attention.decode_in_place import InPlaceDecode
from loratory.executor.checkpoint import read_config
from loratory.executor.model import Model
from loratory.executor.model_config import ModelConfig
from loratory.executor.random_checkpoint import RandomTensors, model_config, random_checkpoint

LLAMA = model_config("tiny-llama")
ROPE: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    | {"original_max_position_embeddings": 64},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
}
VARIANTS: dict[str, ModelConfig] = {
    "llama": LLAMA,
    "llama-mha": model_config("tiny-llama", kv_heads=4),
    "llama-mqa": model_config("tiny-llama", kv_heads=1),
    "llama-biases": model_config("tiny-llama", qkv_bias=True, o_bias=True, mlp_bias=True),
    "llama-tied-wide-heads": replace(model_config("tiny-llama", tied=True, head_dim=24), norm_eps=1e-5),
    **{f"llama-{name}": replace(LLAMA, rope={"rope_theta": 5000.0} | rope) for name, rope in ROPE.items()},
    "mistral": model_config("tiny-mistral"),
    "qwen2": model_config("tiny-qwen2"),
    "qwen3": model_config("tiny-qwen3"),
    "qwen3-biases": model_config("tiny-qwen3", qkv_bias=True, o_bias=True, tied=False),
}
PROMPT = [(37 * place + 11) % 256 for place in range(45)]


def model_of(config: ModelConfig, dtype: torch.dtype = torch.float32) -> Model:
    return Model(config, RandomTensors(3, config.shape.tied), dtype, torch.device("cpu"))


@cache
def tiny() -> Model:
    return model_of(LLAMA)


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_and_greedy_tokens_equal_transformers(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    random_checkpoint(tmp_path, VARIANTS[name], seed=3)
    oracle = AutoModelForCausalLM.from_pretrained(tmp_path)
    passes = Passes(Model.load(tmp_path))
    with torch.inference_mode():
        wanted = oracle(torch.tensor([PROMPT])).logits[0]
        logits = passes.run({}, {"a": PROMPT})["a"]
        assert relative_error(logits, wanted) < 1e-5
        tokens = oracle.generate(torch.tensor([PROMPT]), max_new_tokens=12, do_sample=False, eos_token_id=-1)
    found = [int(logits[-1].argmax())]
    while len(found) < 12:
        logits = passes.run({"a": found[-1]}, {})["a"]
        found.append(int(logits[0].argmax()))
    assert found == tokens[0, len(PROMPT) :].tolist()
    assert len(set(found)) > 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama", "llama-biases", "mistral", "qwen2", "qwen3"])
def test_16_bit_logits_are_as_near_to_float32_as_transformers(name: str, dtype: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    random_checkpoint(tmp_path, VARIANTS[name], seed=3)
    passes = Passes(Model.load(tmp_path, dtype))
    with torch.inference_mode():
        exact = AutoModelForCausalLM.from_pretrained(tmp_path)(torch.tensor([PROMPT])).logits[0]
        oracle = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=getattr(torch, dtype))
        wanted = oracle(torch.tensor([PROMPT])).logits[0]
    logits = torch.cat([passes.run({}, {"a": PROMPT[:20]})["a"], *(passes.run({"a": t}, {})["a"] for t in PROMPT[20:])])
    assert relative_error(logits, wanted) < 2e-2
    assert relative_error(logits, exact) < 1.1 * relative_error(wanted, exact)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_written_config_reads_back(name: str, tmp_path: Path) -> None:
    config = replace(VARIANTS[name], shape=replace(VARIANTS[name].shape, layers=1, vocab=258))
    random_checkpoint(tmp_path, config)
    assert read_config(tmp_path) == config


def test_rope_parameters_of_transformers_5_read_as_those_of_4(tmp_path: Path) -> None:
    random_checkpoint(tmp_path, VARIANTS["llama-llama3"])
    path = tmp_path / "config.json"
    keys = json.loads(path.read_text())
    keys["rope_parameters"] = {"rope_theta": keys.pop("rope_theta"), **keys.pop("rope_scaling")}
    path.write_text(json.dumps(keys))
    assert read_config(tmp_path) == VARIANTS["llama-llama3"]


@st.composite
def schedules(draw: st.DrawFn) -> list[dict[str, int]]:
    """Steps of a random run: how many tokens each sequence gets, 1 meaning a decode where something came before."""
    left = {name: draw(st.integers(1, 40)) for name in "abcde"[: draw(st.integers(1, 5))]}
    steps = []
    while left:
        chosen = draw(st.lists(st.sampled_from(sorted(left)), min_size=1, max_size=5, unique=True))
        step = {name: min(left[name], draw(st.sampled_from([1, 1, 1, 2, 7, 16, 40]))) for name in chosen}
        steps.append(step)
        left = {name: count - step.get(name, 0) for name, count in left.items() if count > step.get(name, 0)}
    return steps


def composed(model: Model, steps: list[dict[str, int]], block_size: int, garbage: int) -> dict[str, Tensor]:
    """Logits of each sequence under a schedule, its blocks scattered among those of ``garbage`` dropped sequences."""
    passes = Passes(model, 300, block_size)
    for pages in (*passes.cache.keys, *passes.cache.values):
        pages.fill_(1000.0)
    for index in range(garbage):
        passes.tables.grow(f"garbage{index}", 1 + 5 * index % 11)
    for index in sorted(range(garbage), key=lambda i: 7 * i % 5):
        passes.tables.free(f"garbage{index}")
    logits: dict[str, list[Tensor]] = {}
    for step in steps:
        done = {name: passes.lengths.get(name, 0) for name in step}
        tokens = {name: text(name)[done[name] : done[name] + count] for name, count in step.items()}
        decodes = {name: some[0] for name, some in tokens.items() if len(some) == 1 and done[name]}
        chunks = {name: some for name, some in tokens.items() if name not in decodes}
        for name, found in passes.run(decodes, chunks).items():
            logits.setdefault(name, []).append(found)
    return {name: torch.cat(found) for name, found in logits.items()}


def text(name: str) -> list[int]:
    return [(31 * place * place + 17 * ord(name)) % 250 for place in range(40)]


@cache
def alone(name: str) -> Tensor:
    return Passes(tiny()).run({}, {name: text(name)})[name]


@settings(max_examples=60)
@given(
    schedules(),
    st.sampled_from([1, 4, 16]),
    st.integers(0, 6),
    st.booleans(),
    st.sampled_from([0, 9, 10_000]),
    st.sampled_from([0, 9, 10_000]),
)
def test_a_sequence_in_any_batch_equals_it_alone(
    steps: list[dict[str, int]], block_size: int, garbage: int, in_place: bool, cost: int, most: int
) -> None:
    model = model_of(LLAMA)
    attention = model.attention
    assert isinstance(attention, CPUAttention)
    if in_place:
        attention.decode = decode = InPlaceDecode(attention.heads)
        decode.group_cost_tokens = 4 * cost
    else:
        attention.decode = gathered = GatheredDecode(attention.heads, torch.float32)
        gathered.group_cost_bytes, gathered.group_bytes = 256 * cost, 256 * most
    for name, logits in composed(model, steps, block_size, garbage).items():
        assert relative_error(logits, alone(name)[: logits.shape[0]]) < 1e-5


@pytest.mark.parametrize("way", ["in place", "gathered"])
def test_nan_in_one_sequence_stays_there(way: str) -> None:
    model = model_of(LLAMA)
    assert isinstance(model.attention, CPUAttention)
    ways: dict[str, Decode] = {
        "in place": InPlaceDecode(model.attention.heads),
        "gathered": GatheredDecode(model.attention.heads, torch.float32),
    }
    model.attention.decode = ways[way]
    passes = Passes(model)
    passes.run({}, {"sick": text("a")[:20]})
    passes.run({}, {"well": text("b")[:6]})
    before = passes.run({}, {"twin": text("b")[:6]}), passes.run({"twin": 5}, {})
    assert 0 in passes.tables.blocks("sick")
    for block in passes.tables.blocks("sick"):
        passes.cache.values[0][block * 4 : block * 4 + 4] = torch.nan
        passes.cache.keys[0][block * 4 : block * 4 + 4] = torch.nan
    found = passes.run({"sick": 5, "well": 5}, {})
    assert found["sick"].isnan().all()
    assert relative_error(found["well"], before[1]["twin"]) < 1e-5
    sick = passes.tables.blocks("sick")
    passes.drop("sick")
    passes.cache.clear(sick)
    again = passes.run({}, {"heir": text("b")[:6]})["heir"]
    assert passes.tables.blocks("heir")[0] in sick
    assert relative_error(again, before[0]["twin"]) < 1e-5
    assert relative_error(passes.run({"heir": 5}, {})["heir"], before[1]["twin"]) < 1e-5


class Recorder:
    """A `LoRA` that notes what it is asked and adds a constant to the rows of slot 0."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, str, int, int]] = []

    def begin(self, slots: Tensor) -> None:
        self.rows = (slots == 0).nonzero().squeeze(1)

    def add(self, y: Tensor, x: Tensor, layer: int, group: str) -> None:
        self.calls.append((layer, group, x.shape[1], y.shape[1]))
        y[self.rows] += 0.1


def test_lora_is_asked_for_every_fused_projection_and_base_rows_stay() -> None:
    passes, lora = Passes(tiny()), Recorder()
    prompts = {"a": text("a")[:9], "b": text("b")[:5]}
    found = passes.run({}, prompts, {"a": 0}, lora)
    config = LLAMA
    widths = {"qkv": (64, 64 + 2 * 32), "o": (64, 64), "gate_up": (64, 2 * 112), "down": (112, 64)}
    projections = [(layer, group, *widths[group]) for layer in range(config.shape.layers) for group in widths]
    assert lora.calls == [*projections, (0, "head", 64, config.shape.vocab)]
    assert relative_error(found["a"], alone("a")[:9]) > 0.05
    assert relative_error(found["b"], alone("b")[:5]) < 1e-5


@given(st.sets(st.integers(0, 17)), st.sampled_from([torch.float32, torch.bfloat16]), st.booleans())
@settings(max_examples=30)
def test_logits_of_some_rows_are_those_they_have_among_all(some: set[int], dtype: torch.dtype, adapters: bool) -> None:
    found: list[Tensor] = []
    model, wanted = model_of(LLAMA, dtype), sorted(some)
    for rows in (list(range(18)), wanted):
        passes = Passes(model)
        passes.run({}, {"a": text("a")[:9]})
        batch = passes.batch({"a": 3}, {"b": text("b")[:5], "c": text("a")[:12]}, {"a": 0, "c": 0})
        batch = replace(batch, sample_rows=torch.tensor(rows, dtype=torch.int64))
        found.append(model.forward(batch, passes.cache, Recorder() if adapters else None))
        found.append(torch.cat(list(passes.run({"a": 4, "b": 5, "c": 6}, {}).values())))
    every, after, fewer, later = found
    assert fewer.shape == (len(wanted), every.shape[1]) and fewer.dtype == torch.float32
    if wanted:
        assert relative_error(fewer, every[wanted]) < (1e-5 if dtype == torch.float32 else 2e-2)
    assert torch.equal(later, after)


def test_decoding_reads_in_place_where_that_is_faster() -> None:
    assert isinstance(faster_decode(Heads(8, 4, 64), torch.float32), InPlaceDecode)
    assert isinstance(faster_decode(Heads(32, 32, 64), torch.float32), InPlaceDecode)
    assert isinstance(faster_decode(Heads(32, 8, 64), torch.float32), GatheredDecode)
    assert isinstance(faster_decode(Heads(8, 4, 64), torch.bfloat16), GatheredDecode)


def test_decoding_gathers_where_pytorch_lacks_the_sampled_product(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("sampled_addmm needs a PyTorch compiled with MKL")

    monkeypatch.setattr(torch.sparse, "sampled_addmm", lacking)
    assert isinstance(faster_decode(Heads(8, 4, 64), torch.float32), GatheredDecode)


@given(
    st.lists(st.integers(1, 5000), min_size=1, max_size=40),
    st.sampled_from([1, 16]),
    st.integers(0, 5000),
    st.integers(1, 20000),
)
def test_length_groups_hold_every_sequence_and_their_limits(
    lengths: list[int], page: int, cost: int, most: int
) -> None:
    lengths.sort(reverse=True)
    groups = length_groups(lengths, page, cost, most)
    assert [index for begin, end in groups for index in range(begin, end)] == list(range(len(lengths)))
    for begin, end in groups:
        longest = -(-lengths[begin] // page) * page
        padding = sum(longest - length for length in lengths[begin:end])
        assert end - begin == 1 or ((end - begin) * longest <= most and padding <= cost)
