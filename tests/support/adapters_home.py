"""Adapters home: an operator's home with adapters in it, and ``loratory adapters`` as it is called there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from adapters_on_disk import BASE, tensors, write
from command import Command


def adapters_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An operator's home with three adapters in it and nothing else, and the working folder."""
    for name in ("LORATORY_REGISTRY", "LORATORY_CACHE", "LORATORY_CACHE_SIZE", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("sql", "sql-next", "chat")):
        write(tmp_path / "adapters" / name, found=tensors(seed=seed))
    shapes = {"model_type": "llama", "hidden_size": BASE.hidden, "num_hidden_layers": BASE.layers}
    shapes |= {"num_attention_heads": BASE.heads, "num_key_value_heads": BASE.kv_heads, "vocab_size": BASE.vocab}
    shapes |= {"intermediate_size": BASE.intermediate, "max_position_embeddings": 128}
    (tmp_path / "config.json").write_text(json.dumps(shapes))
    return tmp_path


def ok(loratory: Command, *arguments: object) -> str:
    done = loratory("adapters", *arguments)
    assert (done.code, done.err) == (0, ""), done.err
    return done.out


def refused(loratory: Command, *arguments: object) -> str:
    """Bad input: exit code 2, one line on stderr, nothing on stdout."""
    done = loratory("adapters", *arguments)
    lines = done.err.splitlines()
    assert done.code == 2 and done.out == "" and len(lines) == 1 and lines[0].startswith("loratory: "), done
    return lines[0]
