"""Format: what one kind of trace is, how it is recognised, and how it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from loratory.errors import InputError
from loratory.scenarios.traces.columns import ColumnsSpec
from loratory.scenarios.traces.table import TraceTable


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read. ``time_unit`` and ``block_tokens`` are None if the format or the file determines them.

    ``prefix_cache``: hash ids are required, and a trace without them is refused; ``blocks``: they are read if there
    are any. Only readers that draw requests (ServeGen, Azure Functions counts) use ``rng``, and only ServeGen's uses
    ``window`` (s) and ``rate_scale`` itself; `clean` applies them to the others.
    """

    columns: ColumnsSpec = field(default_factory=ColumnsSpec)
    time_unit: str | None = None
    window: tuple[float, float] | None = None
    rate_scale: float = 1.0
    prefix_cache: bool = False
    block_tokens: int | None = None
    blocks: bool = False
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def refuse_columns(self, path: Path, format: str, why: str) -> None:
        """Raises `InputError` for an option about columns; ``why`` the format has none."""
        named = next((key for key, name in self.columns.model_dump().items() if name is not None), None)
        given = [
            ("time_unit", self.time_unit is not None),
            (f"columns.{named}", named is not None),
            ("prefix_cache", self.prefix_cache),
            ("block_tokens", self.block_tokens is not None),
        ]
        for option, wrong in given:
            if wrong:
                raise InputError(f"{path}: {option} does not apply to {format}, {why}: remove it")


@dataclass(frozen=True, slots=True)
class Head:
    """What a recogniser sees: the path, and the column names (JSON keys) if it is a file of rows."""

    path: Path
    columns: tuple[str, ...] = ()

    def has(self, *columns: str) -> bool:
        """Whether the file has all these columns."""
        return set(columns) <= set(self.columns)


@dataclass(frozen=True, slots=True)
class Format:
    """A trace format: its name in scenarios, one sentence about it, and its recogniser and reader."""

    name: str
    description: str
    recognise: Callable[[Head], bool]
    read: Callable[[Path, ReadOptions], TraceTable]
