"""The adapter cache: one download for many processes, crashes, eviction, leases, corruption, and its law of size."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import examples
from servers import CONFIG, WEIGHTS, Fault, Server, adapter, contents, put

from serving.adapter_cache import AdapterCache
from serving.errors import InputError
from serving.remotes.download import Download
from serving.remotes.remote import Checksum, Limits, Listing, RemoteFile, Reply, SourceError
from serving.sources import fetch, parse_source

ROOT = Path(__file__).parents[2]
QUICK = Limits(attempts=2, retry_wait_s=0)

CHILD = """
import hashlib, sys
from serving.adapter_cache import AdapterCache
from serving.remotes.remote import Limits
from serving.sources import fetch, parse_source

root, limit, *sources = sys.argv[1:]
cache = AdapterCache(root, int(limit), limits=Limits(retry_wait_s=0))
print("ready", flush=True)
sys.stdin.readline()
for source in sources:
    path = fetch(parse_source(source), cache)
    print(path, hashlib.sha256(b"".join(file.read_bytes() for file in sorted(path.iterdir()))).hexdigest(), flush=True)
    sys.stdin.readline()
    cache.release(path)
"""


@dataclass
class Memory:
    """A remote in memory that counts its reads."""

    files: dict[str, bytes]
    version: str | None = "1"
    declares: bool = False
    reads: list[tuple[str, int]] = field(default_factory=list)

    @property
    def pinned(self) -> str | None:
        return None

    def listing(self) -> Listing:
        files = []
        for name, data in self.files.items():
            checksum = Checksum("sha256", hashlib.sha256(data).hexdigest()) if self.declares else None
            files.append(RemoteFile(name, name, len(data), self.version, True, checksum))
        return Listing(tuple(files), self.version)

    def read(self, file: RemoteFile, offset: int) -> Reply:
        self.reads.append((file.name, offset))
        data = self.files[file.name][offset:]
        return Reply(offset, iter([data[:50], data[50:]]))


@pytest.fixture
def web() -> Iterator[Server]:
    with Server().running() as server:
        yield server


def start(root: Path, *sources: str, limit: int = 2**30) -> subprocess.Popen[str]:
    """A process that fetches sources one after another, each when it is sent a line, holding the one before."""
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(root), str(limit), *sources],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )


def say(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


def hear(child: subprocess.Popen[str]) -> list[str]:
    assert child.stdout is not None
    return child.stdout.readline().split()


def total(files: dict[str, bytes]) -> int:
    return sum(len(data) for data in files.values())


def other(seed: int) -> dict[str, bytes]:
    """An adapter that shares no file with one of another seed."""
    files = adapter(seed=seed)
    return {**files, CONFIG: files[CONFIG][:-1] + b', "seed": %d}' % seed}


# Several processes


def test_six_processes_at_once_make_one_download(web: Server, tmp_path: Path) -> None:
    put(web, adapter())
    held = Fault(hold=1000)
    web.faults[f"/lora/{WEIGHTS}"] = [held]
    children = [start(tmp_path, f"{web.url}/lora/") for _ in range(6)]
    for child in children:
        assert hear(child) == ["ready"]
    for child in children:
        say(child)
    assert held.reached.wait(60)
    held.go.set()
    answers = {tuple(hear(child)) for child in children}
    for child in children:
        child.communicate("\n")
        assert child.returncode == 0
    whole = hashlib.sha256(b"".join(data for _, data in sorted(adapter().items()))).hexdigest()
    assert {digest for _, digest in answers} == {whole}
    assert len(answers) == 1
    assert sorted(web.gets()) == [f"/lora/{CONFIG}", f"/lora/{WEIGHTS}"]


def test_a_killed_downloader_blocks_nobody(web: Server, tmp_path: Path) -> None:
    files = adapter()
    put(web, files)
    held = Fault(hold=2000)
    web.faults[f"/lora/{WEIGHTS}"] = [held]
    first, second = (start(tmp_path, f"{web.url}/lora/") for _ in range(2))
    assert [hear(child) for child in (first, second)] == [["ready"], ["ready"]]
    say(first)
    assert held.reached.wait(60)
    say(second)
    first.send_signal(signal.SIGKILL)
    first.wait()
    path, digest = hear(second)
    assert digest == hashlib.sha256(files[CONFIG] + files[WEIGHTS]).hexdigest()
    assert contents(Path(path)) == files
    second.communicate("\n")
    assert second.returncode == 0
    assert len(web.gets(CONFIG)) == 1
    assert len(web.gets(WEIGHTS)) == 2


def test_a_lease_of_another_process_holds_until_it_is_released_or_the_process_is_killed(
    web: Server, tmp_path: Path
) -> None:
    one, two = other(1), other(2)
    put(web, one, "/one")
    put(web, two, "/two")
    holder = start(tmp_path, f"{web.url}/one/")
    hear(holder)
    say(holder)
    held = Path(hear(holder)[0])
    cache = AdapterCache(tmp_path, max_bytes=total(two) + 100, limits=QUICK)
    with pytest.raises(SourceError, match="release adapters in use"):
        fetch(parse_source(f"{web.url}/two/"), cache)
    assert contents(held) == one
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert contents(fetch(parse_source(f"{web.url}/two/"), cache)) == two
    assert not held.exists()


def test_processes_that_evict_each_others_adapters_stay_within_the_limit(web: Server, tmp_path: Path) -> None:
    sources = []
    for seed in range(5):
        put(web, other(seed), f"/{seed}")
        sources.append(f"{web.url}/{seed}/")
    limit = 4 * total(other(0)) + 400
    orders = [sources, sources[::-1], sources[2:] + sources[:2]]
    children = [start(tmp_path, *order * 3, limit=limit) for order in orders]
    for child in children:
        hear(child)
    answers = [child.communicate("\n" * 40) for child in children]
    assert [child.returncode for child in children] == [0, 0, 0]
    digests = {
        f"{web.url}/{seed}/": hashlib.sha256(other(seed)[CONFIG] + other(seed)[WEIGHTS]).hexdigest()
        for seed in range(5)
    }
    for order, (text, _) in zip(orders, answers, strict=True):
        assert [line.split()[1] for line in text.splitlines()] == [digests[source] for source in order * 3]
    cache = AdapterCache(tmp_path, limit)
    assert cache.used_bytes() <= limit
    assert cache.verify() == []


# Crashes


def _crash(step: int, root: Path, work: Callable[[], Any]) -> bool:
    """Runs work in a child that dies without a word before its step-th change of the cache; whether it lived."""
    child = os.fork()
    if child == 0:
        count = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if event in ("os.rename", "os.link", "os.remove", "os.mkdir", "os.chmod", "os.utime", "os.rmdir", "open"):
                if str(root) not in str(arguments[0]) or (event == "open" and not arguments[2] & os.O_ACCMODE):
                    return
                count += 1
                if count == step:
                    os._exit(9)

        sys.addaudithook(hook)
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 9)
    return code == 0


def test_a_crash_at_any_step_of_a_fetch_that_evicts_leaves_a_sound_cache(tmp_path: Path) -> None:
    old, new = other(1), other(2)

    def work(root: Path, limit: int) -> Callable[[], Any]:
        return lambda: AdapterCache(root, limit, limits=QUICK).fetch("new", lambda: Memory(new))

    for step in itertools.count(1):
        root = tmp_path / str(step)
        limit = total(new) + 100
        with AdapterCache(root, limit, limits=QUICK) as cache:
            cache.fetch("old", lambda: Memory(old))
        lived = _crash(
            step,
            root,
            lambda root=root, limit=limit: AdapterCache(root, limit, QUICK).fetch("new", lambda: Memory(new)),
        )
        cache = AdapterCache(root, limit, limits=QUICK)
        assert all(contents(path) in (old, new) for path in cache.entries())
        assert cache.verify() == []
        again = Memory(new)
        assert contents(cache.fetch("new", lambda again=again: again)) == new
        assert cache.used_bytes() == total(new)
        assert sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) < 2 * total(new) + 2000
        cache.close()
        if lived:
            break
    assert step > 20


def test_a_download_killed_in_the_middle_goes_on_at_the_next_byte(tmp_path: Path) -> None:
    files = other(1)

    class Killing(Memory):
        def read(self, file: RemoteFile, offset: int) -> Reply:
            def chunks() -> Iterator[bytes]:
                yield self.files[file.name][:50]
                os._exit(9)

            return Reply(0, chunks()) if file.name == WEIGHTS else super().read(file, offset)

    assert not _crash(0, tmp_path, lambda: AdapterCache(tmp_path).fetch("one", lambda: Killing(files)))
    remote = Memory(files)
    assert contents(AdapterCache(tmp_path).fetch("one", lambda: remote)) == files
    assert remote.reads == [(WEIGHTS, 50)]


def test_a_disk_that_is_full_is_said(tmp_path: Path) -> None:
    code = """
import resource, sys
from serving.adapter_cache import AdapterCache
from serving.remotes.remote import Limits
from serving.sources import fetch, parse_source
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
try:
    fetch(parse_source(sys.argv[2]), AdapterCache(sys.argv[1]))
except Exception as error:
    print(type(error).__name__, error)
"""
    with Server().running() as web:
        put(web, adapter())
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), f"{web.url}/lora/"], cwd=ROOT, capture_output=True, text=True
        )
        assert "SourceError" in done.stdout
        assert "no room on the disk for adapter_model.safetensors" in done.stdout
        assert not list(tmp_path.rglob(WEIGHTS))
        assert contents(fetch(parse_source(f"{web.url}/lora/"), AdapterCache(tmp_path))) == adapter()


# One process


def test_what_a_source_declares_is_not_downloaded_when_it_is_here(tmp_path: Path) -> None:
    cache = AdapterCache(tmp_path)
    one, two = Memory(other(1), declares=True), Memory(other(1), version="2", declares=True)
    assert cache.fetch("one", lambda: one) == cache.fetch("two", lambda: two)
    assert one.reads == [(CONFIG, 0), (WEIGHTS, 0)]
    assert two.reads == []


def test_equal_files_of_different_adapters_are_stored_once(tmp_path: Path) -> None:
    cache = AdapterCache(tmp_path)
    files = other(1)
    changed = {**files, CONFIG: b"{}"}
    cache.fetch("one", lambda: Memory(files))
    cache.fetch("two", lambda: Memory(changed))
    assert cache.used_bytes() == total(files) + 2


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_corrupted_entry_is_found_and_fetched_again(damage: str, tmp_path: Path) -> None:
    remote = Memory(other(1))
    cache = AdapterCache(tmp_path)
    path = cache.fetch("one", lambda: remote)
    cache.fetch("two", lambda: Memory(other(2)))
    weights = path / WEIGHTS
    data = bytearray(weights.read_bytes())
    if damage == "delete":
        weights.unlink()
    else:
        weights.chmod(0o644)
        data[100] ^= 1
        weights.write_bytes(bytes(data) if damage == "flip" else bytes(data[:-1]))
    if damage == "flip":
        assert cache.verify() == [path]
        assert cache.verify() == []
        assert not path.exists()
    assert cache.fetch("one", lambda: remote) == path
    assert contents(path) == other(1)
    assert cache.verify() == []


def test_a_damaged_index_means_a_new_download(tmp_path: Path) -> None:
    cache = AdapterCache(tmp_path)
    path = cache.fetch("one", lambda: Memory(other(1)))
    index = next((tmp_path / "index").iterdir())
    for text in ("", "{", "[]", "{}", '{"latest": "1", "versions": {"1": {"entry": "../..", "sizes": {}}}}'):
        index.write_text(text)
        remote = Memory(other(1))
        assert cache.fetch("one", lambda remote=remote: remote) == path
        assert remote.reads == [(CONFIG, 0), (WEIGHTS, 0)]


def test_entries_cannot_be_written_by_accident(tmp_path: Path) -> None:
    path = AdapterCache(tmp_path).fetch("one", lambda: Memory(other(1)))
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o444}


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", "x\0y", "a\\b"])
def test_a_name_that_leaves_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="rename it to a plain file name"):
        AdapterCache(tmp_path).fetch("one", lambda: Memory({CONFIG: b"{}", name: b"x"}))
    assert not list(tmp_path.rglob("x"))


def test_more_than_the_cache_holds_is_refused_and_nothing_is_evicted(tmp_path: Path) -> None:
    files = other(1)
    cache = AdapterCache(tmp_path, max_bytes=total(files))
    cache.release(cache.fetch("one", lambda: Memory(files)))
    with pytest.raises(SourceError, match="raise its size"):
        cache.fetch("two", lambda: Memory({**files, WEIGHTS: bytes(total(files) + 1)}))
    assert len(cache.entries()) == 1


def test_an_abandoned_partial_download_makes_room(web: Server, tmp_path: Path) -> None:
    put(web, other(1), "/one")
    put(web, other(2), "/two")
    limit = total(other(2)) + 100
    web.faults[f"/one/{WEIGHTS}"] = [Fault(cut=3000), *(Fault(status=503) for _ in range(5))]
    cache = AdapterCache(tmp_path, limit, limits=QUICK)
    with pytest.raises(SourceError):
        fetch(parse_source(f"{web.url}/one/"), cache)
    assert cache.used_bytes() > 3000
    fetch(parse_source(f"{web.url}/two/"), cache)
    assert cache.used_bytes() == total(other(2))


def test_a_cache_of_no_bytes_and_one_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give it at least 1"):
        AdapterCache(tmp_path, max_bytes=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="name another folder"):
        AdapterCache(tmp_path / "file" / "cache").fetch("one", lambda: Memory(other(1)))


def test_a_download_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    files = {WEIGHTS: bytes(1000)}
    remote = Memory(files)
    ticks = itertools.count()
    download = Download(
        "one", remote, remote.listing().files[0], tmp_path / "x", Limits(total_s=1), 1, lambda: next(ticks) * 2.0
    )
    with pytest.raises(SourceError, match="took longer than 1 s"):
        download.run()
    assert (tmp_path / "x").stat().st_size == 1000


def test_errors_of_the_disk_that_mean_no_room() -> None:
    from serving.remotes.download import NO_ROOM

    assert {errno.ENOSPC, errno.EDQUOT} < NO_ROOM


# The law of size and order


@dataclass
class Model:
    """What the cache must do: sizes and leases of what it holds, least recently used first."""

    limit: int
    held: dict[int, int] = field(default_factory=dict)
    leases: dict[int, int] = field(default_factory=dict)

    def fetch(self, key: int, size: int) -> bool:
        """Whether the fetch succeeds; makes room as the cache must."""
        if key not in self.held:
            free = self.limit - sum(self.held.values())
            going = []
            for other_key, other_size in self.held.items():
                if free >= size:
                    break
                if not self.leases.get(other_key):
                    going.append(other_key)
                    free += other_size
            if free < size:
                return False
            for gone in going:
                del self.held[gone]
        self.held.pop(key, None)
        self.held[key] = size
        self.leases[key] = self.leases.get(key, 0) + 1
        return True


@examples(60)
@given(
    st.lists(st.integers(1, 60), min_size=2, max_size=6),
    st.integers(10, 150),
    st.lists(st.tuples(st.sampled_from(["fetch", "fetch", "release", "reopen"]), st.integers(0, 5)), max_size=30),
)
def test_the_cache_holds_what_a_model_of_lru_holds(sizes: list[int], limit: int, steps: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ticks = itertools.count(1)
        cache = AdapterCache(folder, limit, clock=lambda: next(ticks))
        model = Model(limit)
        paths: dict[int, Path] = {}
        for verb, number in steps:
            key = number % len(sizes)
            if verb == "reopen":
                cache.close()
                cache = AdapterCache(folder, limit, clock=lambda: next(ticks))
                model.leases.clear()
            elif verb == "release":
                if model.leases.get(key):
                    model.leases[key] -= 1
                    cache.release(paths[key])
            else:
                data = bytes([key]) * sizes[key]
                remote = Memory({CONFIG: data[:1] + b"c", WEIGHTS: data + b"w"})
                was_here = key in model.held
                if model.fetch(key, sizes[key] + 3):
                    paths[key] = cache.fetch(str(key), lambda remote=remote: remote)
                    assert (remote.reads == []) == was_here
                else:
                    with pytest.raises(SourceError):
                        cache.fetch(str(key), lambda remote=remote: remote)
            assert cache.entries() == [paths[held] for held in model.held]
            assert cache.used_bytes() == sum(model.held.values()) <= limit
        cache.close()
