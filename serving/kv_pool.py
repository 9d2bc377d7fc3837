"""KVPool: exact accounting of KV blocks, in time that does not grow with the number of decoding requests."""

from __future__ import annotations

from loratory.serving.compiling import mypyc_attr
from loratory.serving.sequence import Sequence


@mypyc_attr(serializable=True, allow_interpreted_subclasses=True)
class KVPool:
    """``total`` blocks of ``block_size`` tokens, and how many of them are in use.

    A decoding sequence grows by one token a decode step, and so does the decode clock. Its length is therefore the
    clock plus a constant, its offset, and it needs a new block whenever the clock is at its phase:

        block_size 4               clock       9   10   11   12   13   14   15
                                   clock % 4   1    2    3    0    1    2    3
        A: offset -3, phase 3      length      6    7   [8]   9   10   11  [12]      [ ]: the blocks are full, so
        B: offset -1, phase 1      length     [8]   9   10   11  [12]  13   14            this step takes a new one

    The pool counts the sequences of each phase, ``phases`` (here [0, 1, 0, 1]). A step needs ``phases[clock % 4]``
    blocks, n steps need n successive entries, and ``block_size`` steps need one block a sequence, whatever the phases.
    """

    __slots__ = ("block_size", "clock", "decoding", "offsets", "phases", "reserved", "total", "used")

    def __init__(self, total: int, block_size: int, clock: list[int]) -> None:
        self.total = total
        self.block_size = block_size
        self.clock = clock
        """The engine's decode clock, shared: the number of decode steps committed so far."""
        self.used = 0
        self.phases = [0] * block_size
        """Decoding sequences by phase, which is ``-offset % block_size``."""
        self.decoding = 0
        self.offsets = 0
        """Sum of the offsets of the decoding sequences."""
        self.reserved = 0
        """1 from `reserve` to `advance`: the decoding sequences hold the block of their next token; else 0."""

    @property
    def free(self) -> int:
        """Blocks that are free."""
        return self.total - self.used

    @property
    def free_tokens(self) -> int:
        """Tokens that the free blocks hold."""
        return self.free * self.block_size

    @property
    def total_tokens(self) -> int:
        """Tokens that all blocks hold."""
        return self.total * self.block_size

    @property
    def tokens_read(self) -> int:
        """Tokens in the cache of all decoding sequences."""
        return self.offsets + self.decoding * self.clock[0]

    def blocks(self, tokens: int) -> int:
        """Blocks that ``tokens`` tokens of one sequence fill."""
        return -(-tokens // self.block_size)

    def take(self, blocks: int) -> None:
        """Take blocks for a prefill or an adapter; the caller has checked that they are `free`."""
        self.used += blocks

    def give(self, blocks: int) -> None:
        """Free blocks that were taken."""
        self.used -= blocks

    def held(self, sequence: Sequence) -> int:
        """Blocks that a running sequence holds, that of its next token included once it is reserved."""
        if sequence.decoding:
            return -(-(sequence.offset + self.clock[0] + self.reserved) // self.block_size)
        return sequence.blocks

    def join(self, sequence: Sequence) -> None:
        """A sequence whose whole context is in the cache begins to decode: set its offset."""
        offset = sequence.target - self.clock[0]
        sequence.offset = offset
        self.phases[-offset % self.block_size] += 1
        self.decoding += 1
        self.offsets += offset

    def leave(self, sequence: Sequence) -> None:
        """A decoding sequence stops: free its blocks."""
        offset = sequence.offset
        self.used -= -(-(offset + self.clock[0] + self.reserved) // self.block_size)
        self.phases[-offset % self.block_size] -= 1
        self.decoding -= 1
        self.offsets -= offset

    def need(self) -> int:
        """Blocks the next decode step needs beyond those held."""
        return self.phases[self.clock[0] % self.block_size]

    def reserve(self) -> bool:
        """Take the blocks of the next decode step, so that admissions see what is left; False if they are not free."""
        need = self.phases[self.clock[0] % self.block_size]
        if need > self.total - self.used:
            return False
        self.used += need
        self.reserved = 1
        return True

    def unreserve(self) -> None:
        """Undo `reserve`, if it was done."""
        if self.reserved:
            self.used -= self.need()
            self.reserved = 0

    def held_after_step(self, sequence: Sequence) -> int:
        """Blocks that a decoding sequence holds once it has the block of its next token."""
        return -(-(sequence.offset + self.clock[0] + 1) // self.block_size)

    def steps(self, limit: int) -> int:
        """Decode steps that the free blocks suffice for, at most ``limit``; the first of them is reserved already."""
        size, free = self.block_size, self.total - self.used
        if (limit // size + 1) * self.decoding <= free:  # no sequence takes more blocks in that time
            return limit
        cycles = max(0, free // self.decoding - 1) if self.decoding else 0
        free -= cycles * self.decoding  # a cycle of block_size steps takes one block a sequence
        steps = 1 + cycles * size
        clock = self.clock[0] + 1
        while steps < limit:
            free -= self.phases[clock % size]
            if free < 0:
                break
            clock += 1
            steps += 1
        return min(steps, limit)

    def advance(self, steps: int) -> None:
        """Commit ``steps`` decode steps, the first of which was reserved: take the blocks of the others."""
        if steps > 1:
            size, phases = self.block_size, self.phases
            cycles, rest = divmod(steps - 1, size)
            taken = cycles * self.decoding
            if rest:  # the phases from the second step on, around the end of the list
                begin = (self.clock[0] + 1) % size
                end = begin + rest
                taken += sum(phases[begin:end]) if end <= size else sum(phases[begin:]) + sum(phases[: end - size])
            self.used += taken
        self.clock[0] += steps
        self.reserved = 0
