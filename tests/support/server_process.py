"""ServerProcess: ``loratory serve`` as a process of its own, what it logs, and what it says of itself when asked."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PATIENCE_S = 120.0
"""Seconds after which what is waited for counts as never coming."""

AUDITED = Path(__file__).with_name("audited_server.py")


class ServerProcess:
    """A context: the server answers within it, and its process is gone after it.

    ``folder`` gets its log, its audit (`audited_server`) and its cache. ``options``: of ``loratory serve``. Without
    ``audited`` it is the command itself, and there is no audit.
    """

    def __init__(self, folder: Path, checkpoint: Path, *options: str, audited: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.log = folder / "log.txt"
        self.audit = folder / "audit.jsonl"
        self.port = 0
        program = [str(AUDITED), str(self.audit)] if audited else ["-m", "loratory"]
        self._command = [sys.executable, *program, "serve", str(checkpoint), "--port", "0", *options]
        self._environment = {**os.environ, "LORATORY_CACHE": str(folder / "cache")}

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=self._environment
            )
        try:
            found = self.until(lambda: re.search(r" at http://[^ ]*:(\d+)", self.log.read_text(errors="replace")))
        except BaseException:
            self._end()
            raise
        self.port = int(found.group(1))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def terminate(self) -> None:
        """SIGTERM."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        return self._process.wait(PATIENCE_S)

    def cpu_s(self) -> float:
        """CPU seconds that it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def lines(self) -> list[dict[str, Any]]:
        """Its audit so far."""
        if not self.audit.exists():
            return []
        whole = self.audit.read_text(encoding="utf-8").rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def holds(self) -> dict[str, int]:
        """What it holds now."""
        before = len(self._told())
        self.order("holds")
        self.until(lambda: len(self._told()) > before)
        return self._told()[-1]

    def order(self, line: str) -> None:
        """A line of input for `audited_server`."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()

    def _told(self) -> list[dict[str, int]]:
        return [line["holds"] for line in self.lines() if "holds" in line]

    def until(self, condition: Callable[[], Any]) -> Any:
        """Wait until something is true, and return it. Fails when the process ends before, or after `PATIENCE_S`."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            if found := condition():
                return found
            if self._process.poll() is not None:
                raise AssertionError(f"the server has ended with {self._process.returncode}: {self._tail()}")
            time.sleep(0.02)
        raise AssertionError(f"what is waited for did not come: {self._tail()}")

    def _tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
