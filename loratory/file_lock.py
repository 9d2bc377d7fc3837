"""FileLock: a lock between processes that ends with its holder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType


class FileLock:
    """A held flock(2) on a file: shared or exclusive, freed by `release`, at the end of ``with``, or with its holder.

    The lock belongs to this object, not to the process, so two threads exclude each other as well. The file is never
    deleted: all waiting processes must have the same file.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @classmethod
    def take(cls, path: Path, *, shared: bool = False) -> FileLock:
        """Waits for the lock. Raises OSError if the file cannot be opened."""
        lock = cls(_open(path))
        fcntl.flock(lock._held, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        return lock

    @classmethod
    def attempt(cls, path: Path) -> FileLock | None:
        """The exclusive lock if it is free, else None."""
        lock = cls(_open(path))
        try:
            fcntl.flock(lock._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.release()
            return None
        return lock

    @property
    def _held(self) -> int:
        assert self._descriptor is not None
        return self._descriptor

    def release(self) -> None:
        """Frees the lock, also for children that inherited it by a fork; a second call does nothing."""
        if self._descriptor is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> FileLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
