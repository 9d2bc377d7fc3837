"""Tiles and Triton kernels, the kernels through Triton's interpreter in a process of their own, against float64."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loratory.executor.lora.tiles import Tiles

ROOT = Path(__file__).parents[3]


@given(
    st.integers(1, 6).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(-1, n - 1), min_size=1))),
    st.sampled_from([1, 2, 4, 16]),
)
def test_tiles_hold_each_row_of_an_adapter_once(drawn: tuple[int, list[int]], block: int) -> None:
    max_loras, slot_of = drawn
    tiles = Tiles.of(torch.tensor(slot_of), max_loras, block)
    found = [
        (row, slot)
        for slot, rows in zip(tiles.slots.tolist(), tiles.rows.tolist(), strict=True)
        for row in rows
        if row >= 0
    ]
    assert sorted(found) == [(row, slot) for row, slot in enumerate(slot_of) if slot >= 0]
    others = Tiles.of(torch.full((len(slot_of),), -1), max_loras, block)
    assert others.rows.shape == tiles.rows.shape and (others.slots == -1).all() and (others.rows == -1).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_kernels_under_the_interpreter(dtype: str) -> None:
    pytest.importorskip("triton")
    support = ROOT / "tests" / "support"
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{support}"}
    command = [sys.executable, str(support / "interpret_lora.py"), dtype]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["cases", "8"]
