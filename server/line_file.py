"""LineFile: lines that are appended to a file, which goes on in another when it has become large."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import IO

from loratory.server.recording_folder import part

MOST_BYTES = 256 << 20
"""Bytes after which the next part begins."""


class LineFile:
    """``folder/STEM.jsonl``, then ``STEM-2.jsonl`` and so on once a part has ``most_bytes``; None: never.

    What `write` was given is with the system when it returns, so it outlives this process. Raises `OSError`.
    """

    def __init__(self, folder: Path, stem: str, most_bytes: int | None = MOST_BYTES) -> None:
        self._folder = folder
        self._stem = stem
        self._most_bytes = most_bytes
        self._number = 1
        self._size = 0
        self.written = 0
        """Bytes so far, in all parts."""
        self._file = self._open()

    def write(self, lines: Iterable[str]) -> None:
        """Append lines, each with its newline, all to one part."""
        content = "".join(lines).encode()
        if not content:
            return
        if self._most_bytes is not None and self._size >= self._most_bytes:
            self._file.close()
            self._number += 1
            self._size = 0
            self._file = self._open()
        rest = memoryview(content)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._size += len(content)
        self.written += len(content)

    def close(self) -> None:
        """Nothing follows."""
        self._file.close()

    def _open(self) -> IO[bytes]:
        return open(self._folder / part(self._stem, self._number), "ab", buffering=0)
