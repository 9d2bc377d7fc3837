"""choose: which forms compute a batch, by costs measured on such a machine (bench/lora_forms.py)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from loratory.errors import InputError
from loratory.executor.lora.slots import LoRASlots
from loratory.executor.lora.work import FORMS, Run, SlotRows, Widths, Work, segmented

MEASURED = Path(__file__).with_name("forms-cpu.json")
"""The costs that ship with Loratory: machine, date and versions are in the file."""

_LONG_RUNS = (1, 16, 64)
_FORMAT = "loratory-lora-forms-1"


@dataclass(frozen=True, slots=True)
class FormCosts:
    """Seconds per unit of `Work`, by form, in one dtype. Linear in the work, so it extrapolates as work grows."""

    seconds: dict[str, Work]

    @classmethod
    def read(cls, dtype: torch.dtype, path: Path = MEASURED) -> FormCosts:
        """From a file of bench/lora_forms.py; `InputError` for one that is missing or of another format."""
        name = str(dtype).removeprefix("torch.")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["format"] != _FORMAT:
                raise InputError(f"{path} has format {data['format']!r}, not {_FORMAT!r}: measure it again")
            return cls(
                {form: Work(*values) for form, values in data["dtypes"][name]["seconds"].items() if form in FORMS}
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} holds no costs of LoRA forms in {name} ({error!r}): measure it again") from error

    def of(self, form: str, work: Work | None) -> float:
        """Seconds of ``form`` for ``work``; infinite for a form that cannot do it or was not measured."""
        if work is None or form not in self.seconds:
            return float("inf")
        return sum(cost * amount for cost, amount in zip(self.seconds[form], work, strict=True))


@dataclass(frozen=True, slots=True)
class ChosenForms:
    """``runs`` are computed where they lie, segment by segment; the rows of ``rest`` by ``form``."""

    runs: tuple[Run, ...]
    rest: SlotRows | None
    form: str
    seconds: float


def choose(runs: Sequence[Run], slots: LoRASlots, widths: Widths, costs: FormCosts) -> ChosenForms:
    """The cheapest way found to compute ``runs``.

    Long runs (prefill chunks) are best left where they are, and short ones (decoding rows) are best taken together.
    Several borders between long and short are tried, with every form for the short ones.
    """
    longest = max(hi - lo for lo, hi, _ in runs)
    borders = [border for border in _LONG_RUNS if border <= longest]
    options = [_split(runs, border, slots, widths, costs) for border in (*borders, longest + 1)]
    return min(options, key=lambda chosen: chosen.seconds)


def _split(runs: Sequence[Run], border: int, slots: LoRASlots, widths: Widths, costs: FormCosts) -> ChosenForms:
    """Runs of at least ``border`` rows in place, the others by the form that is cheapest for them."""
    long = tuple(run for run in runs if run[1] - run[0] >= border)
    short = [run for run in runs if run[1] - run[0] < border]
    seconds = 0.0
    if long:
        seconds = costs.of("segmented", segmented(((slot, hi - lo) for lo, hi, slot in long), 0, slots, widths))
    if not short:
        return ChosenForms(long, None, "segmented", seconds)
    rest = SlotRows.of(short)
    by_form = {form: costs.of(form, rest.work(form, slots, widths)) for form in FORMS}
    best = min(by_form, key=by_form.__getitem__)
    return ChosenForms(long, rest, best, seconds + by_form[best])
