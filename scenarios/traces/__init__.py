"""traces: published request logs, one file per format, read into a `TraceTable`.

`read_trace` reads a file, `check` reports on it, `convert` writes it in the generic format, `formats` lists them.
"""

from __future__ import annotations

from loratory.scenarios.traces.clean import clean
from loratory.scenarios.traces.convert import convert
from loratory.scenarios.traces.format import Format, ReadOptions
from loratory.scenarios.traces.known import detect, formats, read_trace
from loratory.scenarios.traces.report import TraceReport, check
from loratory.scenarios.traces.table import Labels, TraceTable

__all__ = [
    "Format",
    "Labels",
    "ReadOptions",
    "TraceReport",
    "TraceTable",
    "check",
    "clean",
    "convert",
    "detect",
    "formats",
    "read_trace",
]
