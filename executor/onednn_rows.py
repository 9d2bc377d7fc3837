"""steady: numbers of rows that come back, for products that are compiled anew for each number of rows.

oneDNN, which computes 16-bit products on a CPU, makes a primitive for every shape it meets: about 1 ms and 0.7 MB each.
That is more than a small product takes, and the number of rows of a batch with a prefill chunk hardly ever repeats: on
two cores with AMX a step of 24 decoding rows and a chunk of 100 tokens took 51 ms at new shapes, 30 ms at known ones.
It keeps 1,024 of them by default; making and dropping others all the time also scatters the memory that tensors get,
and everything became 13 % slower for good. So it may keep more here, unless the environment says otherwise.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "2048")  # read when the first product is computed

_STEPS = ((64, 8), (256, 16), (512, 32), (1024, 64))
_LARGEST_STEP = 128


def steady(rows: int, dtype: torch.dtype, device: torch.device) -> int:
    """The number of rows to compute for ``rows``: as many, or on a CPU in 16 bits the next of some fifty numbers."""
    if device.type != "cpu" or dtype == torch.float32 or not rows:
        return rows
    step = next((step for most, step in _STEPS if rows <= most), _LARGEST_STEP)
    return -(-rows // step) * step


def coarse(rows: int, dtype: torch.dtype, device: torch.device) -> int:
    """The same from far fewer numbers: for small products, of which there are many kinds."""
    if device.type != "cpu" or dtype == torch.float32 or not rows:
        return rows
    if rows <= 32:
        return -(-rows // 8) * 8
    power = 1 << (rows - 1).bit_length()
    return power * 3 // 4 if rows <= power * 3 // 4 else power


def window(batch: Tensor, start: int, count: int) -> tuple[Tensor, int]:
    """A view of a `coarse` number of rows of ``batch`` that has rows ``start`` to ``start + count`` - 1 in it.

    And where in the view they begin. The rows beside them are whatever the batch has there; a batch with fewer rows
    gives all it has.
    """
    size = min(coarse(count, batch.dtype, batch.device), batch.shape[0])
    if size <= count:
        return batch.narrow(0, start, count), 0
    first = min(start, batch.shape[0] - size)
    return batch.narrow(0, first, size), start - first
