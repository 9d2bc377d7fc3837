"""compare: differences and intervals are those of the formulas, and what cannot be compared is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reports import compare, summary_of
from reports.stats import student_t
from reports.summary import to_json
from serving.errors import InputError


def _write(folder: Path, runs: list[Any]) -> Path:
    folder.mkdir()
    (folder / "summary.json").write_text(to_json(summary_of([made.run for made in runs])))
    return folder


def _find(comparison: Any, metric: str) -> Any:
    (found,) = [d for d in comparison.differences if d.metric == metric]
    return found


def test_equal_seeds_are_compared_in_pairs(report: Any, tmp_path: Path) -> None:
    seeds = (2, 0, 1)
    before = [report("fifo", seed) for seed in seeds]
    after = [report("fifo", seed, slowness=1.5) for seed in sorted(seeds)]
    comparison = compare([_write(tmp_path / "a", before), _write(tmp_path / "b", after)])
    found = _find(comparison, "ttft_s.mean")
    a = np.array([r.run["ttft_s"]["mean"] for r in sorted(before, key=lambda r: r.run["seed"])])
    b = np.array([r.run["ttft_s"]["mean"] for r in after])
    half = student_t(2) * np.std(b - a, ddof=1) / np.sqrt(3)
    assert found.method == "paired" and found.clear == (abs(found.difference) > half)
    assert found.difference == pytest.approx((b - a).mean()) and found.relative == pytest.approx(
        (b - a).mean() / a.mean()
    )
    assert (found.low, found.high) == pytest.approx(((b - a).mean() - half, (b - a).mean() + half))


def test_other_seeds_are_compared_by_welch(report: Any, tmp_path: Path) -> None:
    before = [report("fifo", seed) for seed in (0, 1, 2)]
    after = [report("fifo", seed, backend="executor") for seed in (3, 4, 5, 6)]
    comparison = compare([_write(tmp_path / "a", before), _write(tmp_path / "b", after)])
    found = _find(comparison, "e2e_s.p99")
    a, b = (np.array([r.run["e2e_s"]["p99"] for r in runs]) for runs in (before, after))
    x, y = a.var(ddof=1) / 3, b.var(ddof=1) / 4
    half = student_t((x + y) ** 2 / (x**2 / 2 + y**2 / 3)) * np.sqrt(x + y)
    assert found.method == "welch" and (found.high - found.low) / 2 == pytest.approx(half, rel=1e-6)
    assert comparison.backends == ("sim", "executor")


def test_a_result_does_not_differ_from_itself(report: Any, tmp_path: Path) -> None:
    folder = _write(tmp_path / "a", [report(p, s) for p in ("fifo", "affinity") for s in (0, 1)])
    comparison = compare([folder, folder])
    assert {d.difference for d in comparison.differences} == {0.0}
    assert not any(d.clear for d in comparison.differences) and comparison.unmatched == ()


def test_texts_and_json(report: Any, tmp_path: Path) -> None:
    a = _write(tmp_path / "a", [report("fifo", scenario="x"), report("affinity", scenario="x")])
    b = _write(tmp_path / "b", [report("fifo", slowness=2.0), report("slora")])
    comparison = compare([a, b, a])
    heads, rows = comparison.rows(("e2e_s.mean", "ttft_s.p99"))
    assert all(len(row) == len(heads) for row in rows)
    assert [row[1] for row in rows] == ["e2e_s.mean", "ttft_s.p99"] * 3
    read = json.loads(json.dumps(comparison.as_dict(), allow_nan=False))
    assert read["folders"] == [str(a), str(b), str(a)]
    assert any("affinity is only in" in note for note in read["notes"])
    assert any("ran scenario synthetic" in note for note in read["notes"])


def test_two_single_policies_are_compared_whatever_their_names(report: Any, tmp_path: Path) -> None:
    folders = [_write(tmp_path / name, [report(name)]) for name in ("fifo", "affinity")]
    assert {d.policy for d in compare(folders).differences} == {"fifo / affinity"}


def test_what_cannot_be_compared_is_bad_input(report: Any, tmp_path: Path) -> None:
    good = _write(tmp_path / "good", [report("a"), report("b")])
    other = _write(tmp_path / "other", [report("c"), report("d")])
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "summary.json").write_text("[1, 2]")
    for folders in ([good], [good, tmp_path / "none"], [good, tmp_path / "bad"], [good, other]):
        with pytest.raises(InputError):
            compare(folders)
