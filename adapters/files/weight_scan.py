"""scan: reads all weights once, in constant memory, for their digest and for numbers that are not finite.

`read_tensor` reads the bytes of one tensor for other modules.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from loratory.adapters.files.safetensors_header import TensorEntry
from loratory.errors import InvalidAdapter

CHUNK_BYTES = 1 << 20
"""Bytes in memory at a time; a multiple of every number's size."""

_Words = np.dtype[np.uint16] | np.dtype[np.uint32]


def scan(file: BinaryIO, tensors: Sequence[TensorEntry], digest: hashlib._Hash, where: str) -> None:
    """Update ``digest`` with the bytes of ``tensors``, which lie in ``file`` in this order from where it stands.

    Raises `InvalidAdapter` naming the first tensor that holds an infinity or a NaN, or if the file ends too early.
    """
    buffer = memoryview(bytearray(CHUNK_BYTES))
    for tensor in tensors:
        for chunk in _chunks(file, tensor, buffer, where):
            digest.update(chunk)
            if not _finite(chunk, tensor.dtype):
                raise InvalidAdapter(
                    f"{where}: tensor {tensor.key} holds a number that is not finite: "
                    "take a checkpoint from before training diverged"
                )


def read_tensor(file: BinaryIO, tensor: TensorEntry, size: int, where: str) -> Iterator[memoryview]:
    """The bytes of ``tensor``, at which ``file`` stands, in parts of ``size``, each good until the next is asked for.

    Raises `InvalidAdapter` if the file ends too early.
    """
    return _chunks(file, tensor, memoryview(bytearray(min(size, tensor.end - tensor.start))), where)


def _chunks(file: BinaryIO, tensor: TensorEntry, buffer: memoryview, where: str) -> Iterator[memoryview]:
    left = tensor.end - tensor.start
    while left:
        chunk = buffer[: min(left, len(buffer))]
        _fill(file, chunk, where)
        yield chunk
        left -= len(chunk)


def _fill(file: BinaryIO, chunk: memoryview, where: str) -> None:
    filled = 0
    while filled < len(chunk):
        count = file.readinto(chunk[filled:])  # type: ignore[attr-defined]
        if not count:
            raise InvalidAdapter(f"{where} became shorter while it was read: copy it completely before registering it")
        filled += count


def _finite(chunk: memoryview, dtype: str) -> bool:
    """Whether no number in ``chunk`` has all exponent bits set, which is how IEEE 754 writes infinities and NaNs."""
    if dtype == "F32":
        words: NDArray[np.uint32] | NDArray[np.uint16] = np.frombuffer(chunk, "<u4")
        exponent = 0x7F800000
    else:
        words = np.frombuffer(chunk, "<u2")
        exponent = 0x7C00 if dtype == "F16" else 0x7F80
    return not bool(((words & exponent) == exponent).any())
