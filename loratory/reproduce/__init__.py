"""reproduce: published measurements of multi-LoRA serving systems, simulated and compared.

Each module named in `REPRODUCTIONS` has a function ``reproduce() -> Reproduction``; those in `TAKES_ROWS` have
``reproduce(rows: Path | None = None, settings: Sequence[str] = ()) -> Reproduction``.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from loratory.errors import InputError, several
from loratory.reproduce.comparison import Reproduction

__all__ = ["REPRODUCTIONS", "TAKES_ROWS", "Reproduction", "reproduce"]

REPRODUCTIONS: dict[str, str] = {
    "slora": "S-LoRA (MLSys 2024): throughput, latency and attainment on an A10G and an A100",
    "vtc": "VTC (OSDI 2024): service gaps of fair and unfair schedulers on an A10G",
    "agullo": "Agullo et al. (2025): vLLM 0.8.5 on an H100, KV memory and one-hour runs",
    "vllm032": "vLLM 0.32 on a CPU: every step recorded",
    "vllm-scheduler": "vLLM 0.32's scheduler, recorded and replayed at every step",
    "shapes": "Shapes: SGLang issues, a vLLM queue, LoRA throughput of vLLM and Punica",
    "roofline": "Kernel and step times of A100, H100 and H200",
}
"""The reproductions, in the order of docs/fidelity.md."""


TAKES_ROWS: dict[str, str] = {
    "slora": "a CSV file with the columns of scenarios/published/measured/slora_mlsys24_more.csv",
    "agullo": "a CSV file with the columns of scenarios/published/measured/agullo_h100_vllm085_more.csv",
    "vllm-scheduler": "a folder like scenarios/published/measured/vllm032_scheduler",
}
"""The reproductions that take other measurements than those published here, and changed keys: what a user gives."""


def reproduce(name: str, rows: Path | None = None, settings: Sequence[str] = ()) -> Reproduction:
    """Run one reproduction, on measurements of the user's (``rows``) and with changed keys (``settings``) if it can.

    Raises `KeyError` for a name that is not in `REPRODUCTIONS`, `InputError` for bad rows or settings.
    """
    REPRODUCTIONS[name]
    module = import_module(f"loratory.reproduce.{name.replace('-', '_')}")
    if rows is None and not settings:
        plain: Reproduction = module.reproduce()
        return plain
    if name not in TAKES_ROWS:
        option = "--rows" if rows is not None else "--set"
        raise InputError(f"reproduction {name} takes no {option}: those that do are {several(TAKES_ROWS)}")
    found: Reproduction = module.reproduce(rows, settings)
    return found
