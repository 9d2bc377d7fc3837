"""The choice among forms: it is the cheapest by the costs it is given, in range and out of it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import lora_worlds
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loratory.errors import InputError
from loratory.executor.lora import FormCosts, LoRAShapes, LoRASlots
from loratory.executor.lora.choice import choose
from loratory.executor.lora.work import FORMS, SlotRows, Widths, Work, runs_of
from loratory.models.shape import ModelShape

MODEL = LoRAShapes(ModelShape(512, 8, 8, 4, 64, 1376, 32000))


def slots(max_loras: int, rank: int, dtype: torch.dtype) -> LoRASlots:
    """Slots that say they are full."""
    made = LoRASlots(LoRAShapes(ModelShape(8, 1, 1, 1, 8, 8, 32)), max_loras, rank, dtype)
    made.ranks[:] = [rank] * max_loras
    return made


@given(lora_worlds.row_slots(4), st.sampled_from(lora_worlds.DTYPES))
def test_runs_are_the_rows_with_an_adapter(slot_of: list[int], dtype: torch.dtype) -> None:
    ranks = [4, 0, 2, 1]
    runs = runs_of(slot_of, ranks)
    rows = [(row, slot) for lo, hi, slot in runs for row in range(lo, hi)]
    assert rows == [(row, slot) for row, slot in enumerate(slot_of) if slot >= 0 and ranks[slot]]
    assert all(left[1] < right[0] or left[2] != right[2] for left, right in itertools.pairwise(runs))


@given(st.lists(st.integers(-1, 3), min_size=1, max_size=80), st.sampled_from(FORMS))
def test_every_row_is_computed_once(slot_of: list[int], cheap: str) -> None:
    made = slots(4, 8, torch.float32)
    runs = runs_of(slot_of, made.ranks)
    if not runs:
        return
    costs = FormCosts({form: Work(*(1.0 if form == cheap else 9.0,) * 4) for form in FORMS})
    chosen = choose(runs, made, Widths.of(made), costs)
    rows = [row for lo, hi, _ in chosen.runs for row in range(lo, hi)]
    rows += [] if chosen.rest is None else chosen.rest.rows
    assert sorted(rows) == [row for row, slot in enumerate(slot_of) if slot >= 0]


@pytest.mark.parametrize("dtype", lora_worlds.DTYPES, ids=str)
def test_the_shipped_costs_are_sane_far_outside_the_grid(dtype: torch.dtype) -> None:
    """Costs are non-negative and grow with work; many rows of few adapters are never masked over many slots."""
    costs = FormCosts.read(dtype)
    assert {"masked", "padded", "segmented"} <= set(costs.seconds)
    assert all(cost >= 0 for work in costs.seconds.values() for cost in work)
    assert all(work.calls > 0 and work.multiplies > 0 for work in costs.seconds.values())
    made = slots(64, 64, dtype)
    chosen = choose([(0, 50_000, 3), (50_000, 90_000, 7)], made, Widths.of(LoRASlots(MODEL, 1, 1, dtype)), costs)
    assert chosen.rest is None or chosen.form not in ("masked", "padded")


def test_a_form_that_was_not_measured_or_cannot_run_is_not_chosen() -> None:
    made = slots(3, 5, torch.bfloat16)
    runs = runs_of([0, 1, 2, 0, 1, 2], made.ranks)
    free = FormCosts({"grouped": Work(0, 0, 0, 0), "padded": Work(1, 1, 1, 1)})
    assert SlotRows.of(runs).work("grouped", made, Widths.of(made)) is None
    assert choose(runs, made, Widths.of(made), free).form == "padded"


def test_bad_cost_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "forms.json"
    for text in ("{", json.dumps({"format": "loratory-lora-forms-1", "dtypes": {}}), "[]"):
        path.write_text(text)
        with pytest.raises(InputError, match="holds no costs of LoRA forms in float32"):
            FormCosts.read(torch.float32, path)
    path.write_text(json.dumps({"format": "other"}))
    with pytest.raises(InputError, match="has format 'other'"):
        FormCosts.read(torch.float32, path)


@given(st.sets(st.integers(0, 12), min_size=1), st.integers(13, 16))
def test_an_active_form_takes_the_slots_in_use_in_numbers_that_come_back(used: set[int], max_loras: int) -> None:
    load = SlotRows.of([(row, row + 1, slot) for row, slot in enumerate(sorted(used))])
    taken = load.active(slots(max_loras, 2, torch.bfloat16))
    assert used <= set(taken) <= set(range(max_loras))
    assert taken == sorted(set(taken))
    assert len(taken) in (1, 2, 4, 8, max_loras)
    assert len(taken) < 2 * len(used)
