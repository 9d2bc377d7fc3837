"""Checkpoint: a Hugging Face model folder with safetensors weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loratory.errors import InputError
from loratory.executor.model_config import ModelConfig, from_hugging_face
from loratory.git_lfs import HEAD_BYTES, LFS_POINTER, lfs_pointer
from loratory.models.config_file import read_object
from loratory.models.decoder import decoder

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Dtypes a model may run in."""

_STORED = ("F64", "F32", "F16", "BF16")


class TensorSource(Protocol):
    """Where a model's weights come from."""

    def get(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor of a checkpoint called ``name``, of the shape given, in any floating dtype, on any device."""


class Checkpoint:
    """An opened folder: its config read, its weight files' headers checked, tensors read on demand."""

    def __init__(self, folder: Path, config: ModelConfig, where: Mapping[str, Path]) -> None:
        self.folder = folder
        self.config = config
        self._where = where
        self._files: dict[Path, Any] = {}

    @classmethod
    def open(cls, folder: str | Path) -> Checkpoint:
        """Open ``folder``. Raises `InputError` for what is missing, broken or not supported."""
        folder = Path(folder)
        config = read_config(folder)
        return cls(folder, config, _weight_map(folder))

    def get(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """See `TensorSource.get`. Raises `InputError` for a missing, misshapen, quantised or unreadable tensor."""
        path = self._where.get(name)
        if path is None:
            raise InputError(f"checkpoint {self.folder} has no tensor {name}: give a complete checkpoint")
        if path not in self._files:
            self._files[path] = _open(path)
        try:
            part = self._files[path].get_slice(name)
            stored, dtype = tuple(part.get_shape()), part.get_dtype()
            if dtype not in _STORED:
                raise InputError(
                    f"tensor {name} of {path} is stored as {dtype}: give an unquantised checkpoint (F32, BF16 or F16)"
                )
            if stored != shape:
                raise InputError(
                    f"tensor {name} of {path} has shape {list(stored)}, but config.json asks for {list(shape)}: "
                    "give the config.json that belongs to the weights"
                )
            tensor: Tensor = self._files[path].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise InputError(f"tensor {name} of {path} cannot be read ({_line(error)}): copy the file again") from None
        return tensor


def read_config(folder: str | Path) -> ModelConfig:
    """The `ModelConfig` of a checkpoint folder. Raises `InputError` for a missing, broken or unsupported config."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"model folder {folder} does not exist: give a Hugging Face checkpoint folder")
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"model folder {folder} holds no config.json: give a Hugging Face checkpoint folder")
    given = read_object(path)
    shape = decoder(given, str(path), folder).shape
    from transformers import CONFIG_MAPPING  # slow to import, and only a checkpoint's reader needs it

    known = {"num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim}
    try:
        completed = CONFIG_MAPPING[shape.family].from_dict(given | known).to_dict()
    except Exception as error:  # transformers raises what its validators raise, of many types
        raise InputError(f"{path}: transformers refuses it ({_line(error)}): correct the file") from None
    # The file's own dtype, which transformers writes over; and the ends of a sequence that its generate would use.
    keys = {**completed, "dtype": given.get("dtype") or given.get("torch_dtype")}
    generation = folder / "generation_config.json"
    if generation.is_file() and (ends := read_object(generation).get("eos_token_id")) is not None:
        keys["eos_token_id"] = ends
    return from_hugging_face(keys, str(path))


def resolve_dtype(dtype: str, config: ModelConfig) -> torch.dtype:
    """The torch dtype called ``dtype``; ``auto`` is the checkpoint's own. Raises `InputError` for another name."""
    name = config.dtype if dtype == "auto" else dtype
    if name not in DTYPES:
        raise InputError(f"dtype {name!r} is not supported: use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def _weight_map(folder: Path) -> dict[str, Path]:
    """Tensor name -> file that holds it, from the index or the only file; every file's header is read."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = read_object(index).get("weight_map")
        if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
            raise InputError(f"{index} has no weight_map: copy the checkpoint again")
        files = sorted(set(named.values()))
    elif (folder / "model.safetensors").is_file():
        named, files = None, ["model.safetensors"]
    else:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pth"))
        why = "only pickled weights: save them as safetensors" if pickled else "no weights: copy model.safetensors"
        raise InputError(f"model folder {folder} holds {why}")
    where: dict[str, Path] = {}
    for file in files:
        path = folder / file
        if not path.is_file():
            raise InputError(f"model folder {folder} lacks {file}, which its index names: copy the file")
        names = list(_open(path).keys())
        where.update((name, path) for name in names if named is None or named.get(name) == file)
    if named is not None and (lost := sorted(named.keys() - where.keys())):
        raise InputError(f"{folder / named[lost[0]]} has no tensor {lost[0]}, which the index names: copy the file")
    return where


def _open(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            if lfs_pointer(file.read(HEAD_BYTES)):
                raise InputError(f"{path} {LFS_POINTER}")
        return safe_open(str(path), framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is no readable safetensors file ({_line(error)}): copy it again") from None


def _line(error: BaseException) -> str:
    """An exception's text on one line, cut to a readable length."""
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:200] + "..."
