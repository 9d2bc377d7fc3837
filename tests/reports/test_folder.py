"""ResultFolder: all or nothing, never in place of anything but an older result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loratory.errors import InputError
from loratory.reports import ResultFolder
from loratory.reports.folder import safe_name


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Drawing takes most of the time and is tested elsewhere."""
    if request.node.name != "test_equal_runs_differ_only_in_run_info":
        monkeypatch.setattr("loratory.reports.folder.render", lambda *_: "<!DOCTYPE html>")


def _fill(target: Path, report: Any, make_stream: Any, seed: int = 0) -> dict[str, Any]:
    with ResultFolder(target) as folder:
        with folder.recorder("fifo:strict=true", seed) as recorder:
            sink = recorder.sink()
            for event in make_stream(seed=seed, requests=30).events():
                sink(event)
        made = report("fifo:strict=true", seed, requests=30)
        return folder.write([made], title="t", scenario_yaml="name: t\n", run_info={"exit": "done"})


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_run_leaves_every_file_and_nothing_beside_it(report: Any, make_stream: Any, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "result"
    summary = _fill(target, report, make_stream)
    files = _bytes(target)
    assert set(files) == {
        "report.html", "summary.json", "scenario.yaml", "timeline.json", "run_info.json",
        *(f"fifo-strict=true/0/{name}" for name in ("requests.parquet", "steps.parquet", "decisions.jsonl")),
    }  # fmt: skip
    assert json.loads(files["summary.json"]) == summary
    info = json.loads(files["run_info.json"])
    assert info["folders"] == {"fifo:strict=true": "fifo-strict=true"} and info["exit"] == "done"
    assert [path.name for path in target.parent.iterdir()] == ["result"]


def test_equal_runs_differ_only_in_run_info(report: Any, make_stream: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        _fill(tmp_path / name, report, make_stream)
    a, b = _bytes(tmp_path / "a"), _bytes(tmp_path / "b")
    assert {name for name in a if a[name] != b[name]} <= {"run_info.json"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_crash_keeps_the_older_result(report: Any, make_stream: Any, tmp_path: Path, error: type[Exception]) -> None:
    target = tmp_path / "result"
    _fill(target, report, make_stream)
    before = _bytes(target)
    with pytest.raises(error), ResultFolder(target) as folder:
        recorder = folder.recorder("fifo", 0)
        recorder.sink()
        folder.write([report()], title="t", scenario_yaml="")
        raise error
    assert _bytes(target) == before
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_a_crash_leaves_no_folder_that_was_made_for_the_result(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    for target in ("results/a/b", "kept/a"):
        with pytest.raises(RuntimeError), ResultFolder(tmp_path / target) as folder:
            folder.recorder("fifo", 0)
            raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == ["kept"]


def test_an_older_result_is_replaced_whole(report: Any, make_stream: Any, tmp_path: Path) -> None:
    target = tmp_path / "result"
    _fill(target, report, make_stream, seed=0)
    _fill(target, report, make_stream, seed=1)
    assert [path.name for path in (target / "fifo-strict=true").iterdir()] == ["1"]
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_what_is_no_result_is_not_replaced(report: Any, make_stream: Any, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"'thesis.tex'.*--out"), ResultFolder(mine):
        pass
    assert (mine / "thesis.tex").read_text() == "years of work"
    result = tmp_path / "result"
    _fill(result, report, make_stream)
    (result / "notes.md").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.md"), ResultFolder(result):
        pass
    empty = tmp_path / "empty"
    empty.mkdir()
    _fill(empty, report, make_stream)
    assert (empty / "report.html").exists()


def test_a_folder_that_cannot_be_written_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="--out") as caught, ResultFolder(target):
            pass
        assert caught.value.exit_code == 2


def test_policy_specs_become_safe_unique_names(tmp_path: Path) -> None:
    specs = [
        "fifo",
        "FIFO",
        "fifo:strict=true",
        "fifo-strict=true",
        "../../etc/passwd",
        "path/to/file.py:Class",
        "…",
        ".",
    ]
    with ResultFolder(tmp_path / "r") as folder:
        made = [folder.run_folder(spec, 0) for spec in specs]
        assert len({str(path).casefold() for path in made}) == len(specs)
        assert all(path.parent.parent == folder.staged for path in made)
        assert made[0] == folder.run_folder("fifo", 0)
    assert safe_name("path/to/file.py:Class") == "file.py-Class"
