"""Bad inputs to every entry point: one line that names the fault, the right exit code, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile import answered, cases, good


def test_what_the_bad_inputs_are_made_from_is_accepted(tmp_path: Path) -> None:
    assert not (found := answered(tmp_path, good())), "\n".join(found)


def test_two_hundred_bad_inputs(tmp_path: Path) -> None:
    found = answered(tmp_path, cases(seed=14, number=200))
    assert not found, f"{len(found)} faults\n" + "\n".join(found[:40])


@pytest.mark.slow
def test_five_thousand_bad_inputs(tmp_path: Path) -> None:
    found = answered(tmp_path, cases(seed=5000, number=5000))
    assert not found, f"{len(found)} faults\n" + "\n".join(found[:40])
