"""One thread: the tests share their machine, and their products are tiny."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
