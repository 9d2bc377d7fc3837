"""One thread for PyTorch, and the tiny models of the executor's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the executor needs torch")

import torch
from bench_machine import Oracle, Zoo

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", params=FAMILIES)
def zoo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """A tiny model of each family with adapters of every kind."""
    return Zoo.make(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """A tiny Llama with adapters of every kind."""
    return Zoo.make(Path(tmp_path_factory.mktemp("llama")), "llama")


@pytest.fixture(scope="session")
def oracle(zoo: Zoo) -> Oracle:
    """transformers and PEFT over the same files."""
    return Oracle(zoo)
