"""Work: what each form would have to compute and move for a batch, by how its rows fall on slots (`SlotRows`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from loratory.executor.lora.forms import grouped_rank
from loratory.executor.lora.slots import LoRASlots

FORMS: tuple[str, ...] = ("masked", "masked_active", "padded", "padded_active", "segmented", "grouped")
"""Names of the forms that can compute any rows; ``_active`` copies the matrices of the slots in use."""

Run = tuple[int, int, int]
"""(first row, row after the last, slot): neighbouring rows of one slot."""


class Work(NamedTuple):
    """What a form does in one forward pass: operators called, multiply-adds, and numbers of rows and weights moved."""

    calls: float
    multiplies: float
    row_numbers: float
    weight_numbers: float


@dataclass(frozen=True, slots=True)
class Widths:
    """What `Work` is a multiple of, summed over layers: groups, targeted modules, widths of x and y, numbers a rank."""

    groups: int
    parts: int
    x: int
    y: int
    rank: int

    @classmethod
    def of(cls, slots: LoRASlots) -> Widths:
        """Of a model's slots."""
        shapes = slots.shapes
        groups = shapes.groups()
        return cls(
            groups=sum(group.layers for group in groups),
            parts=sum(group.layers * len(group.parts) for group in groups),
            x=sum(group.layers * group.in_features for group in groups),
            y=sum(group.layers * group.out_features for group in groups),
            rank=shapes.numbers_per_rank,
        )


@dataclass(frozen=True, slots=True)
class SlotRows:
    """The rows with an adapter among some rows of a batch: ``rows`` ascend, ``slot_of`` has the slot of each."""

    rows: Sequence[int]
    slot_of: Sequence[int]
    counts: dict[int, int]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> SlotRows:
        """The rows of ``runs``, in order."""
        rows: list[int] = []
        slot_of: list[int] = []
        counts: dict[int, int] = {}
        for lo, hi, slot in runs:
            rows += range(lo, hi)
            slot_of += [slot] * (hi - lo)
            counts[slot] = counts.get(slot, 0) + hi - lo
        return cls(rows, slot_of, counts)

    def active(self, slots: LoRASlots) -> list[int]:
        """The slots that an ``_active`` form takes: those in use, and others up to a number that recurs.

        oneDNN compiles a product anew for every number of slots (`loratory.executor.onednn_rows`).
        """
        others = [slot for slot in range(slots.max_loras) if slot not in self.counts]
        return sorted([*self.counts, *others[: _rounded(len(self.counts), slots) - len(self.counts)]])

    def work(self, form: str, slots: LoRASlots, widths: Widths) -> Work | None:
        """What ``form`` does for these rows; None where it cannot compute them."""
        rank = max(slots.ranks[slot] for slot in self.counts)
        taking = _rounded(len(self.counts), slots) if form.endswith("_active") else slots.max_loras
        if form.startswith("masked"):
            span = self.rows[-1] + 1 - self.rows[0]
            gathered = 2 * len(self.rows) < span
            rows = len(self.rows) if gathered else span
            moved = rows * (widths.x + 2 * widths.y) if gathered else 2 * (span - len(self.rows)) * widths.y
            calls = 2 * widths.groups + widths.parts
            return Work(calls, rows * taking * rank * widths.rank, moved, taking * rank * widths.rank)
        if form.startswith("padded"):
            padded = taking * max(self.counts.values())
            moved = padded * (widths.x + widths.y) + 2 * len(self.rows) * widths.y
            calls = widths.groups + 5 * widths.parts
            return Work(calls, padded * rank * widths.rank, moved, taking * rank * widths.rank)
        moved = len(self.rows) * (widths.x + 2 * widths.y)
        if form == "segmented":
            return segmented(self.counts.items(), moved, slots, widths)
        rank = grouped_rank(slots, self.counts)
        if rank == 0:
            return None
        calls = 3 * widths.groups + 2 * widths.parts * len(self.counts)
        return Work(calls, len(self.rows) * rank * widths.rank, moved, len(self.counts) * rank * widths.rank)


def _rounded(active: int, slots: LoRASlots) -> int:
    """How many slots an ``_active`` form takes where ``active`` are in use: the next power of two, at most all."""
    return min(1 << (active - 1).bit_length(), slots.max_loras)


def segmented(segments: Iterable[tuple[int, int]], moved: float, slots: LoRASlots, widths: Widths) -> Work:
    """Work of `Segmented` over (slot, rows) segments; ``moved`` numbers of rows are copied."""
    calls = multiplies = weights = 0
    for slot, rows in segments:
        rank = slots.ranks[slot]
        calls += 2 * widths.parts
        multiplies += rows * rank * widths.rank
        weights += rank * widths.rank
    return Work(calls, multiplies, moved, weights)


def runs_of(slot_of: Sequence[int], ranks: Sequence[int]) -> list[Run]:
    """Runs of neighbouring rows of one slot, without rows of the base model and of empty slots."""
    runs: list[Run] = []
    start = 0
    for row in range(1, len(slot_of) + 1):
        if row == len(slot_of) or slot_of[row] != slot_of[start]:
            slot = slot_of[start]
            if slot >= 0 and ranks[slot] > 0:
                runs.append((start, row, slot))
            start = row
    return runs
