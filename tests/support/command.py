"""Command: runs ``loratory ...`` in this process, as its user would see it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

SMALL = """\
name: small
model: llama-3.1-8b
gpu: h100-80gb
engine: {max_loras: 4, max_lora_rank: 16}
adapters: {count: 8, ranks: 16, popularity: {zipf: 1.0}}
workload: {arrivals: 4, input_tokens: 100, output_tokens: 20, duration_s: 3}
policies: [fifo]
"""
"""A scenario that runs in a moment."""


@dataclass(frozen=True)
class Done:
    """What a command left: exit code, what it printed, and what it complained of."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The JSON it printed, and nothing else."""
        assert self.code in (0, 1), self.err
        return json.loads(self.out)


Command = Callable[..., Done]


def command_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """A function that runs the command line with the arguments it is given."""
    from loratory.cli.main import main

    monkeypatch.delenv("COLUMNS", raising=False)  # in a pipe without it, no sentence is wrapped

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["loratory", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Done(int(ended.value.code or 0), said.out, said.err)

    return run
