"""Format: what one kind of trace is, how it is recognised, and how it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from scenarios.traces.table import TraceTable
from scenarios.workload import Columns


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read. Only the generic reader uses ``columns`` and ``time_unit``; only readers that draw requests from
    fits (ServeGen, Azure Functions counts) use ``rng``, ``window`` (s) and ``rate_scale`` themselves."""

    columns: Columns = field(default_factory=Columns)
    time_unit: str | None = None
    window: tuple[float, float] | None = None
    rate_scale: float = 1.0
    prefix_cache: bool = False
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))


@dataclass(frozen=True, slots=True)
class Head:
    """What recognising looks at: the path, and the column names (JSON keys) where it is a file of rows."""

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
