"""GenTD: a production sequence of LoRA use without timestamps (GenTD26, Stable Diffusion).

Columns ``seq,base_model,lora_ids``. Its order is kept; when requests come, and how long they are, the scenario says.
An empty ``lora_ids`` is the base model. Several ids joined by ``|`` are several adapters on one image; a request here
has one adapter, so the first is taken, and the rows are counted in the notes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scenarios.traces.files import Source, labels_of, read_frame, table_of
from scenarios.traces.format import Format, Head, ReadOptions
from scenarios.traces.table import TraceTable

_COLUMNS = ("seq", "base_model", "lora_ids")


def read(path: Path, options: ReadOptions) -> TraceTable:
    """The adapter of each request, by ``seq``; ``base_model`` is the client."""
    source = Source(path, read_frame(path)).having(_COLUMNS, "gentd")
    text = source.frame["lora_ids"].astype("string").str.strip()
    several = int(text.str.contains("|", regex=False, na=False).sum())
    first = text.str.split("|", regex=False).str[0].str.strip()
    order = np.argsort(source.numbers("seq"), kind="stable")
    notes = [f"rows that name several adapters, of which the first is kept: {several}"] if several else []
    if (order != np.arange(len(order))).any():
        notes.append("rows were put in the order of seq")
    return table_of(
        "gentd",
        path,
        adapter=labels_of(first.where(first != "").tolist()).take(order),
        client=source.labels("base_model").take(order),
        notes=notes,
    )


def _recognise(head: Head) -> bool:
    return head.has(*_COLUMNS)


FORMAT = Format(
    "gentd",
    "GenTD-like CSV: seq,base_model,lora_ids; an order of adapter use without times or lengths",
    _recognise,
    read,
)
