"""quantised: whether anything in a checkpoint's config, or beside it, shows that the checkpoint is quantised."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from loratory.errors import InputError, shortened
from loratory.git_lfs import refuse_pointer
from loratory.models.config_file import read_object

_WORDS = ("quant", "compression_config")
"""Parts of the names of keys that show it: ``quantization_config`` (transformers), ``compression_config``
(compressed-tensors), ``quantization`` (MLX, TensorRT-LLM), ``quant_method``, ``quantize_config``,
``quantization_bit`` (ChatGLM) and others."""

_FLAGS = ("load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit", "bits", "w_bit", "wbits", "weight_bits")
"""Keys whose value alone shows it: bitsandbytes' switches, and the bits of a weight (below 16)."""

_METHODS = ("quant_method", "quant_algo", "quant_type", "kv_cache_quant_algo", "kv_cache_scheme")
"""Keys inside such a mapping that name the method. A mapping that has some of them, all empty, quantises nothing:
TensorRT-LLM writes ``{"quant_algo": null, "kv_cache_quant_algo": null}`` for a model in 16 bit."""

_NESTED = ("config", "language_model", "text", "llm")
"""Parts of the names of keys that hold another config."""

_FILES = "*quant*.json"
"""Files beside config.json: ``hf_quant_config.json`` (NVIDIA ModelOpt), ``quantize_config.json`` (AutoGPTQ),
``quant_config.json`` (AutoAWQ), ``quant_model_description.json`` (Ascend)."""

_NAMES = (
    ".qweight .qzeros .scales .g_idx .weight_scale .weight_scale_inv .weight_scale_2 .weight_packed .weight_zero_point "
    ".input_scale .k_scale .v_scale .absmax .quant_map .SCB .weight_format .q_weight .q_scale .trellis .codebooks "
    ".weight_shape .weight_blocks .weight_scales .qscale .codes .centroids .W_q ._data ._scale _blocks _scales qdata"
)
_TENSORS = tuple(_NAMES.split())
"""Ends of the names of tensors that only quantised checkpoints have, by method: GPTQ and AWQ, fp8 and
compressed-tensors, bitsandbytes, ExLlama, AQLM, VPTQ, HQQ, quanto, mxfp4 (gpt-oss), torchao."""

_PLAIN = ("F64", "F32", "F16", "BF16")
"""Dtypes, as safetensors files spell them, of an unquantised ``.weight``."""

_COUNTS = ("I64", "BOOL", None)
"""Dtypes of positions and masks, which some checkpoints hold beside their weights; their old masks are ``.bias`` in
U8. A tensor in any other dtype (F8_E4M3, F4, U8, I8, I32 ...) holds packed weights or their scales."""

_RECIPE = re.compile(rb"\b(Quantization|GPTQ|AWQ)Modifier\b")
"""What the recipe.yaml of LLM Compressor and SparseML holds where it quantised."""

_MAX_HEADER_BYTES = 16 << 20
_MAX_FILES = 1000
_MAX_RECIPE_BYTES = 1 << 20


def quantised(config: Mapping[str, Any], folder: Path | None = None) -> str | None:
    """The first sign that a checkpoint is quantised, such as ``quantization_config (gptq)``; None where there is none.

    ``config`` is its config.json. With ``folder``, which holds it, the files beside it count as well: those named after
    quantisation, and the names and dtypes of tensors. Weights that cannot be read are no sign; a file named after
    quantisation that cannot be read is one. Raises `InputError` for such a file that Git LFS has not fetched.

    Empty values (``null``, ``{}``, ``false``, ``"none"``) are no sign.
    """
    return next(_signs(config, folder), None)


def _signs(config: Mapping[str, Any], folder: Path | None) -> Iterator[str]:
    yield from _in_mapping(config, "")
    if folder is None or not folder.is_dir():
        return
    yield from _beside(folder)
    yield from _in_weights(folder)


def _in_mapping(values: Mapping[str, Any], path: str, depth: int = 0) -> Iterator[str]:
    """Signs among the keys of ``values``, and of configs in it: a vision-language wrapper nests its text model's."""
    for word, value in values.items():
        key = str(word)
        name = f"{path}{key}"
        if _telling(key):
            if _says(value):
                yield name + _method(value)
        elif key in _FLAGS:
            if _flag(value):
                yield name
        elif isinstance(value, Mapping) and depth < 8 and any(part in key for part in _NESTED):
            yield from _in_mapping(value, f"{name}.", depth + 1)


def _telling(key: str) -> bool:
    return any(word in key.lower() for word in _WORDS)


def _says(value: Any) -> bool:
    """Whether the value of such a key quantises anything."""
    if isinstance(value, Mapping):
        named = [value[key] for key in _METHODS if key in value]
        if named and not any(map(_says, named)):
            return any(_flag(value.get(key)) for key in _FLAGS)
        return any(map(_says, value.values()))
    if isinstance(value, str):
        return value.strip().lower() not in ("", "none", "null", "no", "false")
    if isinstance(value, list | tuple):
        return bool(value)
    return value is not None and value is not False and value != 0


def _flag(value: Any) -> bool:
    return value is True or (type(value) in (int, float) and 0 < value < 16)


def _method(value: Any) -> str:
    """`` (fp8)`` where the value names its method."""
    if isinstance(value, str):
        return f" ({shortened(value, 40)})"
    method = _named(value) if isinstance(value, Mapping) else None
    return "" if method is None else f" ({shortened(method, 40)})"


def _named(values: Mapping[str, Any]) -> str | None:
    names = (values.get(key) for key in _METHODS)
    method = next((name for name in names if isinstance(name, str) and _says(name)), None)
    if method is not None:
        return method
    inside = (_named(value) for value in values.values() if isinstance(value, Mapping))
    return next((name for name in inside if name is not None), None)


def _beside(folder: Path) -> Iterator[str]:
    for path in _files(folder, _FILES):
        try:
            config = read_object(path)
        except InputError:
            refuse_pointer(path)
            yield f"{path.name} (which cannot be read)"
            continue
        sign = next(_in_mapping(config, ""), None)
        telling = any(key in _FLAGS or _telling(key) for key in config)
        if sign is not None or (config and not telling):
            yield path.name + _method(config)
    for path in _files(folder, "recipe.yaml"):
        if (recipe := _RECIPE.search(_text(path))) is not None:
            yield f"{path.name} ({recipe[0].decode()})"
    gguf = _files(folder, "*.gguf")
    if gguf and not any(_files(folder, pattern) for pattern in ("*.safetensors", "*.bin", "*.pt", "*.pth")):
        yield f"{gguf[0].name} (GGUF)"


def _in_weights(folder: Path) -> Iterator[str]:
    for path in _files(folder, "*.safetensors.index.json"):
        try:
            named = read_object(path).get("weight_map")
        except InputError:
            continue
        yield from _by_name(named if isinstance(named, Mapping) else (), path.name)
    for path in _files(folder, "*.safetensors"):
        header = _header(path)
        yield from _by_name(header, path.name)
        for name, entry in header.items():
            dtype = entry.get("dtype") if isinstance(entry, Mapping) else None
            mask = name.endswith(("_ids", ".bias", "masked_bias"))
            packed = dtype not in (*_PLAIN, *_COUNTS) and not mask
            if packed or (dtype not in _PLAIN and name.endswith(".weight")):
                yield f"{path.name} (tensor {shortened(name, 80)} in {dtype})"


def _text(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_RECIPE_BYTES)
    except OSError:
        return b""


def _by_name(names: Iterable[str], file: str) -> Iterator[str]:
    for name in names:
        if name.endswith(_TENSORS):
            yield f"{file} (tensor {shortened(name, 80)})"


def _header(path: Path) -> Mapping[str, Any]:
    """The header of a safetensors file, unchecked; empty for a file without one."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            header = json.loads(file.read(length)) if 0 < length <= _MAX_HEADER_BYTES else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return header if isinstance(header, dict) else {}


def _files(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(path for path in islice(folder.glob(pattern), _MAX_FILES) if path.is_file())
    except OSError:
        return []
