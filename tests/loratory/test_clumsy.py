"""Hostile and clumsy input through the command line: one line of at most 400 characters, no traceback, no hang."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import SMALL, Command, command_line

from loratory.errors import InputError
from loratory.reports.folder import ResultFolder
from loratory.serving.guest_errors import unexpected

DEEP = "[" * 100_000
LAUGHS = "a0: &a0 [x, x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Command]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SMALL)
    yield command_line(capsys, monkeypatch)


def refused(command: Command, *arguments: object) -> str:
    """Bad input: exit code 2 and one line."""
    done = command(*arguments)
    assert done.code == 2, (arguments, done.err)
    (line,) = done.err.splitlines()
    assert line.startswith("loratory: ") and len(line) <= 400 and "np." not in line
    assert "Traceback" not in line and "fault of its own" not in line
    return line


@pytest.mark.parametrize(
    "text",
    [
        "",
        "42",
        "- 1",
        DEEP,
        "name: " + DEEP,
        LAUGHS,
        "name: &a [*a]",
        SMALL + "k" * 100_000 + ": 1",
        SMALL + "'" + "k" * 100_000,
        SMALL + "".join(f"key{i}: 1\n" for i in range(3000)),
        SMALL + "2020-13-45: 1",
        SMALL.replace("duration_s: 3", "duration_s: 2020-13-45"),
        SMALL.replace("duration_s: 3", "requests: " + "9" * 6000),
        SMALL.replace("[fifo]", "[" + "f" * 100_000 + "]"),
        SMALL.replace("llama-3.1-8b", "m" * 100_000),
        SMALL + "tenants: {map: {owners: {a: [" + ", ".join(f"zz{i}" for i in range(3000)) + "]}}}",
    ],
    ids=range(16),
)
def test_scenarios_nobody_can_run(text: str, command: Command, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    refused(command, "scenarios", "check", "bad.yaml")


def test_paths_that_are_no_files(command: Command, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    for path in (".", "pipe", "loop", "/dev/zero", "binary.yaml", "x" * 5000, "a\0b"):
        for arguments in (("run", path), ("scenarios", "show", path), ("traces", "check", path), ("replay", path)):
            if arguments[0] != "traces" or path != "binary.yaml":
                refused(command, *arguments)
    for out in ("loop", "pipe", "small.yaml/below", "/dev/null", "x" * 300, "/proc/below"):
        refused(command, "run", "small.yaml", "--out", out)
    (tmp_path / "sub").mkdir()
    with pytest.raises(InputError), ResultFolder(tmp_path / "loop"):
        pass


@pytest.mark.parametrize(
    "options",
    [
        ("--set", "x" * 100_000),
        ("--set", "engine.max_loras=" + DEEP),
        ("--set", "workload.duration_s=2020-13-45"),
        ("--set", "engine.max_loras=" + "9" * 6000),
        ("--set", "workload.arrivals=.nan"),
        ("--policy-timeout", "nan"),
        ("--policy-timeout", "inf"),
        ("--on", "executor", "--time-scale", "nan"),
        ("--jobs", "0"),
        ("-p", "x" * 10_000),
        ("-p", "\0"),
        ("-p", "a/" * 5000 + "p.py:X"),
        ("-p", "fifo:" + "k" * 10_000 + "=1"),
        ("-p", "json:JSONDecoder"),
        ("-p", "deficit:quantum=nan"),
        ("-p", "deficit:quantum=inf"),
        ("-p", "deficit:quantum=-1"),
        ("-p", "slora:margin_s=-1"),
        ("-p", "slora:tokens_per_rank=-1"),
        ("-p", "drain:threshold_s=nan"),
        ("--" + "x" * 10_000,),
    ],
    ids=range(21),
)
def test_options_nobody_means(options: tuple[str, ...], command: Command) -> None:
    refused(command, "run", "small.yaml", *options)


@pytest.mark.parametrize("text", ["", "null", "[]", "42", DEEP, '{"runs": [1], "folders": 3}'], ids=range(6))
def test_results_that_are_none(text: str, command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "result"
    folder.mkdir()
    for name in ("summary.json", "run_info.json", "scenario.yaml"):
        (folder / name).write_text(text)
    refused(command, "compare", "result", "result")
    refused(command, "replay", "result")


def test_what_nobody_foresaw_is_one_line_too(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """With where it came from, exit code 1, and the traceback for who asks for it."""

    def broken(*_: object, **__: object) -> None:
        raise KeyError("x" * 10_000)

    monkeypatch.setattr("loratory.scenarios.load.load_scenario", broken)
    done = command("run", "small.yaml")
    (line,) = done.err.splitlines()
    assert done.code == 1 and len(line) <= 400 and "KeyError" in line and "test_clumsy.py:" in line
    monkeypatch.setenv("LORATORY_TRACEBACK", "1")
    with pytest.raises(KeyError):
        command("run", "small.yaml")


def test_the_report_of_a_fault_of_ours_names_the_line() -> None:
    try:
        json.loads("{")
    except ValueError as error:
        text = unexpected(error)
    assert "JSONDecodeError" in text and "test_clumsy.py:" in text and "please report it" in text
