"""AdapterCache: a folder of downloaded adapters, addressed by their content, shared by processes.

Three kinds of lock, all flock(2) on files below ``locks/``, so that they end with the process that holds them:

    lock             held by                                     held while
    source (one)     the process that downloads the source       it downloads; others wait, then find the entry
    entry (shared)   each process that uses an adapter           its folder is in use: the lease
    entry (alone)    the process that evicts it                  it evicts; a lease makes the attempt fail
    store            the process that changes the files          it moves files into place, evicts, or counts bytes

No two processes can wait for each other. Only an evicting process locks an entry alone or a source of others, always
under the store's lock, and it attempts these locks and never waits for them. A killed process leaves behind a partial
download, which the next one continues, or a staged folder or an object without an entry, which the next eviction
deletes.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from loratory.adapters.sources.cache_store import CacheStore, entry_digest, is_digest
from loratory.adapters.sources.download import NO_ROOM, Download, StoredFile
from loratory.adapters.sources.remote import (
    ChangedError,
    DownloadLimits,
    RemoteListing,
    RemoteSource,
    SourceError,
    is_plain,
)
from loratory.errors import InputError
from loratory.file_lock import FileLock


@dataclass(frozen=True, slots=True)
class CachedVersion:
    """One version of a source in the cache: the digest of its entry, and its files' names and sizes."""

    entry: str
    sizes: dict[str, int]


class AdapterCache:
    """Downloaded adapters, each downloaded once however many processes ask for it.

    Content is stored by sha256; an index maps (source, version) to content. A folder that `fetch` returns is leased
    until `release`, `close` or the end of the process: no other process evicts it. ``max_bytes`` bounds content and
    abandoned partial downloads together; downloads in progress are not counted until they are finished. ``clock``
    returns nanoseconds and orders entries by their last use. Safe for several threads and processes on one machine.

    Layout: ``objects/`` files by sha256; ``entries/`` one folder an adapter, hard links to objects; ``index/`` one file
    a source; ``partial/`` unfinished downloads; ``locks/``.
    """

    def __init__(
        self,
        root: Path | str,
        max_bytes: int = 64 * 2**30,
        limits: DownloadLimits | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        if max_bytes < 1:
            raise InputError(f"max_bytes of the adapter cache is {max_bytes}: it must be at least 1")
        self.limits = limits or DownloadLimits()
        self._max_bytes = max_bytes
        self._store = CacheStore(Path(root).expanduser(), clock)
        self._leases: dict[str, tuple[FileLock, int]] = {}
        self._mutex = threading.Lock()

    def __enter__(self) -> AdapterCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fetch(self, source: str, connect: Callable[[], RemoteSource], *, revalidate: bool = True) -> Path:
        """The folder with the adapter of a source, leased; downloaded unless this version is in the cache.

        ``connect`` returns the remote source. It is asked for the current version first, except where the version
        cannot change, or with ``revalidate=False``, which takes the version fetched last. While one process downloads a
        source, others that ask for it wait, then use the result. Raises `SourceError`.
        """
        try:
            with FileLock.take(self._store.source_lock(source)):
                return self._fetch(source, connect, revalidate)
        except OSError as error:
            what = "has no room left on its disk: free space" if error.errno in NO_ROOM else f"cannot be used ({error})"
            raise InputError(f"the adapter cache {self._store.root} {what}, or name another folder") from error

    def _fetch(self, source: str, connect: Callable[[], RemoteSource], revalidate: bool) -> Path:
        index = self._read_index(source)
        if not revalidate and (path := self._hit(index.get("latest"), index)):
            return path
        remote = connect()
        if path := self._hit(remote.pinned, index):
            return path
        for attempt in range(1, self.limits.attempts + 1):
            listing = remote.listing()
            if path := self._hit(listing.version, index):
                if index["latest"] != listing.version:
                    self._remember(source, listing.version, index)
                return path
            stamp = [listing.version, *((file.name, file.size, file.validator) for file in listing.files)]
            partial = self._store.partial(source, json.dumps(stamp))
            try:
                return self._download(source, remote, listing, partial, index)
            except ChangedError:
                if attempt == self.limits.attempts:
                    raise
            except SourceError:
                with self._store.lock():
                    if self._store.used_bytes() > self._max_bytes:
                        shutil.rmtree(partial)
                raise
        raise AssertionError("the last attempt returns or raises")

    def _hit(self, version: str | None, index: dict[str, Any]) -> Path | None:
        """The entry of a version, leased and marked as used, if the cache has it with files of the right sizes."""
        record = index["versions"].get(version) if version is not None else None
        if record is None:
            return None
        path = self._store.entry(record.entry)
        self._lease(record.entry)
        if self._store.is_whole(record.entry, record.sizes):
            with contextlib.suppress(FileNotFoundError):
                self._store.touch(record.entry)
                return path
        self.release(path)
        return None

    def _download(
        self, source: str, remote: RemoteSource, listing: RemoteListing, partial: Path, index: dict[str, Any]
    ) -> Path:
        self._check_listing(source, listing)
        with self._store.lock():
            self._make_room(source, self._store.unknown_bytes(listing.files), partial)
        deadline = time.monotonic() + self.limits.total_s
        stored: dict[str, StoredFile] = {}
        for file in listing.files:
            target = partial / file.name
            self._store.copy_known(file, target)
            stored[file.name] = Download(source, remote, file, target, self.limits, deadline).run()
            if sum(part.size for part in stored.values()) > self.limits.max_source_bytes:
                raise self._too_large(source)
        digest = entry_digest(stored)
        version = listing.version or f"unversioned {digest}"
        index["versions"][version] = CachedVersion(digest, {name: part.size for name, part in stored.items()})
        with self._store.lock():
            # Eviction may remove an object that these files share with another adapter: then they need more room.
            needed = -1
            while needed != (missing := self._store.missing_bytes(stored)):
                needed = missing
                self._make_room(source, needed, partial)
            self._lease(digest)
            try:
                self._store.put(digest, stored, partial)
                self._remember(source, version, index)
            except BaseException:
                self.release(self._store.entry(digest))
                raise
        return self._store.entry(digest)

    def _check_listing(self, source: str, listing: RemoteListing) -> None:
        for file in listing.files:
            if not is_plain(file.name):
                raise SourceError(f"source {source} names a file {file.name!r}: rename it to a plain file name")
        if sum(file.size or 0 for file in listing.files) > self.limits.max_source_bytes:
            raise self._too_large(source)

    def _too_large(self, source: str) -> SourceError:
        return SourceError(
            f"source {source} is larger than the {self.limits.max_source_bytes} bytes one adapter may have: name the "
            "folder of an adapter, or raise the limit"
        )

    def _make_room(self, source: str, needed: int, partial: Path) -> None:
        free = self._store.make_room(self._max_bytes, needed, keep=partial)
        if free < needed:
            raise SourceError(
                f"source {source} needs {needed} bytes and the adapter cache of {self._max_bytes} bytes can free only "
                f"{free}: raise its size, or release adapters in use"
            )

    def _lease(self, digest: str) -> None:
        with self._mutex:
            held = self._leases.get(digest)
            lock = held[0] if held else FileLock.take(self._store.entry_lock(digest), shared=True)
            self._leases[digest] = (lock, held[1] + 1 if held else 1)

    def release(self, path: Path) -> None:
        """Ends one lease of a folder that `fetch` returned. Once all are ended, the folder may be evicted."""
        with self._mutex:
            held = self._leases.pop(path.name, None)
            if held is None:
                return
            if held[1] > 1:
                self._leases[path.name] = (held[0], held[1] - 1)
            else:
                held[0].release()

    def close(self) -> None:
        """Ends all leases of this object."""
        with self._mutex:
            for lock, _ in self._leases.values():
                lock.release()
            self._leases.clear()

    def used_bytes(self) -> int:
        """Bytes of content and of partial downloads on disk."""
        with self._store.lock():
            return self._store.used_bytes()

    def entries(self) -> list[Path]:
        """The folders of all adapters, least recently used first. They are not leased."""
        return [self._store.entry(digest) for digest in self._store.by_use()]

    def verify(self, only: Path | None = None) -> list[Path]:
        """Reads all content again and drops entries whose bytes do not have the digest they are named by.

        Returns the folders of dropped entries. ``only``: the one entry to check, a folder that `fetch` returned.
        Entries in use are dropped as well: no weights are better than wrong ones. The next `fetch` downloads them again
        to the same path. Takes as long as the disk needs to read `used_bytes`.
        """
        dropped = []
        for digest in self._store.by_use() if only is None else [only.name]:
            path = self._store.entry(digest)
            self._lease(digest)
            try:
                if path.exists() and not self._store.is_sound(digest):
                    with self._store.lock():
                        self._store.drop_corrupt(digest)
                    dropped.append(path)
            finally:
                self.release(path)
        return dropped

    def _read_index(self, source: str) -> dict[str, Any]:
        try:
            data = json.loads(self._store.index(source).read_text(encoding="utf-8"))
            versions = {
                key: CachedVersion(str(item["entry"]), dict(item["sizes"])) for key, item in data["versions"].items()
            }
            if all(is_digest(record.entry) for record in versions.values()):
                return {"latest": data["latest"], "versions": versions}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        # No index, or a damaged one: the source is fetched again.
        return {"latest": None, "versions": {}}

    def _remember(self, source: str, version: str | None, index: dict[str, Any]) -> None:
        """Writes the index with this version as the latest, without versions whose content has been evicted."""
        versions = {
            key: {"entry": record.entry, "sizes": record.sizes}
            for key, record in index["versions"].items()
            if self._store.is_whole(record.entry, record.sizes)
        }
        text = json.dumps({"source": source, "latest": version, "versions": versions})
        self._store.write(self._store.index(source), text.encode())
