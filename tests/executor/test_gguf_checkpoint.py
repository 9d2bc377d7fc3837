"""A GGUF file as a checkpoint: the same tensors in Hugging Face's order, the same config, tokens and template."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("gguf", reason="GGUF files need the package gguf")

from safetensors.torch import load_file
from tiny_gguf import TEMPLATE, tiny_config, tiny_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

from loratory.errors import InputError
from loratory.executor.checkpoint import Checkpoint
from loratory.executor.gguf_checkpoint import gguf_checkpoint


def test_every_tensor_comes_back(tmp_path: Path) -> None:
    """In float32, to the last bit; transformers computes with them what it computes with the original."""
    original = tiny_gguf(tmp_path / "tiny.gguf")
    gguf_checkpoint(tmp_path / "tiny.gguf", tmp_path / "made", torch.float32)
    made = load_file(tmp_path / "made" / "model.safetensors")
    assert made.keys() == original.keys()
    assert all(torch.equal(made[name], original[name]) for name in original)
    config = Checkpoint.open(tmp_path / "made").config
    assert config == tiny_config()
    tokens = torch.arange(20)[None]
    first, second = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32)(tokens).logits
        for name in ("made", "tiny.folder")
    )
    assert torch.equal(first, second)


def test_quantised_tensors_are_the_numbers_they_stand_for(tmp_path: Path) -> None:
    """Q8_0 keeps 8 bits of each number and a scale for 32 of them; bfloat16 keeps 8 bits."""
    original = tiny_gguf(tmp_path / "tiny.gguf", quantised=True)
    gguf_checkpoint(tmp_path / "tiny.gguf", tmp_path / "made")
    made = load_file(tmp_path / "made" / "model.safetensors")
    for name, tensor in original.items():
        assert made[name].dtype == torch.bfloat16
        most = float(tensor.abs().max())
        assert float((made[name].float() - tensor).abs().max()) < most * (1 / 254 + 1 / 256), name
    assert Checkpoint.open(tmp_path / "made").config.dtype == "bfloat16"


def test_the_tokenizer_and_its_template(tmp_path: Path) -> None:
    """Digits stand apart, as SmolLM was trained; control tokens are one token each, and end of turn is the end."""
    tiny_gguf(tmp_path / "tiny.gguf")
    gguf_checkpoint(tmp_path / "tiny.gguf", tmp_path / "made")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "made")
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("hello  12")) == ["hello", "Ġ", "Ġ", "1", "2"]
    said = tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    assert said == "<|im_start|>hello<|im_end|>"
    assert tokenizer.chat_template == TEMPLATE
    ids = tokenizer.encode(said)
    assert (ids[0], ids[-1], len(ids)) == (1, 2, 3) and tokenizer.eos_token_id == 2
    assert tokenizer.decode(tokenizer.encode("naïve ☃ 3")) == "naïve ☃ 3"
    assert json.loads((tmp_path / "made" / "generation_config.json").read_text())["eos_token_id"] == 2
    assert (tmp_path / "made" / "model.safetensors").stat().st_mode == (
        tmp_path / "made" / "config.json"
    ).stat().st_mode


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda facts: facts.update(architecture="qwen2"), "architecture 'qwen2'"),
        (lambda facts: facts.update(pre="llama-bpe"), "a tokenizer 'gpt2' with 'llama-bpe'"),
        (lambda facts: facts.update(tokens=facts["tokens"][:-1]), "model.embed_tokens.weight"),
    ],
)
def test_what_is_no_such_model_is_refused(change: Callable[[dict[str, Any]], None], said: str, tmp_path: Path) -> None:
    tiny_gguf(tmp_path / "tiny.gguf", change=change)
    with pytest.raises(InputError, match=said):
        gguf_checkpoint(tmp_path / "tiny.gguf", tmp_path / "made")
    assert not (tmp_path / "made" / "model.safetensors").exists()


def test_a_file_that_lacks_a_tensor_or_is_no_gguf_is_refused(tmp_path: Path) -> None:
    tiny_gguf(tmp_path / "tiny.gguf", without="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        gguf_checkpoint(tmp_path / "tiny.gguf", tmp_path / "made")
    whole = (tmp_path / "tiny.gguf").read_bytes()
    for broken in (b"", b"PK\3\4" + whole[4:], whole[:100], whole[: len(whole) // 2]):
        (tmp_path / "broken.gguf").write_bytes(broken)
        with pytest.raises(InputError, match="no readable GGUF file"):
            gguf_checkpoint(tmp_path / "broken.gguf", tmp_path / "made")
