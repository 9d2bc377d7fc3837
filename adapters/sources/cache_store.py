"""CacheStore: the files of an adapter cache on disk, and which of them are evicted.

    objects/ab/ab12...   one file for each content, named by its sha256
    entries/9f30...      one folder for each adapter; its files are hard links to objects

Adapters that share a file share the object, and a file system counts an inode's links, so no reference count has to be
kept, or can be wrong after a crash. An object with one link, its own name, belongs to no adapter.

Eviction frees the bytes of an object only when the last entry that links to it goes. `_evictable` therefore walks
entries and abandoned downloads from the least recently used on, counts links down, and adds up what each would free:

    needed: 30      entry  last use  files (links)     frees
                    A      09:10     x 40 (2), y 1     1        B still has x
                    B      09:20     x 40              40       enough: evict A and B, keep C
                    C      09:45     z 70

It walks once without changing anything: if all of it is not enough, nothing is evicted. An entry in use is skipped,
since its exclusive lock cannot be had.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from loratory.adapters.sources.download import StoredFile, digest_of
from loratory.adapters.sources.remote import RemoteFile
from loratory.errors import InputError
from loratory.file_lock import FileLock


def entry_digest(files: Mapping[str, StoredFile]) -> str:
    """The name of an entry: sha256 over its files' names and sha256s, in hex."""
    lines = "".join(f"{name}\0{files[name].sha256}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def is_digest(text: str) -> bool:
    """Whether a text is 64 lower-case hex digits, and so safe as a file name here."""
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


class CacheStore:
    """Objects, entries and partial downloads below a root.

    An object that no entry links to was left by a crash; the next `make_room` deletes it. Methods that change files
    are called with `lock` held. A crash between any two of their steps leaves a store that is read correctly.
    """

    def __init__(self, root: Path, clock: Callable[[], int]) -> None:
        self.root = root
        self._clock = clock

    def lock(self) -> FileLock:
        """The lock of the whole store."""
        return FileLock.take(self.root / "locks" / "store")

    def source_lock(self, source: str) -> Path:
        """The lock file of a source: held while it is downloaded."""
        return self.root / "locks" / "sources" / _key(source)

    def entry_lock(self, digest: str) -> Path:
        """The lock file of an entry: shared while it is used, exclusive while it is evicted."""
        return self.root / "locks" / "entries" / digest

    def index(self, source: str) -> Path:
        """The file with a source's versions."""
        return self.root / "index" / f"{_key(source)}.json"

    def partial(self, source: str, listing: str) -> Path:
        """The folder of a source's partial download of this listing. Those of other listings are deleted."""
        folder = self.root / "partial" / _key(source)
        path = folder / _key(listing)
        path.mkdir(parents=True, exist_ok=True)
        for stale in folder.iterdir():
            if stale != path:
                shutil.rmtree(stale)
        return path

    def entry(self, digest: str) -> Path:
        """The folder of an adapter."""
        return self.root / "entries" / digest

    def _object(self, sha256: str) -> Path:
        return self.root / "objects" / sha256[:2] / sha256

    def is_whole(self, digest: str, sizes: Mapping[str, int]) -> bool:
        """Whether an entry has all its files, each of the right size."""
        try:
            return all((self.entry(digest) / name).stat().st_size == size for name, size in sizes.items())
        except OSError:
            return False

    def is_sound(self, digest: str) -> bool:
        """Whether an entry's bytes have the digest it is named by; reads them all."""
        try:
            files = {path.name: digest_of(path).stored for path in self.entry(digest).iterdir()}
        except OSError:
            return False
        return entry_digest(files) == digest

    def touch(self, digest: str) -> None:
        """Marks an entry as used now."""
        stamp = self._clock()
        os.utime(self.entry(digest), ns=(stamp, stamp))

    def by_use(self) -> list[str]:
        """The digests of all entries, least recently used first."""
        return [path.name for _, path in sorted(_stamped(self.root / "entries"))]

    def missing_bytes(self, files: Mapping[str, StoredFile]) -> int:
        """Bytes of these files that are not objects yet."""
        return sum({part.sha256: part.size for part in files.values() if not self._has(part)}.values())

    def unknown_bytes(self, files: Iterable[RemoteFile]) -> int:
        """Bytes that listed files take at most: their declared sizes, without those that are objects already."""
        return sum(file.size or 0 for file in files if not self._known(file))

    def _known(self, file: RemoteFile) -> bool:
        checksum, size = file.checksum, file.size
        if checksum is None or checksum.algorithm != "sha256" or size is None:
            return False
        return is_digest(checksum.hex) and self._has(StoredFile(checksum.hex, size))

    def _has(self, part: StoredFile) -> bool:
        try:
            return self._object(part.sha256).stat().st_size == part.size
        except FileNotFoundError:
            return False

    def copy_known(self, file: RemoteFile, target: Path) -> None:
        """Copies the bytes of a file that declares its sha256 to ``target`` if they are an object already."""
        checksum = file.checksum
        if checksum is None or not file.resumable or not self._known(file):
            return
        known = self._object(checksum.hex)
        with contextlib.suppress(FileNotFoundError):
            if digest_of(known, checksum).agree:
                shutil.copyfile(known, target)

    def put(self, digest: str, files: Mapping[str, StoredFile], folder: Path) -> None:
        """Moves downloaded, synced files into place as an entry, marked as used; deletes ``folder``, which held them.

        An object of the same name stays if its bytes are right, and so does an entry made of the same objects: its
        users keep their path.
        """
        kept = {name: self._keep(part, folder / name) for name, part in files.items()}
        final = self.entry(digest)
        if not all(_is_same(path, final / name) for name, path in kept.items()):
            staged = self._staged(digest)
            staged.mkdir(parents=True)
            for name, path in kept.items():
                try:
                    os.link(path, staged / name)
                except OSError as error:
                    raise InputError(
                        f"the file system of the adapter cache {self.root} has no hard links: name a folder elsewhere"
                    ) from error
            sync_folder(staged)
            final.parent.mkdir(parents=True, exist_ok=True)
            if final.exists():
                self._discard(final)
            os.rename(staged, final)
            sync_folder(final.parent)
        self.touch(digest)
        shutil.rmtree(folder.parent)

    def _keep(self, part: StoredFile, fresh: Path) -> Path:
        """The object with these bytes, which are now at ``fresh``."""
        path = self._object(part.sha256)
        if not self._has(part) or digest_of(path).stored != part:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh.chmod(0o444)
            os.replace(fresh, path)
            sync_folder(path.parent)
        return path

    def _staged(self, name: str) -> Path:
        """An unused path in the folder of unfinished steps; what a crash left there is deleted."""
        path = self.root / "staged" / name
        shutil.rmtree(path, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def drop_corrupt(self, digest: str) -> None:
        """Removes an entry, and those of its objects whose bytes do not have the sha256 they are named by."""
        objects = self._objects()
        for inode in self._remove(digest):
            path = objects.pop(inode, None)
            if path is not None and digest_of(path).stored.sha256 != path.name:
                path.unlink()

    def _remove(self, digest: str) -> list[int]:
        """Renames an entry away in one step, deletes it, and returns the inodes of its files."""
        folder = self.entry(digest)
        try:
            inodes = [path.stat().st_ino for path in folder.iterdir()]
        except FileNotFoundError:
            return []
        self._discard(folder)
        return inodes

    def _discard(self, folder: Path) -> None:
        away = self._staged(f"gone-{folder.name}")
        os.rename(folder, away)
        shutil.rmtree(away)

    def used_bytes(self) -> int:
        """Bytes of all objects and partial downloads."""
        partial = (_bytes_in(path) for _, path in _stamped(self.root / "partial"))
        return sum(path.stat().st_size for path in self._objects().values()) + sum(partial)

    def make_room(self, limit: int, needed: int, keep: Path) -> int:
        """Evicts the least recently used until ``needed`` bytes fit below ``limit``; returns the bytes then free.

        Entries in use and downloads in progress stay. If evicting everything else were not enough, nothing is evicted.
        ``keep``, the caller's own partial download, is not counted.
        """
        shutil.rmtree(self.root / "staged", ignore_errors=True)
        objects = self._objects()
        for inode in list(objects):
            self._forget(objects, inode)
        free = limit - self.used_bytes() + _bytes_in(keep)
        links = {inode: path.stat().st_nlink - 1 for inode, path in objects.items()}
        if free + sum(gain for _, gain in self._evictable(needed - free, keep, dict(links))) >= needed:
            for path, gain in self._evictable(needed - free, keep, links):
                self._evict(path, objects)
                free += gain
        return free

    def _evictable(self, wanted: int, keep: Path, links: dict[int, int]) -> Iterator[tuple[Path, int]]:
        """What to evict for ``wanted`` bytes, and what each frees, least recently used first; locked while yielded."""
        for _, path in sorted([*_stamped(self.root / "entries"), *_stamped(self.root / "partial")]):
            if wanted <= 0:
                return
            lock = None if path == keep.parent else FileLock.attempt(self._lock_of(path))
            if lock is not None:
                with lock:
                    gain = _gain(path, links)
                    wanted -= gain
                    yield path, gain

    def _lock_of(self, path: Path) -> Path:
        """The lock that is held while an entry is used or a partial download is filled."""
        if path.parent.name == "entries":
            return self.entry_lock(path.name)
        return self.root / "locks" / "sources" / path.name

    def _evict(self, path: Path, objects: dict[int, Path]) -> None:
        if path.parent.name == "entries":
            for inode in self._remove(path.name):
                self._forget(objects, inode)
        else:
            shutil.rmtree(path)

    def _forget(self, objects: dict[int, Path], inode: int) -> None:
        """Deletes an object that no entry links to."""
        path = objects.get(inode)
        if path is not None and path.stat().st_nlink == 1:
            path.unlink()
            del objects[inode]

    def _objects(self) -> dict[int, Path]:
        return {path.stat().st_ino: path for path in (self.root / "objects").glob("??/*")}

    def write(self, path: Path, data: bytes) -> None:
        """Replaces a file in one step, so that a reader or a crash sees the old one or the new one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        with draft.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(draft, path)
        sync_folder(path.parent)


def _key(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()


def _stamped(folder: Path) -> list[tuple[int, Path]]:
    """(last use in ns, path) of what is in a folder; other processes may delete some of it meanwhile."""
    stamped = []
    with contextlib.suppress(FileNotFoundError):
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                stamped.append((path.stat().st_mtime_ns, path))
    return stamped


def _bytes_in(folder: Path) -> int:
    return sum(stat.st_size for stat in _files(folder))


def _files(folder: Path) -> Iterator[os.stat_result]:
    """The files at and below a folder; other processes may delete some of them meanwhile."""
    for path, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                yield os.stat(os.path.join(path, name))


def _gain(folder: Path, links: dict[int, int]) -> int:
    """Bytes that deleting a folder frees: of files that are no objects, and of objects that no other entry links to.

    ``links``: for each object, the entries that link to it and are not to be deleted; counted down here.
    """
    gain = 0
    for stat in _files(folder):
        links[stat.st_ino] = links.get(stat.st_ino, 1) - 1
        if links[stat.st_ino] == 0:
            gain += stat.st_size
    return gain


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except FileNotFoundError:
        return False


def sync_folder(folder: Path) -> None:
    """Makes renames and links in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
