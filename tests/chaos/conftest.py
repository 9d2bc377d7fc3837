"""Chaos needs the server's packages; without them every module of this folder is skipped."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import pytest

THERE = all(map(find_spec, ("torch", "transformers", "fastapi", "uvicorn", "httpx")))


class NeedsServer(pytest.Module):
    """A module whose tests need packages that are not here: it is skipped before it is imported."""

    def collect(self) -> NoReturn:
        """Skips."""
        pytest.skip('chaos needs the server: pip install "loratory[serve]"', allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """pytest makes the module where everything is there."""
    return None if THERE else NeedsServer.from_parent(parent, path=module_path)
