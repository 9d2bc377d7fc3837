"""The adapter cache: sharing, corruption, refusals, and its law of size and order."""

from __future__ import annotations

import errno
import itertools
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import examples
from servers import CONFIG, WEIGHTS, Fault, Memory, Server, contents, other, put, total

from loratory.adapters.sources.cache import AdapterCache
from loratory.adapters.sources.download import Download
from loratory.adapters.sources.remote import DownloadLimits, SourceError
from loratory.adapters.sources.source import fetch, parse_source
from loratory.errors import InputError

QUICK = DownloadLimits(attempts=2, retry_wait_s=0)


@pytest.fixture
def web() -> Iterator[Server]:
    with Server().running() as server:
        yield server


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


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize(("limit", "fits"), [(130, False), (170, True)])
def test_room_made_by_evicting_what_is_shared_is_counted_again(
    limit: int, fits: bool, sized: bool, tmp_path: Path
) -> None:
    weights = bytes(range(100))
    cache = AdapterCache(tmp_path, max_bytes=limit, limits=QUICK)
    cache.release(cache.fetch("one", lambda: Memory({CONFIG: b"{}", WEIGHTS: weights})))
    two = Memory({CONFIG: bytes(60), WEIGHTS: weights}, declares=sized, sized=sized)
    if fits:
        assert contents(cache.fetch("two", lambda: two)) == two.files
    else:
        with pytest.raises(SourceError, match="needs 160 bytes"):
            cache.fetch("two", lambda: two)
    assert cache.used_bytes() <= limit


def test_threads_share_a_cache(tmp_path: Path) -> None:
    remotes = [Memory(other(seed)) for seed in range(3)]
    limit = 3 * total(other(0)) + 100

    def use(number: int) -> bool:
        remote = remotes[number % 3]
        path = cache.fetch(str(number % 3), lambda: remote)
        same = contents(path) == remote.files
        cache.release(path)
        return same

    with AdapterCache(tmp_path, max_bytes=limit) as cache, ThreadPoolExecutor(6) as pool:
        assert all(pool.map(use, range(60)))
    assert [remote.reads for remote in remotes] == [[(CONFIG, 0), (WEIGHTS, 0)]] * 3


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
    with pytest.raises(InputError, match="must be at least 1"):
        AdapterCache(tmp_path, max_bytes=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="name another folder"):
        AdapterCache(tmp_path / "file" / "cache").fetch("one", lambda: Memory(other(1)))


def test_a_download_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    files = {WEIGHTS: bytes(1000)}
    remote = Memory(files)
    ticks = itertools.count()
    download = Download(
        "one",
        remote,
        remote.listing().files[0],
        tmp_path / "x",
        DownloadLimits(total_s=1),
        1,
        lambda: next(ticks) * 2.0,
    )
    with pytest.raises(SourceError, match="took longer than 1 s"):
        download.run()
    assert (tmp_path / "x").stat().st_size == 1000


def test_errors_of_the_disk_that_mean_no_room() -> None:
    from loratory.adapters.sources.download import NO_ROOM

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
