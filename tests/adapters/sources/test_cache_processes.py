"""The adapter cache among processes: one download for all, leases, kills, crashes at every step."""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import CONFIG, WEIGHTS, Fault, Memory, Server, adapter, contents, other, put, total

from loratory.adapters.sources.cache import AdapterCache
from loratory.adapters.sources.remote import DownloadLimits, RemoteFile, Reply, SourceError
from loratory.adapters.sources.source import fetch, parse_source

ROOT = Path(__file__).parents[3]
QUICK = DownloadLimits(attempts=2, retry_wait_s=0)

CHILD = """
import hashlib, sys
from loratory.adapters.sources.cache import AdapterCache
from loratory.adapters.sources.remote import DownloadLimits
from loratory.adapters.sources.source import fetch, parse_source

root, limit, *sources = sys.argv[1:]
cache = AdapterCache(root, int(limit), limits=DownloadLimits(retry_wait_s=0))
print("ready", flush=True)
sys.stdin.readline()
for source in sources:
    path = fetch(parse_source(source), cache)
    print(path, hashlib.sha256(b"".join(file.read_bytes() for file in sorted(path.iterdir()))).hexdigest(), flush=True)
    sys.stdin.readline()
    cache.release(path)
"""


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
            work(root, limit),
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
from loratory.adapters.sources.cache import AdapterCache
from loratory.adapters.sources.remote import DownloadLimits
from loratory.adapters.sources.source import fetch, parse_source
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
