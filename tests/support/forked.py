"""Forked: command lines run in forks of one warm process, which saves each the second that its imports take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any


class Forks:
    """A fork server (`hostile_server`) that runs command lines in a folder; it ends with this process."""

    def __init__(self) -> None:
        program = Path(__file__).with_name("hostile_server.py")
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, arguments: list[str], folder: Path, said: Path, seconds: float = 300.0) -> dict[str, Any]:
        """Run one; its exit ``code``, what it printed to ``out`` and ``err``, and whether it ``timed_out``.

        ``said``: the path that names of two files for that begin with."""
        assert self._process.stdin is not None and self._process.stdout is not None
        asked = {"argv": arguments, "folder": str(folder), "seconds": seconds, "said": str(said)}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


@cache
def forks() -> Forks:
    """The server of this process."""
    return Forks()
