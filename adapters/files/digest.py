"""begin_digest: starts an adapter's digest with the meaning of its configuration; the bytes of its weights follow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from loratory.adapters.files.description import LoRAModule
from loratory.adapters.files.safetensors_header import TensorEntry

_FORMAT = "loratory adapter 1"


def begin_digest(
    base_model: str | None,
    alpha: float,
    use_rslora: bool,
    modules: Sequence[LoRAModule],
    tensors: Sequence[TensorEntry],
) -> hashlib._Hash:
    """A sha256 of the part of a description that the weights' bytes do not hold; update it with those bytes in order.

    PEFT writes one configuration in several ways (the order of a set, its own version); they give one digest.
    """
    content = {
        "format": _FORMAT,
        "base_model": base_model,
        "alpha": alpha,
        "use_rslora": use_rslora,
        "modules": [[module.path, module.rank, module.scaling] for module in modules],
        "tensors": [[tensor.key, tensor.dtype, tensor.shape] for tensor in tensors],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode() + b"\n")


def digest_text(digest: hashlib._Hash) -> str:
    """The digest as records hold it: ``sha256:`` and hex."""
    return f"sha256:{digest.hexdigest()}"
