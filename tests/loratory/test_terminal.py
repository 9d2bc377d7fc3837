"""Terminal: progress in a pipe."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from loratory.cli import terminal


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
    assert said.err.splitlines() == [f"simulating: {done} of 70 (fifo)" for done in (20, 40, 60)]
