"""Files of a tiny model with adapters. Without torch and FastAPI, every module of this folder is skipped."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import pytest

THERE = all(map(find_spec, ("torch", "transformers", "fastapi", "uvicorn")))

if THERE:
    import torch
    from running_server import TinyFiles


class NeedsServer(pytest.Module):
    """A module whose tests need the server's packages, where they are not: it is skipped before it is imported."""

    def collect(self) -> NoReturn:
        """Skips."""
        pytest.skip(
            'the server needs torch, transformers, fastapi: pip install "loratory[serve]"', allow_module_level=True
        )


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Without the packages, every module of this folder is skipped; otherwise pytest makes the module."""
    return None if THERE else NeedsServer.from_parent(parent, path=module_path)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    """A tiny checkpoint with adapters a0, a1, a2."""
    return TinyFiles(tmp_path_factory.mktemp("tiny"))
