"""One thread for PyTorch, and tiny models. Without torch, every module of this folder is skipped."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import pytest

if find_spec("torch"):
    import torch
    from bench_machine import Oracle, Zoo

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


class NeedsTorch(pytest.Module):
    """A module whose tests need torch, where there is none: it is skipped before it is imported."""

    def collect(self) -> NoReturn:
        """Skips."""
        pytest.skip("the executor needs torch", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Without torch, every module of this folder is skipped; otherwise pytest makes the module."""
    return None if find_spec("torch") else NeedsTorch.from_parent(parent, path=module_path)


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
