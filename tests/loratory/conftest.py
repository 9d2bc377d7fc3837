"""The home of an operator of adapters, the command line in it, and a web server that adapters come from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from adapters_home import adapters_home
from command import Command, command_line
from servers import Server


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return adapters_home(tmp_path, monkeypatch)


@pytest.fixture
def loratory(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    return command_line(capsys, monkeypatch)


@pytest.fixture
def web() -> Iterator[Server]:
    with Server().running() as server:
        yield server
