"""AdapterCache: a folder of downloaded adapters, addressed by their content, shared by processes."""

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
    """What one version of a source turned out to be: the digest of its entry, and its files' names and sizes."""

    entry: str
    sizes: dict[str, int]


class AdapterCache:
    """Adapters from elsewhere, each downloaded once whoever asks.

    Content is kept by sha256; an index leads from (source, version) to content. What a cache object hands out is leased
    until `release`, `close` or the end of the process: no other process evicts it. ``max_bytes`` bounds content and
    abandoned partial downloads together; downloads under way come on top of it until they are finished. ``clock`` gives
    nanoseconds and orders the least recently used. Safe for several threads and processes on one machine.

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
            raise InputError(f"the adapter cache may hold {max_bytes} bytes: give it at least 1")
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
        """The folder with the adapter of a source, leased; downloaded unless this version is here already.

        ``connect`` gives the remote. It is asked for the current version first, except when the source's version cannot
        change, or with ``revalidate=False``, which takes the version fetched last. While one process downloads a
        source, others that ask for it wait and then find it. Raises `SourceError`.
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
        """The entry of a version, leased and marked as used, if it is here with files of the right sizes."""
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
            # What is evicted may be what these files share with another adapter: then more room is needed.
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
        """Gives a folder that `fetch` returned back, once for each time it was returned; it may then be evicted."""
        with self._mutex:
            held = self._leases.pop(path.name, None)
            if held is None:
                return
            if held[1] > 1:
                self._leases[path.name] = (held[0], held[1] - 1)
            else:
                held[0].release()

    def close(self) -> None:
        """Releases every folder this object returned."""
        with self._mutex:
            for lock, _ in self._leases.values():
                lock.release()
            self._leases.clear()

    def used_bytes(self) -> int:
        """Bytes of content and of partial downloads on disk."""
        with self._store.lock():
            return self._store.used_bytes()

    def entries(self) -> list[Path]:
        """The adapters' folders here, least recently used first; not leased by being listed."""
        return [self._store.entry(digest) for digest in self._store.by_use()]

    def verify(self, only: Path | None = None) -> list[Path]:
        """Reads all content again and drops every entry whose bytes are not those its name says; returns their folders.

        ``only``: the one entry to look at, a folder that `fetch` returned.
        Dropped also when leased: wrong weights are worth less than none. The next `fetch` downloads them again to the
        same path. Reads everything, so it takes as long as the disk needs for `used_bytes`.
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
        # No index, or a damaged one: the source is then fetched again.
        return {"latest": None, "versions": {}}

    def _remember(self, source: str, version: str | None, index: dict[str, Any]) -> None:
        """Writes the index with this version as the latest; versions whose content has been evicted are left out."""
        versions = {
            key: {"entry": record.entry, "sizes": record.sizes}
            for key, record in index["versions"].items()
            if self._store.is_whole(record.entry, record.sizes)
        }
        text = json.dumps({"source": source, "latest": version, "versions": versions})
        self._store.write(self._store.index(source), text.encode())
