"""Without torch or FastAPI, every module of this folder is skipped."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import pytest


class NeedsServer(pytest.Module):
    """A module whose tests need torch and FastAPI, where one is missing: it is skipped before it is imported."""

    def collect(self) -> NoReturn:
        """Skips."""
        pytest.skip("the server needs torch and fastapi", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Without torch or FastAPI, every module of this folder is skipped; otherwise pytest makes the module."""
    there = find_spec("torch") and find_spec("fastapi")
    return None if there else NeedsServer.from_parent(parent, path=module_path)
