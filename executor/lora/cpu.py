"""CPULoRA: the adapters' part of a forward pass on a CPU."""

from __future__ import annotations

from torch import Tensor

from loratory.errors import InputError
from loratory.executor.lora.choice import FormCosts, choose
from loratory.executor.lora.forms import Form, Grouped, Masked, Padded, Segmented
from loratory.executor.lora.slot_views import Views
from loratory.executor.lora.slots import LoRASlots
from loratory.executor.lora.work import FORMS, Run, SlotRows, Widths, runs_of


class CPULoRA:
    """Implements `loratory.executor.batch.LoRA`: chooses forms in `begin`, once for a batch, and runs them in `add`.

    ``form`` (one of `FORMS`, or ``runs``) overrides the choice; ``costs`` are by default those shipped.
    """

    def __init__(self, slots: LoRASlots, form: str | None = None, costs: FormCosts | None = None) -> None:
        if form is not None and form not in (*FORMS, "runs"):
            raise InputError(f"there is no LoRA form {form!r}: use one of {', '.join((*FORMS, 'runs'))}")
        self._slots = slots
        self._form = form
        self._costs = FormCosts.read(slots.dtype) if costs is None and form is None else costs
        self._widths = Widths.of(slots)
        self._views = Views(slots)
        self._forms: tuple[Form, ...] = ()
        self._planned: tuple[list[int], int] | None = None

    def begin(self, slots: Tensor) -> None:
        slot_of: list[int] = slots.tolist()
        # Decoding batches often repeat: the same requests, one token later.
        if self._planned == (slot_of, self._slots.version):
            return
        runs = runs_of(slot_of, self._slots.ranks)
        self._forms = self._plan(runs) if runs else ()
        self._planned = (slot_of, self._slots.version)

    def add(self, y: Tensor, x: Tensor, layer: int, group: str) -> None:
        if group in self._slots.groups:
            for form in self._forms:
                form.add(y, x, layer, group)

    def _plan(self, runs: list[Run]) -> tuple[Form, ...]:
        """The forms for a batch with at least one row of an adapter."""
        if self._form == "runs":
            return (Segmented.runs(self._slots, self._views, runs),)
        if self._form is not None:
            return (self._build(self._form, SlotRows.of(runs)),)
        assert self._costs is not None
        chosen = choose(runs, self._slots, self._widths, self._costs)
        in_place = (Segmented.runs(self._slots, self._views, chosen.runs),) if chosen.runs else ()
        return in_place if chosen.rest is None else (*in_place, self._build(chosen.form, chosen.rest))

    def _build(self, form: str, load: SlotRows) -> Form:
        slots, views, rows, slot_of = self._slots, self._views, load.rows, load.slot_of
        active = load.active(slots) if form.endswith("_active") else None
        if form.startswith("masked"):
            return Masked(slots, views, rows, slot_of, active)
        if form.startswith("padded"):
            return Padded(slots, views, rows, slot_of, active)
        if form == "grouped":
            return Grouped(slots, views, rows, slot_of)
        return Segmented.sorted(slots, views, rows, slot_of)
