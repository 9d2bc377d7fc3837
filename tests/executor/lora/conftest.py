"""One thread: the tests share their machine, and their products are tiny."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the executor needs torch")

import torch


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> None:
    torch.set_num_threads(1)
