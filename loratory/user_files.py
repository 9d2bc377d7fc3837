"""User files: where a user's registry and downloads are, unless an option or a variable names another place."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from loratory.errors import InputError

if TYPE_CHECKING:
    from loratory.adapters.sources.cache import AdapterCache

REGISTRY_VARIABLE = "LORATORY_REGISTRY"
CACHE_VARIABLE = "LORATORY_CACHE"
CACHE_SIZE_VARIABLE = "LORATORY_CACHE_SIZE"
MODELS_VARIABLE = "LORATORY_MODELS"

DEFAULT_CACHE_SIZE = "64GiB"
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def user_registry() -> Path:
    """The file of the user's own registry; this function creates nothing."""
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return data / "loratory" / "adapters.db"


def user_cache() -> Path:
    """The folder of downloaded adapters: the one `CACHE_VARIABLE` names, or the user's own; nothing is created."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    return _cache() / "adapters"


def user_models() -> Path:
    """The folder of released models: the one `MODELS_VARIABLE` names, or the user's own; nothing is created."""
    named = os.environ.get(MODELS_VARIABLE)
    return Path(named) if named else _cache() / "models"


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loratory"


@contextmanager
def adapter_cache(folder: Path | None = None, size: str | None = None) -> Iterator[AdapterCache]:
    """The cache in ``folder`` (by default `user_cache`), closed at the end.

    ``size``: its limit as a text such as ``20GiB``; by default what `CACHE_SIZE_VARIABLE` holds, or 64 GiB.
    """
    from loratory.adapters.sources.cache import AdapterCache

    limit = size or os.environ.get(CACHE_SIZE_VARIABLE) or DEFAULT_CACHE_SIZE
    with AdapterCache(folder or user_cache(), size_bytes(limit)) as cache:
        yield cache


def size_bytes(text: str, option: str = f"--cache-size (or {CACHE_SIZE_VARIABLE})") -> int:
    """The bytes that a text such as ``20GiB``, ``500 MB`` or ``1000`` means. ``option``: where it was given.

    >>> size_bytes("1.5 KiB")
    1536
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if match is None or match.group(2) not in _UNITS or not (size := int(float(match[1]) * _UNITS[match[2]])):
        raise InputError(f"{option} is {text!r}, which is not a size above 0: write 20GiB or 500MB")
    return size
