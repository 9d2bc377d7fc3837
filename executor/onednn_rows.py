"""round_up: pads numbers of rows to a few that recur, because oneDNN compiles a product for each number of rows.

oneDNN, which computes 16-bit products on a CPU, compiles a primitive for every new shape: about 1 ms and 0.7 MB each.
That is more than a small product takes, and the number of rows of a batch with a prefill chunk hardly ever recurs: on
two cores with AMX a step of 24 decoding rows and a chunk of 100 tokens took 51 ms at new shapes, 30 ms at known ones.
It keeps 1,024 primitives by default. Compiling and dropping others all the time also fragments the memory of tensors:
everything became 13 % slower for good. So it keeps more here; the environment variable
``ONEDNN_PRIMITIVE_CACHE_CAPACITY`` overrides that.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "2048")  # read when the first product is computed

_STEPS = ((64, 8), (256, 16), (512, 32), (1024, 64))
_LARGEST_STEP = 128


def round_up(rows: int, dtype: torch.dtype, device: torch.device) -> int:
    """The number of rows to compute for ``rows``: on a CPU in 16 bits the next of about fifty, otherwise ``rows``."""
    if device.type != "cpu" or dtype == torch.float32 or not rows:
        return rows
    step = next((step for most, step in _STEPS if rows <= most), _LARGEST_STEP)
    return -(-rows // step) * step


def round_up_coarsely(rows: int, dtype: torch.dtype, device: torch.device) -> int:
    """The same with far fewer numbers: for small products, of which there are many kinds."""
    if device.type != "cpu" or dtype == torch.float32 or not rows:
        return rows
    if rows <= 32:
        return -(-rows // 8) * 8
    power = 1 << (rows - 1).bit_length()
    return power * 3 // 4 if rows <= power * 3 // 4 else power


def window(batch: Tensor, start: int, count: int) -> tuple[Tensor, int]:
    """A view of ``batch`` that holds rows ``start`` to ``start + count`` - 1, and where in the view they begin.

    It has `round_up_coarsely` rows: the others are the batch's own beside them. A batch with fewer rows gives all.
    """
    size = min(round_up_coarsely(count, batch.dtype, batch.device), batch.shape[0])
    if size <= count:
        return batch.narrow(0, start, count), 0
    first = min(start, batch.shape[0] - size)
    return batch.narrow(0, first, size), start - first
