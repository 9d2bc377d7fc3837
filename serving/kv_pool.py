"""KVPool: exact accounting of KV blocks, in time that does not grow with the number of decoding requests."""

from __future__ import annotations

from loratory.serving.sequence import Sequence


class KVPool:
    """``total`` blocks of ``block_size`` tokens.

    All decoding sequences grow by one token a decode step. A sequence needs a new block when its length is a multiple
    of the block size, so it suffices to count sequences by phase (length minus decode clock, modulo the block size):
    the blocks that the next n steps need follow from at most ``block_size`` additions.
    """

    __slots__ = ("block_size", "clock", "decoding", "lengths", "phases", "reserved", "total", "used")

    def __init__(self, total: int, block_size: int, clock: list[int]) -> None:
        self.total = total
        self.block_size = block_size
        self.clock = clock
        self.used = 0
        self.phases = [0] * block_size
        self.decoding = 0
        self.lengths = 0
        self.reserved = 0

    @property
    def free(self) -> int:
        """Blocks nobody holds."""
        return self.total - self.used

    @property
    def tokens_read(self) -> int:
        """Tokens in the cache of all decoding sequences."""
        return self.lengths + self.decoding * self.clock[0]

    def blocks(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self.block_size)

    def take(self, blocks: int) -> None:
        """Take blocks for a prefill or an adapter; the caller has seen that `free` has them."""
        self.used += blocks

    def give(self, blocks: int) -> None:
        """Blocks that were taken are free again."""
        self.used -= blocks

    def held(self, sequence: Sequence) -> int:
        """Blocks a running sequence holds now, its place in the step being planned included."""
        if sequence.decoding:
            return -(-(sequence.offset + self.clock[0] + self.reserved) // self.block_size)
        return sequence.blocks

    def join(self, sequence: Sequence) -> None:
        """A sequence whose whole context is in the cache begins to decode; sets its offset to the decode clock."""
        offset = sequence.target - self.clock[0]
        sequence.offset = offset
        self.phases[-offset % self.block_size] += 1
        self.decoding += 1
        self.lengths += offset

    def leave(self, sequence: Sequence) -> None:
        """A decoding sequence stops: its blocks are free."""
        offset = sequence.offset
        self.used -= -(-(offset + self.clock[0] + self.reserved) // self.block_size)
        self.phases[-offset % self.block_size] -= 1
        self.decoding -= 1
        self.lengths -= offset

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

    def steps(self, limit: int) -> int:
        """How many decode steps, at most ``limit``, fit the free blocks, the one reserved included."""
        size, free = self.block_size, self.total - self.used
        if (limit // size + 1) * self.decoding <= free:
            return limit
        cycles = max(0, free // self.decoding - 1) if self.decoding else 0
        done = 1 + cycles * size
        free -= cycles * self.decoding
        place = self.clock[0] + 1
        while done < limit:
            free -= self.phases[place % size]
            if free < 0:
                break
            place += 1
            done += 1
        return min(done, limit)

    def advance(self, steps: int) -> None:
        """Commit ``steps`` decode steps, the first of which was reserved: takes the blocks of the others."""
        if steps > 1:
            size, phases = self.block_size, self.phases
            cycles, rest = divmod(steps - 1, size)
            taken = cycles * self.decoding
            if rest:
                begin = (self.clock[0] + 1) % size
                end = begin + rest
                taken += sum(phases[begin:end]) if end <= size else sum(phases[begin:]) + sum(phases[: end - size])
            self.used += taken
        self.clock[0] += steps
        self.reserved = 0
