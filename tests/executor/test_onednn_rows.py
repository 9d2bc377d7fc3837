"""round_up: padding is little, the numbers of rows are few, and a window holds the rows it was asked for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loratory.executor.onednn_rows import round_up, round_up_coarsely, window

CPU = torch.device("cpu")
MOST = 4096


@pytest.mark.parametrize(("rounded", "numbers", "waste"), [(round_up, 70, 1.25), (round_up_coarsely, 20, 1.5)])
def test_few_numbers_and_little_waste(rounded: object, numbers: int, waste: float) -> None:
    assert callable(rounded)
    found = [rounded(rows, torch.bfloat16, CPU) for rows in range(1, MOST + 1)]
    assert len(set(found)) <= numbers
    assert found == sorted(found)
    assert all(rows <= got < max(rows * waste, rows + 8) for rows, got in enumerate(found, 1))
    assert all(rounded(got, torch.bfloat16, CPU) == got for got in set(found))


@pytest.mark.parametrize("rounded", [round_up, round_up_coarsely])
def test_float32_and_nothing_stay_as_they_are(rounded: object) -> None:
    assert callable(rounded)
    assert rounded(101, torch.float32, CPU) == 101
    assert rounded(101, torch.bfloat16, torch.device("cuda")) == 101
    assert rounded(0, torch.bfloat16, CPU) == 0


@given(st.integers(1, 700), st.data())
def test_a_window_holds_its_rows(rows: int, data: st.DataObject) -> None:
    batch = torch.arange(rows, dtype=torch.int64).to(torch.bfloat16).unsqueeze(1)
    start = data.draw(st.integers(0, rows - 1))
    count = data.draw(st.integers(1, rows - start))
    view, begin = window(batch, start, count)
    assert torch.equal(view[begin : begin + count], batch[start : start + count])
    assert view.shape[0] == min(round_up_coarsely(count, batch.dtype, CPU), rows)
