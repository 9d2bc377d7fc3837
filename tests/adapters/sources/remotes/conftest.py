"""What the tests of all remotes share: a cache of their own that does not wait before it tries again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from loratory.adapters.sources.cache import AdapterCache
from loratory.adapters.sources.remote import DownloadLimits

QUICK = DownloadLimits(silence_s=20, attempts=2, retry_wait_s=0)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[AdapterCache]:
    with AdapterCache(tmp_path / "cache", limits=QUICK) as cache:
        yield cache
