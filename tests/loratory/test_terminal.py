"""Terminal: progress in a pipe."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from loratory.cli import terminal
from loratory.cli.terminal import show, text_table


def test_progress_in_a_pipe_is_a_line_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter([0.0, *(0.5 * place for place in range(1, 71))])
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    with terminal.progress("simulating") as tell:
        for done in range(1, 71):
            tell("fifo", done, 70)
    said = capsys.readouterr()
    assert said.out == ""
    lines = [f"simulating: {done} of 70 (fifo, about {(70 - done) / 2:.0f} s left)" for done in (20, 40, 60)]
    assert said.err.splitlines() == lines


def test_what_was_done_before_does_not_count_for_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter([0.0, *(5.0 * place for place in range(1, 5))])
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    with terminal.progress("planning") as tell:
        for done in (101, 102, 103, 104):
            tell("fleets", done, 110)
    assert capsys.readouterr().err.splitlines() == [
        "planning: 102 of 110 (fleets, about 40 s left)",
        "planning: 104 of 110 (fleets, about 30 s left)",
    ]


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_a_table_of_texts_loses_no_word(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    long = "2 of h100-80gb; 1 of a100-80gb, max_loras 2"
    rows = [["replicas", "3 of h100-80gb", "3 of h100-80gb", long], ["output tokens of a replica", "1", "2", "3"]]
    show(text_table(["", "A", "B", "C"], rows, left=4, tight=True))
    said = capsys.readouterr().out
    last = "".join(line[said.splitlines()[1].index("C") :] for line in said.splitlines()[3:-2])
    assert last.replace(" ", "") == long.replace(" ", "")
    assert max(map(len, said.splitlines())) <= columns
