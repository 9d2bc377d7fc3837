"""Header: the tensors that a safetensors file declares, checked against its size before anything is allocated."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO, TypeGuard

from loratory.adapters.files.open_files import read_up_to
from loratory.adapters.files.strict_json import parse_object, shown
from loratory.errors import InvalidAdapter
from loratory.git_lfs import HEAD_BYTES, LFS_POINTER, lfs_pointer

DTYPE_BYTES: Mapping[str, int] = {"F32": 4, "F16": 2, "BF16": 2}
"""Bytes of one number in each dtype that an adapter may have, as safetensors spells it."""

MAX_HEADER_BYTES = 2 << 20
"""A larger header is refused: 2 MiB describes some 15,000 tensors, and a large model's adapter has about 1,100."""

_AGAIN = "copy or save the file again"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor: its key, dtype, shape, and its bytes' first position and end, counted from the end of the header."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """All tensors in the order of their bytes, and where in the file those begin."""

    tensors: tuple[TensorEntry, ...]
    data_start: int


def read_header(file: BinaryIO, size: int, where: str) -> Header:
    """The header at the beginning of ``file``, which has ``size`` bytes; leaves it at the first tensor's bytes.

    The tensors must fill the rest of the file, each byte once (https://huggingface.co/docs/safetensors, "Format").
    Raises `InvalidAdapter`, with ``where`` as the file's name.
    """
    if size == 0:
        raise InvalidAdapter(f"{where} is empty: {_AGAIN}")
    prefix = read_up_to(file, 8)
    if size < 8 or len(prefix) < 8:
        raise InvalidAdapter(f"{where} ends inside the length of its header: {_AGAIN}")
    if prefix == b"version " and lfs_pointer(prefix + read_up_to(file, HEAD_BYTES)):
        raise InvalidAdapter(f"{where} {LFS_POINTER}")
    (length,) = struct.unpack("<Q", prefix)
    if length > MAX_HEADER_BYTES:
        raise InvalidAdapter(
            f"{where} claims a header of {length} bytes, but at most {MAX_HEADER_BYTES} are read: "
            "it is no safetensors file of a LoRA adapter, save the adapter again"
        )
    if length > size - 8:
        raise InvalidAdapter(f"{where} ends inside its header ({size} bytes, header of {length}): {_AGAIN}")
    data = read_up_to(file, length)
    if len(data) < length:
        raise InvalidAdapter(f"{where} ends inside its header: {_AGAIN}")
    if not data.startswith(b"{"):
        raise InvalidAdapter(f"{where} has a header that is not a JSON object: {_AGAIN}")
    entries = parse_object(data, f"the header of {where}", MAX_HEADER_BYTES)
    _check_metadata(entries.pop("__metadata__", {}), where)
    if not entries:
        raise InvalidAdapter(f"{where} holds no tensor: save the adapter again")
    room = size - 8 - length
    tensors = sorted((_tensor(key, entry, where) for key, entry in entries.items()), key=lambda t: (t.start, t.end))
    position = 0
    for tensor in tensors:
        if tensor.start != position:
            what = "overlaps the tensor before it" if tensor.start < position else "leaves a gap before it"
            raise InvalidAdapter(f"{where}: tensor {shown(tensor.key)} {what}: {_AGAIN}")
        if tensor.end > room:
            raise InvalidAdapter(
                f"{where} is truncated: tensor {shown(tensor.key)} ends at byte {tensor.end} of {room}: {_AGAIN}"
            )
        position = tensor.end
    if position != room:
        raise InvalidAdapter(f"{where} has {room - position} bytes after its last tensor: {_AGAIN}")
    return Header(tuple(tensors), 8 + length)


def _check_metadata(metadata: object, where: str) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InvalidAdapter(f"{where}: __metadata__ must map names to strings: {_AGAIN}")


def _tensor(key: str, entry: object, where: str) -> TensorEntry:
    name = f"{where}: tensor {shown(key)}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise InvalidAdapter(f"{name} must have dtype, shape and data_offsets and nothing else: {_AGAIN}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise InvalidAdapter(
            f"{name} has dtype {shown(dtype)}: save the adapter in one of {', '.join(DTYPE_BYTES)}, not quantised"
        )
    if not _whole(shape) or len(shape) > 8:
        raise InvalidAdapter(f"{name} has the shape {shown(shape)}: a shape is a list of whole numbers: {_AGAIN}")
    if not _whole(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise InvalidAdapter(f"{name} has the data_offsets {shown(offsets)}: they must be its start and end: {_AGAIN}")
    count = 1
    for width in shape:
        count *= width
    if count * DTYPE_BYTES[dtype] != offsets[1] - offsets[0]:
        raise InvalidAdapter(
            f"{name} has {offsets[1] - offsets[0]} bytes, but its shape {shown(shape)} in {dtype} "
            f"takes {count * DTYPE_BYTES[dtype]}: {_AGAIN}"
        )
    return TensorEntry(key, dtype, tuple(shape), offsets[0], offsets[1])


def _whole(numbers: object) -> TypeGuard[list[int]]:
    """Whether this is a list of whole numbers that a 64-bit size can hold."""
    return isinstance(numbers, list) and all(type(number) is int and 0 <= number < 1 << 63 for number in numbers)
