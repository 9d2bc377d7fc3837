"""GenTD: a production sequence of LoRA use without timestamps (GenTD26, Stable Diffusion).

Columns ``seq,base_model,lora_ids``. Its order is kept; the scenario gives arrivals and lengths. An empty ``lora_ids``
is the base model. Several ids joined by ``|`` are several adapters on one image; a request here has one adapter, so the
first is used, and a note counts these rows.
"""

from __future__ import annotations

from pathlib import Path

from loratory.scenarios.traces.format import Format, Head, ReadOptions
from loratory.scenarios.traces.layout import Layout
from loratory.scenarios.traces.rows import read_rows
from loratory.scenarios.traces.table import TraceTable


def read(path: Path, options: ReadOptions) -> TraceTable:
    """The adapter of each request, by ``seq``; ``base_model`` is the client."""
    own = {"client": "base_model", "adapter": "lora_ids"}
    return read_rows(path, options, Layout("gentd", own, needs=("client", "adapter"), first_of="|", order="seq"))


def _recognise(head: Head) -> bool:
    return head.has("seq", "base_model", "lora_ids")


FORMAT = Format(
    "gentd",
    "GenTD-like CSV: seq,base_model,lora_ids; an order of adapter use without times or lengths",
    _recognise,
    read,
)
