"""reproduce: published measurements of multi-LoRA serving systems, simulated and compared.

Each module named in `REPRODUCTIONS` has a function ``reproduce() -> Reproduction``.
"""

from __future__ import annotations

from importlib import import_module

from loratory.reproduce.comparison import Reproduction

__all__ = ["REPRODUCTIONS", "Reproduction", "reproduce"]

REPRODUCTIONS: dict[str, str] = {
    "slora": "S-LoRA (MLSys 2024): throughput, latency and attainment on an A10G and an A100",
    "vtc": "VTC (OSDI 2024): service gaps of fair and unfair schedulers on an A10G",
    "agullo": "Agullo et al. (2025): vLLM 0.8.5 on an H100, KV memory and one-hour runs",
    "vllm032": "vLLM 0.32 on a CPU: every step recorded",
    "shapes": "Shapes: SGLang issues, a vLLM queue, Punica's popularity",
    "roofline": "Kernel and step times of A100, H100 and H200",
}
"""The reproductions, in the order of docs/fidelity.md."""


def reproduce(name: str) -> Reproduction:
    """Run one reproduction. Raises `KeyError` for a name that is not in `REPRODUCTIONS`."""
    REPRODUCTIONS[name]
    found: Reproduction = import_module(f"loratory.reproduce.{name}").reproduce()
    return found
