"""Download: one file from a remote source to a path, resumed where it stopped, checked when it is complete."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from loratory.adapters.sources.remote import (
    Checksum,
    DownloadLimits,
    RemoteFile,
    RemoteSource,
    SourceError,
    TransientError,
)

BLOCK = 2**20
"""Bytes hashed or copied at a time."""

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Errors of a file system that cannot hold more: full, over quota, over the process's file size limit."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file on disk: its sha256 in hex and its size in bytes."""

    sha256: str
    size: int


class Digests:
    """The sha256 of bytes fed one after another, and the digest that a source declared, computed beside it."""

    def __init__(self, checksum: Checksum | None, size: int | None) -> None:
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._checksum = checksum
        self._other = None
        if checksum is not None and checksum.algorithm == "md5":
            self._other = hashlib.md5(usedforsecurity=False)
        elif checksum is not None and checksum.algorithm == "git-sha1":
            self._other = hashlib.sha1(b"blob %d\0" % (size or 0), usedforsecurity=False)

    def feed(self, chunk: bytes) -> None:
        """Counts and hashes the next bytes."""
        self.size += len(chunk)
        self._sha256.update(chunk)
        if self._other is not None:
            self._other.update(chunk)

    @property
    def stored(self) -> StoredFile:
        """The file that the bytes fed so far make up."""
        return StoredFile(self._sha256.hexdigest(), self.size)

    @property
    def agree(self) -> bool:
        """Whether the bytes fed have the declared digest; true when none was declared."""
        if self._checksum is None:
            return True
        return self._checksum.hex == (self._other or self._sha256).hexdigest()


def digest_of(path: Path, checksum: Checksum | None = None) -> Digests:
    """The digests of a whole file on disk; reads it in blocks. Raises OSError when it cannot be read."""
    with path.open("rb") as stream:
        digests = Digests(checksum, os.fstat(stream.fileno()).st_size)
        while chunk := stream.read(BLOCK):
            digests.feed(chunk)
    return digests


class Download:
    """One file, from a remote source to a path.

    A file at ``target`` is taken as the beginning of a resumable file, and discarded otherwise. ``deadline`` is on
    ``clock`` (seconds). The limits bound bytes, silence, attempts and the total time.
    """

    def __init__(
        self,
        label: str,
        remote: RemoteSource,
        file: RemoteFile,
        target: Path,
        limits: DownloadLimits,
        deadline: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label = label
        self._remote = remote
        self._file = file
        self._target = target
        self._limits = limits
        self._deadline = deadline
        self._clock = clock

    def run(self) -> StoredFile:
        """Downloads until the file is complete, synced to disk and has the checksum that its source declares.

        Raises `ChangedError` when the source's file changed, `SourceError` for every other failure. A partial file
        stays for the next attempt, except when the disk is full or the content was wrong.
        """
        try:
            return self._checked()
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            self._target.unlink(missing_ok=True)
            raise SourceError(
                f"source {self._label}: no room on the disk for {self._file.name}: free space at "
                f"{self._target.parent}, or put the cache elsewhere"
            ) from error

    def _checked(self) -> StoredFile:
        resumed = self._file.resumable and self._target.exists()
        digests = self._fill()
        if not digests.agree and resumed:
            self._target.unlink()
            digests = self._fill()
        if not digests.agree:
            self._target.unlink()
            checksum = self._file.checksum
            assert checksum is not None
            raise SourceError(
                f"source {self._label}: {self._file.name} arrived with another {checksum.algorithm} than its source "
                "declares: fetch it again; if that does not help, publish the file again"
            )
        return digests.stored

    def _fill(self) -> Digests:
        """Every byte of the file at the target, over as many attempts as the limits allow."""
        failures = furthest = 0
        while True:
            with self._target.open("r+b" if self._file.resumable and self._target.exists() else "w+b") as stream:
                digests = self._beginning(stream)
                furthest = max(furthest, digests.size)
                try:
                    if self._file.size is None or digests.size < self._file.size:
                        digests = self._append(stream, digests)
                    os.fsync(stream.fileno())
                    return digests
                except TransientError:
                    reached = os.fstat(stream.fileno()).st_size
                    failures, furthest = (0, reached) if reached > furthest else (failures + 1, furthest)
                    if failures >= self._limits.attempts:
                        raise
            self._check_time()
            time.sleep(min(self._limits.retry_wait_s * 2 ** max(failures - 1, 0), 30.0))

    def _beginning(self, stream: BinaryIO) -> Digests:
        digests = Digests(self._file.checksum, self._file.size)
        while chunk := stream.read(BLOCK):
            digests.feed(chunk)
        if self._file.size is not None and digests.size > self._file.size:
            return self._restart(stream)
        return digests

    def _restart(self, stream: BinaryIO) -> Digests:
        stream.seek(0)
        stream.truncate()
        return Digests(self._file.checksum, self._file.size)

    def _append(self, stream: BinaryIO, digests: Digests) -> Digests:
        most = self._limits.max_source_bytes if self._file.size is None else self._file.size
        reply = self._remote.read(self._file, digests.size)
        if reply.offset != digests.size:
            digests = self._restart(stream)
        for chunk in reply.chunks:
            if digests.size + len(chunk) > most:
                self._restart(stream)
                raise SourceError(
                    f"source {self._label}: {self._file.name} is longer than the {most} bytes it may have: correct the "
                    "server's Content-Length, or raise the limit of bytes"
                )
            stream.write(chunk)
            # A killed process then leaves every byte that it has received.
            stream.flush()
            digests.feed(chunk)
            self._check_time()
        if self._file.size is not None and digests.size < self._file.size:
            raise TransientError(
                f"source {self._label}: the connection ended after {digests.size} of {self._file.size} bytes of "
                f"{self._file.name}: fetch again, which continues from there if the server can"
            )
        return digests

    def _check_time(self) -> None:
        if self._clock() > self._deadline:
            raise SourceError(
                f"source {self._label} took longer than {self._limits.total_s:g} s: fetch again to continue, or "
                "raise the limit of time"
            )
