"""known_error: what the roofline was compared with, and how far off it was there, from a generated summary."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources
from typing import Any

from loratory.serving.engine_presets import ENGINE_PRESETS

_NOT_MEASURED = "; not measured: "


@cache
def measured() -> tuple[dict[str, Any], ...]:
    """The kinds of setting that were compared: ``python -m loratory.reproduce.known_errors`` writes the file."""
    text = resources.files("loratory.sim.cost").joinpath("roofline_errors.json").read_text(encoding="utf-8")
    return tuple(json.loads(text))


def known_error(gpu: str, engine: str, other_dtypes: Sequence[str] = (), ahead: bool | None = None) -> str:
    """One sentence on a GPU, an engine (a preset's name, or "none") and dtypes that are not of 16 bit.

    ``ahead``: whether the engine plans ahead; None: as the preset does by default, which is how it was measured.
    """
    parts = []
    for kind in measured():
        subject = "roofline with adapters" if kind["adapters"] else "base model"
        cells = "measured cells" if kind["adapters"] else "published figures"
        parts.append(
            f"{subject}: {kind['what']} {kind['mean_error']:.0%} off on average, {kind['worst_error']:.0%} at most, "
            f"over {kind['figures']} {cells} of {', '.join(kind['gpus'])}, {_title(kind['engine'])}, of which "
            f"{kind['fitted']} set its constants"
        )
    family = gpu.partition("-")[0]
    unmeasured = []
    if not any(family == each.partition("-")[0] for kind in measured() for each in kind["gpus"]):
        unmeasured.append(gpu)
    if not any(family == each.partition("-")[0] for kind in measured() if kind["adapters"] for each in kind["gpus"]):
        unmeasured.append(f"adapters on {gpu}")
    if (preset := ENGINE_PRESETS.get(engine)) is not None:
        otherwise = ahead is not None and ahead != preset.async_scheduling
        if otherwise or not any(engine == kind["engine"] for kind in measured() if kind["adapters"]):
            word = f" with async_scheduling {str(ahead).lower()}" if otherwise else ""
            unmeasured.append(f"adapters under {preset.title}{word}")
    unmeasured += sorted(other_dtypes)
    if gpu in unmeasured:
        unmeasured = [each for each in unmeasured if each != f"adapters on {gpu}"]
    return "; ".join(parts) + (_NOT_MEASURED + ", ".join(unmeasured) if unmeasured else "")


def together(sentences: Iterable[str]) -> str:
    """The known errors of several cost models in one sentence: what was measured once, what was not for all of them.

    >>> together(["step 7% off; not measured: fp8", "step 7% off; not measured: l40s, fp8"])
    'step 7% off; not measured: fp8, l40s'
    """
    found: dict[str, dict[str, None]] = {}
    for sentence in sentences:
        said, _, left = sentence.partition(_NOT_MEASURED)
        found.setdefault(said, {}).update(dict.fromkeys(left.split(", ") if left else ()))
    return "; ".join(said + (_NOT_MEASURED + ", ".join(left) if left else "") for said, left in found.items() if said)


def _title(engine: str) -> str:
    preset = ENGINE_PRESETS.get(engine)
    return preset.title if preset is not None else engine.replace("vllm-", "vLLM ")
