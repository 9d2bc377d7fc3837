"""Forms: ways to add scaled B·A·x to the rows of a mixed batch on a CPU. Results agree, costs differ.

A batch has rows of several adapters, each with its own A and B. With rows of adapters p, q, p and none:

    rows     p q p -

    Masked     x (4 rows) · [A_p A_q] -> 4 x 2 blocks; zero what is not a row's own; · [B_p; B_q].
               Two products whatever the number of adapters, but each row is multiplied with all of them.
                    p: [ h 0 ]     q: [ 0 h ]     p: [ h 0 ]     -: [ 0 0 ]
    Segmented  gather p's rows, multiply with A_p and B_p; then q's. No wasted work, two products an adapter.
    Padded     [p p], [q .]: fill all adapters up to the longest and multiply as one batched product.
    Grouped    Segmented, with the loop over adapters inside PyTorch.

``choice`` picks one for each batch, and may keep long runs (prefill chunks) where they lie (`Segmented.runs`).

No form gathers weights per token, and none changes a bit of a row without an adapter. Rows meet the matrices of other
slots in `Masked` alone, which clears every bit of such an intermediate result before it meets B: not even an infinity
passes from one adapter's rows to another's. A form is built once for a batch; `add` is called for each layer and group.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from loratory.executor.lora.rows import Rows
from loratory.executor.lora.slot_views import GatheredOperands, Views, batched, dense
from loratory.executor.lora.slots import LoRASlots
from loratory.executor.onednn_rows import round_up_coarsely, window

_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
_ALIGNMENT_BYTES = 16


class Form(Protocol):
    """One way to compute some rows of a batch."""

    def add(self, y: Tensor, x: Tensor, layer: int, group: str) -> None:
        """Adds the deltas of this form's rows to ``y`` (T, out) in place, from ``x`` (T, in)."""


class Masked:
    """Masked dense: one product with A of all slots, zero what is another slot's, one product a part with all B.

    Work grows with rows times slots, but it takes the fewest calls. With ``active`` only those slots take part, at the
    price of copying their matrices.
    """

    def __init__(
        self,
        slots: LoRASlots,
        views: Views,
        rows: Sequence[int],
        slot_of: Sequence[int],
        active: Sequence[int] | None = None,
    ) -> None:
        rank = max(slots.ranks[slot] for slot in set(slot_of))
        self._operands = views.dense(rank) if active is None else GatheredOperands(slots, active, rank, dense)
        self._rows = Rows.span(rows)
        self._bits = _BITS[slots.dtype]
        used = list(range(slots.max_loras)) if active is None else active
        owner = torch.full((self._rows.count,), -1, dtype=torch.int64)
        owner[self._rows.places(rows)] = torch.tensor(slot_of, dtype=torch.int64)
        # A mask of bits, all ones where the slot is the row's own: x & 0 is 0 for NaN and infinity, x * 0 is not.
        own = owner[:, None] == torch.tensor(used, dtype=torch.int64)
        mask = own.to(self._bits).neg_().repeat(1, rank)
        self._columns = rank * len(used)
        parts = {len(stack.group.parts) for stack in slots.groups.values()}
        self._masks = {count: mask.repeat(1, count) for count in parts | {1}}
        self._offsets = _offsets(slots)

    def add(self, y: Tensor, x: Tensor, layer: int, group: str) -> None:
        operand = self._operands(layer, group)
        rows, offsets = self._rows, self._offsets[group]
        (xs, begin), ys = rows.inputs(x), rows.take(y)
        kept = rows.keep(y)
        mask = self._masks[len(offsets) // len(operand.a)]
        hidden: list[Tensor] = []
        for a in operand.a:
            products = torch.mm(xs, a)
            products.narrow(0, begin, rows.count).view(self._bits).bitwise_and_(mask)
            hidden += (products,) if len(offsets) == 1 else torch.split(products, self._columns, 1)
        for (offset, width), part, b in zip(offsets, hidden, operand.b, strict=True):
            _add_product(ys.narrow(1, offset, width), part, b, begin)
        rows.give(y, ys, kept)


class Segmented:
    """Segmented: one slot's rows after another's, two products each, with the adapter's own rank.

    The least work of all forms and the most calls. `runs` gathers nothing: its segments are where the batch has them.
    """

    def __init__(self, slots: LoRASlots, views: Views, rows: Rows, segments: Sequence[tuple[int, int, int]]) -> None:
        self._rows = rows
        self._segments = [(lo, hi - lo, views.single(slot, slots.ranks[slot])) for lo, hi, slot in segments]
        self._offsets = _offsets(slots)

    @classmethod
    def sorted(cls, slots: LoRASlots, views: Views, rows: Sequence[int], slot_of: Sequence[int]) -> Segmented:
        """One segment a slot, rows gathered in the order of slots."""
        by_slot = _by_slot(rows, slot_of)
        order = sorted(by_slot)
        ends = list(itertools.accumulate(len(by_slot[slot]) for slot in order))
        segments = [(hi - len(by_slot[slot]), hi, slot) for slot, hi in zip(order, ends, strict=True)]
        return cls(slots, views, Rows.of([row for slot in order for row in by_slot[slot]]), segments)

    @classmethod
    def runs(cls, slots: LoRASlots, views: Views, runs: Sequence[tuple[int, int, int]]) -> Segmented:
        """One segment a run (first row, row after the last, slot) of the batch."""
        start, stop = runs[0][0], runs[-1][1]
        return cls(slots, views, Rows(start, stop), [(lo - start, hi - start, slot) for lo, hi, slot in runs])

    def add(self, y: Tensor, x: Tensor, layer: int, group: str) -> None:
        xs, ys, offsets = self._rows.take(x), self._rows.take(y), self._offsets[group]
        for start, count, views in self._segments:
            operand = views(layer, group)
            (own, begin), target = window(xs, start, count), ys.narrow(0, start, count)
            if len(operand.a) < len(offsets):
                products = torch.mm(own, operand.a[0])
                hidden: Sequence[Tensor] = torch.split(products, products.shape[1] // len(offsets), 1)
            else:
                hidden = [torch.mm(own, a) for a in operand.a]
            for (offset, width), part, b in zip(offsets, hidden, operand.b, strict=True):
                _add_product(target.narrow(1, offset, width), part, b, begin)
        self._rows.give(y, ys)


class Padded:
    """Padded: the rows of each slot filled up to the longest, in batched products over the slots.

    Each part of y is gathered by itself: PyTorch batches products only into a whole tensor, and adds them one after
    another into a slice. ``active`` cuts the slots to those in use, at the price of copying their matrices.
    """

    def __init__(
        self,
        slots: LoRASlots,
        views: Views,
        rows: Sequence[int],
        slot_of: Sequence[int],
        active: Sequence[int] | None = None,
    ) -> None:
        by_slot = _by_slot(rows, slot_of)
        longest = round_up_coarsely(max(map(len, by_slot.values())), slots.dtype, slots.device)
        used = list(range(slots.max_loras)) if active is None else active
        padded: list[int] = []
        places: list[int] = []
        for position, slot in enumerate(used):
            own = by_slot.get(slot, [])
            places += range(position * longest, position * longest + len(own))
            padded += own + [rows[0]] * (longest - len(own))
        rank = max(slots.ranks[slot] for slot in by_slot)
        self._operands = views.batched(rank) if active is None else GatheredOperands(slots, active, rank, batched)
        self._count, self._longest = len(used), longest
        self._padded = torch.tensor(padded, dtype=torch.int64)
        self._places = torch.tensor(places, dtype=torch.int64)
        self._rows = self._padded[self._places]
        self._offsets = _offsets(slots)

    def add(self, y: Tensor, x: Tensor, layer: int, group: str) -> None:
        operand = self._operands(layer, group)
        xs = x.index_select(0, self._padded).view(self._count, self._longest, -1)
        for (offset, width), a, b in zip(self._offsets[group], operand.a, operand.b, strict=True):
            part = y.narrow(1, offset, width)
            ys = part.index_select(0, self._padded).view(self._count, self._longest, width)
            ys.baddbmm_(torch.bmm(xs, a), b)
            part.index_copy_(0, self._rows, ys.flatten(0, 1).index_select(0, self._places))


class Grouped:
    """Grouped: `Segmented` in PyTorch's own loop (``torch.nn.functional.grouped_mm``), at the largest rank in use."""

    def __init__(self, slots: LoRASlots, views: Views, rows: Sequence[int], slot_of: Sequence[int]) -> None:
        by_slot = _by_slot(rows, slot_of)
        counts = [len(by_slot.get(slot, ())) for slot in range(slots.max_loras)]
        self._operands = views.batched(grouped_rank(slots, by_slot))
        self._rows = Rows.of([row for slot in sorted(by_slot) for row in by_slot[slot]])
        self._ends = torch.tensor(list(itertools.accumulate(counts)), dtype=torch.int32)
        self._offsets = _offsets(slots)

    def add(self, y: Tensor, x: Tensor, layer: int, group: str) -> None:
        operand = self._operands(layer, group)
        xs, ys = self._rows.take(x), self._rows.take(y)
        for (offset, width), a, b in zip(self._offsets[group], operand.a, operand.b, strict=True):
            hidden = functional.grouped_mm(xs, a, offs=self._ends)
            ys.narrow(1, offset, width).add_(functional.grouped_mm(hidden, b, offs=self._ends))
        self._rows.give(y, ys)


def _add_product(y: Tensor, hidden: Tensor, b: Tensor, begin: int) -> None:
    """Adds to ``y`` the rows from ``begin`` on of ``hidden`` times ``b``."""
    count = y.shape[0]
    if hidden.shape[0] == count:
        y.addmm_(hidden, b)
    else:
        y.add_(torch.mm(hidden, b).narrow(0, begin, count))


def grouped_rank(slots: LoRASlots, active: Iterable[int]) -> int:
    """The rank `Grouped` computes with: the largest in use, rounded up to whole 16 bytes; 0 where it cannot run."""
    unit = _ALIGNMENT_BYTES // slots.dtype.itemsize
    rank = -(-max(slots.ranks[slot] for slot in active) // unit) * unit
    aligned = all(
        width % unit == 0
        for stack in slots.groups.values()
        for width in (stack.group.in_features, *(part.width for part in stack.group.parts))
    )
    return rank if aligned and rank <= slots.max_lora_rank and hasattr(functional, "grouped_mm") else 0


def _offsets(slots: LoRASlots) -> dict[str, list[tuple[int, int]]]:
    """By group, the (offset, width) of each targeted part in y."""
    return {name: [(part.offset, part.width) for part in stack.group.parts] for name, stack in slots.groups.items()}


def _by_slot(rows: Sequence[int], slot_of: Sequence[int]) -> dict[int, list[int]]:
    """Rows of each slot, in the batch's order."""
    by_slot: dict[int, list[int]] = {}
    for row, slot in zip(rows, slot_of, strict=True):
        by_slot.setdefault(slot, []).append(row)
    return by_slot
