"""Published measurements beside predictions, as Markdown: ``python -m sim.cost.compare [KV_TOKENS_CSV]``."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from serving.config import EngineConfig
from serving.errors import InputError
from serving.plan import BatchShape
from sim.catalogue import gpu, model
from sim.cost.memory import kv_blocks
from sim.cost.roofline import RooflineCost


class Comparison(NamedTuple):
    """One published number and its prediction, in milliseconds."""

    what: str
    measured_ms: float
    predicted_ms: float

    @property
    def error(self) -> float:
        """(predicted - measured) / measured."""
        return self.predicted_ms / self.measured_ms - 1.0


LINEAR_TOKENS = (1, 64, 512, 4096)
LINEAR_LAYERS_MS = {"a100-80gb": (8.5, 8.9, 30.5, 238.0), "h100-80gb": (5.0, 5.2, 10.5, 70.8)}
"""Measured kernel times of all linear layers of Llama-2-7B, fp16, at `LINEAR_TOKENS` tokens."""

DECODE_TPOT_MS = {
    "h200": {1: 4.87, 8: 5.10, 32: 6.42, 64: 7.77},
    "h100-80gb": {1: 6.19, 32: 8.46},
    "a100-80gb": {1: 11.9, 32: 16.0},
}
"""AIConfigurator 0.12, Llama-3.1-8B, vLLM 0.24, 1024 in / 256 out: time per output token by batch size."""

PREFILL_MS = {"h200": {1: 21.2, 8: 176.0, 32: 701.0, 64: 1410.0}}
"""The same runs: prefill of the whole batch of 1,024-token prompts."""

_PROMPT = 1024
_MEAN_CONTEXT = _PROMPT + 256 // 2


def linear_layers() -> list[Comparison]:
    """Whole-model linear layers of Llama-2-7B."""
    rows = []
    for name, measured in LINEAR_LAYERS_MS.items():
        cost = RooflineCost(model("llama-2-7b"), gpu(name))
        for tokens, ms in zip(LINEAR_TOKENS, measured, strict=True):
            rows.append(Comparison(f"{name}, {tokens} tokens", ms, 1e3 * cost.linear_seconds(tokens)))
    return rows


def decode_steps() -> list[Comparison]:
    """Decode steps of Llama-3.1-8B at the mean context of the run."""
    rows = []
    for name, batches in DECODE_TPOT_MS.items():
        cost = RooflineCost(model("llama-3.1-8b"), gpu(name))
        for batch, ms in batches.items():
            shape = BatchShape(decode_seqs=batch, kv_tokens=batch * _MEAN_CONTEXT)
            rows.append(Comparison(f"{name}, batch {batch}", ms, 1e3 * cost.step_seconds(shape)))
    return rows


def prefills() -> list[Comparison]:
    """Prefill of a batch of 1,024-token prompts, Llama-3.1-8B."""
    rows = []
    for name, batches in PREFILL_MS.items():
        cost = RooflineCost(model("llama-3.1-8b"), gpu(name))
        for batch, ms in batches.items():
            pairs = batch * _PROMPT * (_PROMPT + 1) / 2
            shape = BatchShape(prefill_tokens=batch * _PROMPT, prefill_seqs=batch, prefill_attention=pairs)
            rows.append(Comparison(f"{name}, {batch} x {_PROMPT} tokens", ms, 1e3 * cost.step_seconds(shape)))
    return rows


def kv_tokens(path: Path) -> list[tuple[str, str, str, str]]:
    """Rows (cell, published, simulated, difference) of a CSV model, max_lora_rank, slots, kv_tokens (vLLM 0.8.5)."""
    rows = []
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            slots = {"max_loras": row["slots"], "max_lora_rank": row["max_lora_rank"], "max_num_seqs": 2048}
            engine = EngineConfig.model_validate(slots)
            spec = model(row["model"].removesuffix("-instruct").replace("qwen2.5", "qwen-2.5"))
            try:
                ours = str(kv_blocks(spec, gpu("h100-64gb"), engine).kv_tokens)
                change = f"{int(ours) / int(row['kv_tokens']) - 1:+.2%}" if row["kv_tokens"].isdigit() else "DIFFERS"
            except InputError:
                ours, change = "OOM", "" if row["kv_tokens"] == "OOM" else "DIFFERS"
            rows.append((f"rank {row['max_lora_rank']}, {row['slots']} slots", row["kv_tokens"], ours, change))
    return rows


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"### {title}", "", f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> str:
    """All tables as Markdown; ``arguments`` may hold the path of a KV-token CSV."""
    text = []
    for title, rows in (
        ("Linear layers, Llama-2-7B", linear_layers()),
        ("Decode step, Llama-3.1-8B, 1024 in / 256 out", decode_steps()),
        ("Prefill, Llama-3.1-8B", prefills()),
    ):
        cells = [(r.what, f"{r.measured_ms:g}", f"{r.predicted_ms:.4g}", f"{r.error:+.1%}") for r in rows]
        text.append(_table(title, ("case", "measured ms", "roofline ms", "error"), cells))
    if arguments:
        head = ("cell", "vLLM 0.8.5 kv_tokens", "memory model", "difference")
        text.append(_table("KV cache, Llama-3.1-8B on H100 64 GB", head, kv_tokens(Path(arguments[0]))))
    return "\n".join(text)


if __name__ == "__main__":
    sys.stdout.write(main(sys.argv[1:]))
