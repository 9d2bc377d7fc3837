"""ModelShape: what a config.json gives it, its defaults, and the sizes it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loratory.errors import InputError
from loratory.models.decoder import read_shape, shape_of
from loratory.models.shape import ModelShape


def test_a_shape_names_what_is_wrong_with_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="hidden is 0"):
        ModelShape(0, 1, 1, 1, 1, 1, 1)
    with pytest.raises(InputError, match="must be a multiple"):
        ModelShape(8, 1, 3, 2, 1, 1, 1)
    with pytest.raises(InputError, match="cannot be read"):
        read_shape(tmp_path / "nowhere.json")


LLAMA = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3}
LLAMA |= {"intermediate_size": 128, "vocab_size": 100}


def test_shapes_come_from_a_hugging_face_configuration(tmp_path: Path) -> None:
    expected = ModelShape(64, 3, 4, 4, 16, 128, 100)
    assert shape_of(LLAMA, "config.json") == expected
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert read_shape(tmp_path) == read_shape(str(tmp_path / "config.json")) == expected
    qwen = shape_of(LLAMA | {"model_type": "qwen3", "num_key_value_heads": 2}, "config.json")
    assert (qwen.widths("q_proj"), qwen.widths("v_proj"), qwen.widths("o_proj")) == ((64, 512), (64, 256), (512, 64))
    assert (qwen.widths("up_proj"), qwen.widths("down_proj")) == ((64, 128), (128, 64))
    with pytest.raises(InputError, match="model_type 'gpt2'"):
        shape_of(LLAMA | {"model_type": "gpt2"}, "config.json")
    with pytest.raises(InputError, match="num_key_value_heads is None"):
        shape_of(LLAMA | {"model_type": "mistral"}, "config.json")
    with pytest.raises(InputError, match="vocab_size is '100'"):
        shape_of(LLAMA | {"vocab_size": "100"}, "config.json")
