"""CachingAllocator: how much GPU memory PyTorch takes from the driver for a sequence of tensors that stay."""

from __future__ import annotations

from bisect import bisect_left, insort

_MIB = 1 << 20
_SMALL = _MIB
_SMALL_SEGMENT = 2 * _MIB
_LARGE_SEGMENT = 20 * _MIB
_OWN_SEGMENT = 10 * _MIB
_ROUND_LARGE = 2 * _MIB
_ALIGN = 512


class CachingAllocator:
    """PyTorch's caching allocator, allocations only (c10/cuda/CUDACachingAllocator.cpp, default settings).

    Sizes round up to 512 bytes. Up to 1 MiB a tensor comes out of a 2 MiB segment; below 10 MiB out of a 20 MiB one;
    larger ones get a segment of their own, rounded up to 2 MiB. The best-fitting free block is split when what is left
    is of use to its pool (512 bytes in the small, more than 1 MiB in the large one).

    ``reserved`` is what the driver gave, ``allocated`` what tensors hold; vLLM's memory profile counts the difference
    as memory in use outside PyTorch, so it is lost to the KV cache.
    """

    def __init__(self) -> None:
        self.reserved = 0
        self.allocated = 0
        self._free: tuple[list[int], list[int]] = ([], [])

    def allocate(self, size: int) -> None:
        """Allocate a tensor of ``size`` bytes (0 takes nothing)."""
        if size <= 0:
            return
        size = -(-size // _ALIGN) * _ALIGN
        small = size <= _SMALL
        free = self._free[0 if small else 1]
        position = bisect_left(free, size)
        if position < len(free):
            block = free.pop(position)
        else:
            if small:
                block = _SMALL_SEGMENT
            elif size < _OWN_SEGMENT:
                block = _LARGE_SEGMENT
            else:
                block = -(-size // _ROUND_LARGE) * _ROUND_LARGE
            self.reserved += block
        rest = block - size
        if rest >= _ALIGN if small else rest > _SMALL:
            insort(free, rest)
            block = size
        self.allocated += block
