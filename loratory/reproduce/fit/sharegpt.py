"""sharegpt: pairs of prompt and output lengths from the ShareGPT data set, as vLLM's serving benchmark picks them.

    python -m loratory.reproduce.fit.sharegpt ShareGPT_V3_unfiltered_cleaned_split.json > sharegpt_lengths.csv

The first two turns of each conversation of two turns or more; prompts of 4 to 1,024 tokens, outputs of 4 or more,
2,048 together at most. No tokenizer is available, so tokens are estimated from the text (a word of up to eight letters,
three digits, or a run of punctuation is one) and then scaled, prompts and outputs each by one factor, to the means
Agullo et al. log for Llama-3.1's tokenizer: 53,946,690 prompt and 47,536,914 output tokens in 241,920 requests.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from loratory.serving.workload import Floats, Ints

MEAN_PROMPT = 53_946_690 / 241_920
MEAN_OUTPUT = 47_536_914 / 241_920
PAIRS = 3_000
_PIECE = re.compile(r"[^\r\n\w]?[^\W\d_]+|\d{1,3}| ?[^\s\w]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def estimated_tokens(text: str) -> int:
    """Approximate number of tokens that a byte-pair tokenizer makes of ``text``."""
    tokens = 0
    for piece in _PIECE.findall(text):
        word = piece.strip()
        if word.isascii():
            tokens += 1 if len(word) <= 8 else 1 + (len(word) - 5) // 4
        else:
            tokens += max(1, round(len(word.encode()) / 3.2))
    return tokens


def conversations(text: str) -> list[dict[str, Any]]:
    """The conversations in the file; only the complete ones if it is truncated."""
    try:
        found: list[dict[str, Any]] = json.loads(text)
    except json.JSONDecodeError:
        found = json.loads(text[: text.rindex("\n  },\n  {")] + "\n  }]")
    return found


def pairs(prompts: Floats, outputs: Floats) -> tuple[Ints, Ints]:
    """`PAIRS` whole lengths spread evenly over the outputs, scaled to the published means."""
    prompt_scale = output_scale = 1.0
    for _ in range(50):
        p, o = np.rint(prompts * prompt_scale), np.rint(outputs * output_scale)
        kept = (p >= 4) & (o >= 4) & (p <= 1024) & (p + o <= 2048)
        p, o = p[kept], o[kept]
        order = np.lexsort((p, o))
        chosen = order[((np.arange(PAIRS) + 0.5) * len(order) / PAIRS).astype(np.int64)]
        p, o = p[chosen], o[chosen]
        prompt_scale *= MEAN_PROMPT / p.mean()
        output_scale *= MEAN_OUTPUT / o.mean()
    return p.astype(np.int64), o.astype(np.int64)


def main(path: Path) -> str:
    """The CSV: prompt_tokens, output_tokens."""
    turns = [c["conversations"][:2] for c in conversations(path.read_text("utf-8")) if len(c["conversations"]) >= 2]
    lengths = np.array([[estimated_tokens(turn["value"]) for turn in pair] for pair in turns], dtype=np.float64)
    rows = zip(*(column.tolist() for column in pairs(lengths[:, 0], lengths[:, 1])), strict=True)
    return "\n".join(["prompt_tokens,output_tokens", *(f"{p},{o}" for p, o in rows)]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(main(Path(sys.argv[1])))
