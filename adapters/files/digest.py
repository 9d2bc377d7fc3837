"""begin_digest: the start of an adapter's digest, over what its configuration means; its weights' bytes follow."""

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
    """A sha256 of all of a description that the weights' bytes do not decide; update it with those, in their order.

    PEFT writes the same configuration in several ways (the order of a set, its own version): they have one digest.
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
    """The digest as records have it."""
    return f"sha256:{digest.hexdigest()}"
