"""compare: differences and intervals are those of the formulas, and what cannot be compared is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loratory.errors import InputError
from loratory.reports import compare, summary_of
from loratory.reports.agreement import UNDECIDED, agreement
from loratory.reports.stats import student_t
from loratory.reports.summary import to_json


def _write(folder: Path, runs: list[Any], scenario: str = "", version: str = "Loratory 1") -> Path:
    folder.mkdir()
    (folder / "summary.json").write_text(to_json(summary_of([made.run for made in runs], {"version": version})))
    if scenario:
        (folder / "scenario.yaml").write_text(scenario)
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
    tables = comparison.tables(("e2e_s.mean", "ttft_s.p99"))
    shown = [(folder, policy) for folder, policy, _ in tables]
    assert shown == [(str(b), "fifo"), (str(a), "fifo"), (str(a), "affinity")]
    assert all([row[0] for row in rows] == ["e2e_s.mean", "ttft_s.p99"] for _, _, rows in tables)
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


SCENARIO = """\
name: NAME
engine: {max_loras: 4, max_num_seqs: 32}
adapters:
  records:
  - {name: sql, version: 1, digest: aa}
  - {name: chat, version: 2, digest: bb}
workload: {streams: [{tenant: x, rate: 1.0}, {tenant: x, rate: 2.0}]}
"""


def test_a_summary_that_is_a_git_lfs_pointer_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n")
    with pytest.raises(InputError, match=r"summary\.json is a Git LFS pointer, not the file: run git lfs pull"):
        compare([tmp_path, tmp_path])


def test_settings_that_differ_are_listed_with_adapters_by_name(report: Any, tmp_path: Path) -> None:
    other = SCENARIO.replace("NAME", "b").replace("max_loras: 4", "max_loras: 8").replace("rate: 2.0", "rate: 3.0")
    other = other.replace("version: 2, digest: bb", "version: 3, digest: cc").replace("max_num_seqs: 32", "tokens: 1")
    a = _write(tmp_path / "a", [report()], SCENARIO)
    b = _write(tmp_path / "b", [report()], other, "Loratory 2")
    found = {setting.key: setting.values for setting in compare([a, b, a]).settings}
    assert found == {
        "engine.max_loras": ("4", "8", "4"),
        "engine.max_num_seqs": ("32", "-", "32"),
        "engine.tokens": ("-", "1", "-"),
        "adapters.records[chat].version": ("2", "3", "2"),
        "adapters.records[chat].digest": ("bb", "cc", "bb"),
        "workload.streams[1].rate": ("2.0", "3.0", "2.0"),
        "(version)": ("Loratory 1", "Loratory 2", "Loratory 1"),
    }
    assert compare([a, a]).settings == ()


def test_errors_of_a_simulation_are_relative_to_the_measurement(report: Any, tmp_path: Path) -> None:
    """Simulated 1 s against measured 2 s is -50 %, in both of compare's tables."""
    sim, real = report("fifo"), report("fifo", backend="executor")
    sim.run["e2e_s"]["mean"], real.run["e2e_s"]["mean"] = 1.0, 2.0
    a, b = _write(tmp_path / "a", [sim]), _write(tmp_path / "b", [real])
    found = _find(compare([a, b]), "e2e_s.mean")
    assert (found.base, found.reference, found.value, found.relative) == (str(b), 2.0, 1.0, -0.5)
    ((_, _, rows),) = compare([a, b]).tables(("e2e_s.mean",))
    assert rows == [["e2e_s.mean", "1", "2", "-50.0 %", ""]]
    (row,) = [row for row in agreement(a, [b]).rows if row.metric == "e2e_s.mean"]
    assert row.error == -0.5 and row.holds == "no"


@pytest.mark.parametrize(
    ("measured", "holds"),
    [
        ((1.00, 1.00), "yes"),
        ((1.02, 1.05), "yes"),
        ((1.10, 1.10), "no"),
        ((0.90, 1.20), UNDECIDED),
        ((1.00, 1.10), UNDECIDED),
        ((2.00, 2.10), "no"),
    ],
)
def test_noise_beyond_the_limit_leaves_a_row_undecided(
    report: Any, tmp_path: Path, measured: tuple[float, float], holds: str
) -> None:
    """Mean latency is held to 8 %: beyond that by more than twice the repeats' spread is a miss, within it nothing."""
    runs = [report("fifo") for _ in range(3)]
    for run, seconds in zip(runs, (1.0, *measured), strict=True):
        run.run["e2e_s"]["mean"] = seconds
        run.run["backend"] = "sim" if run is runs[0] else "executor"
    folders = [_write(tmp_path / str(place), [run]) for place, run in enumerate(runs)]
    found = agreement(folders[0], folders[1:])
    (row,) = [row for row in found.rows if row.metric == "e2e_s.mean"]
    assert row.limit == 0.08 and row.holds == holds
    assert found.holds == (holds != "no") and found.undecided == (holds == UNDECIDED)
