"""GPUs and base models by name: ``gpu(name)``, ``model(name_or_path)``, and what follows from their shapes.

The data are ``gpus.yaml`` and ``models.yaml`` beside this file; every entry names its source.
"""

from __future__ import annotations

from loratory.sim.catalogue.gpu import GPU, gpu, gpu_names
from loratory.sim.catalogue.loader import model, model_names
from loratory.sim.catalogue.model import DTYPE_BYTES, ModelSpec, dtype_bytes, resolve_targets

__all__ = [
    "DTYPE_BYTES",
    "GPU",
    "ModelSpec",
    "dtype_bytes",
    "gpu",
    "gpu_names",
    "model",
    "model_names",
    "resolve_targets",
]
