"""Arrow arrays made of numpy's buffers, against pyarrow's own functions; and that a run does without pandas."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratory.reports.arrow_arrays import numeric, texts, values_of

_KINDS = [np.float64, np.int64, np.int32, np.int16, np.bool_]


@given(st.lists(st.tuples(st.integers(0, 1000), st.booleans()), max_size=40), st.sampled_from(_KINDS), st.booleans())
def test_numbers_are_those_of_pyarrow_and_come_back(rows: list[tuple[int, bool]], kind: type, nullable: bool) -> None:
    values = np.array([value for value, _ in rows], dtype=kind)
    null = np.array([gone for _, gone in rows], dtype=bool) if nullable else None
    made = numeric(values, null)
    made.validate(full=True)
    assert made.equals(pa.array(values, mask=null))
    wanted = values.astype(np.float64)
    if null is not None:
        wanted[null] = np.nan
    column = pa.chunked_array([made, made.slice(1), made.slice(0, 3), made.slice(len(rows))], made.type)
    np.testing.assert_array_equal(values_of(column), np.concatenate([wanted, wanted[1:], wanted[:3]]))
    np.testing.assert_array_equal(values_of(pa.chunked_array([], made.type)), [])


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=20))
def test_texts_are_those_of_pyarrow(values: list[str]) -> None:
    made = texts(values)
    made.validate(full=True)
    assert made.equals(pa.array(values, pa.string()))


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_does_not_import_pandas(jobs: int, tmp_path: Path) -> None:
    """It takes longer to import than a short run takes; only traces and measured lengths need it."""
    code = f"""
import sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name == "pandas":
            raise AssertionError("pandas is imported")
sys.meta_path.insert(0, Refused())
from loratory import load_scenario, run_scenario
small = ["workload.duration_s=5", "seeds=[0,1]"]
run_scenario(load_scenario("quickstart", small, ["fifo"]), {str(tmp_path / "out")!r}, jobs={jobs})
assert "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    assert (tmp_path / "out" / "report.html").exists()
