"""CPU threads: how they wait is set before PyTorch is imported, and a process that lacks CPU time says so."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

import pytest

from loratory.executor import cpu_threads
from loratory.executor.cpu_share import CPUShare, CPUTimes, cpu_times, stolen_s, thread_times, throttled_s
from loratory.executor.cpu_threads import SPINS, WAITING, set_cpu_threads

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", WAITING)
def test_what_the_user_set_stands(name: str) -> None:
    environment = {name: "1"}
    assert set_cpu_threads(environment, ()) == () and environment == {name: "1"}


def test_threads_spin_shortly_unless_torch_is_there() -> None:
    environment: dict[str, str] = {}
    assert set_cpu_threads(environment, {"torch"}) == () and environment == {}
    assert set_cpu_threads(environment, ()) == ("GOMP_SPINCOUNT",)
    assert environment == {"GOMP_SPINCOUNT": str(SPINS)}
    assert set_cpu_threads(environment, ()) == ()


def test_a_control_groups_limit_bounds_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_threads, "bound_cores", lambda: 64)
    monkeypatch.setattr(cpu_threads, "usable_cores", lambda: 2)
    environment: dict[str, str] = {}
    set_cpu_threads(environment, ())
    assert environment["OMP_NUM_THREADS"] == "2"
    environment = {"OMP_NUM_THREADS": "8"}
    set_cpu_threads(environment, ())
    assert environment["OMP_NUM_THREADS"] == "8"


WATCHED = """
import runpy, sys
from loratory.executor import cpu_threads

def told(*_):
    print("torch" in sys.modules, file=sys.stderr)
    raise SystemExit(7)

cpu_threads.set_cpu_threads = told
sys.argv = ["loratory", *sys.argv[1:]]
runpy.run_module("loratory", run_name="__main__")
"""


@pytest.mark.parametrize(
    "command",
    [
        "run quickstart --on executor --set executor.checkpoint=/absent",
        "profile /absent",
        "serve /absent --port 0",
    ],
)
def test_commands_set_it_before_torch_is_imported(command: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *command.split()],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (7, "False\n")


def test_openmp_takes_it() -> None:
    """PyTorch's own OpenMP prints the variables that it has read when it is loaded, as PyTorch's import does."""
    spec = find_spec("torch")
    assert spec is not None and spec.origin is not None
    (library,) = (Path(spec.origin).parent / "lib").glob("libgomp*.so*")
    code = "from loratory.executor.cpu_threads import set_cpu_threads; set_cpu_threads(); "
    code += f"import ctypes; ctypes.CDLL({str(library)!r})"
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_DISPLAY_ENV": "verbose"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert f"GOMP_SPINCOUNT = '{SPINS}'" in done.stderr, done.stderr


# -- the share of CPU time -------------------------------------------------------------------------------------------


class Readings:
    """Counters that are read one after another."""

    def __init__(self, *times: CPUTimes) -> None:
        self._left: Iterator[CPUTimes] = iter(times)

    def __call__(self) -> CPUTimes:
        """The next."""
        return next(self._left)


def at(second: float, ran: float, waited: float, stolen: float = 0.0, throttled: float = 0.0) -> CPUTimes:
    return CPUTimes(second, {1: ran}, {1: waited}, stolen, throttled)


@pytest.mark.parametrize(
    ("after", "threads", "share", "said"),
    [
        (at(10, 19, 1), 2, 0.95, ""),
        (at(10, 1, 1), 2, 1.0, ""),
        (at(10, 10, 10), 2, 0.5, "50% of the CPU time that it asked for on 2 cores; other programs took the rest"),
        (at(10, 10, 10), 8, 0.5, "it computes with 8 threads: give --threads 2"),
        (at(10, 19, 1, stolen=5), 2, 0.95, "the host of this virtual machine"),
        (at(10, 19, 1, throttled=8), 2, 0.95, "the CPU limit of its control group"),
    ],
)
def test_the_sentence_names_the_cause(after: CPUTimes, threads: int, share: float, said: str) -> None:
    watch = CPUShare(threads, Readings(at(0, 0, 0), after), lambda: 2)
    sentence = watch.sentence()
    assert (said in sentence) if said else not sentence
    assert not sentence or sentence.startswith("in the last 10 s this process got ")
    assert watch.share == pytest.approx(share)


def test_an_interval_is_judged_by_itself() -> None:
    """Threads that are new begin at nothing, those that have ended count no more, and calm makes silence."""
    times = (
        CPUTimes(0, {1: 50.0, 2: 50.0}, {1: 50.0, 2: 50.0}),
        CPUTimes(5, {1: 52.0, 3: 1.0}, {1: 52.0, 3: 4.0}),
        CPUTimes(10, {1: 57.0, 3: 1.0}, {1: 52.0, 3: 4.0}),
        CPUTimes(10, {1: 57.0, 3: 1.0}, {1: 52.0, 3: 4.0}),
    )
    watch = CPUShare(1, Readings(*times), lambda: 1)
    assert "33% of the CPU time that it asked for on 1 core;" in watch.sentence()
    assert watch.sentence() == "" and watch.share == 1.0
    assert watch.sentence() == ""


def test_counters_are_read_from_files(tmp_path: Path) -> None:
    for thread, text in {"7": "2000000000 500000000 12\n", "8": "0 1000000 1\n", "9": "?"}.items():
        (tmp_path / thread).mkdir()
        (tmp_path / thread / "schedstat").write_text(text)
    assert thread_times(tmp_path) == ({7: 2.0, 8: 0.0}, {7: 0.5, 8: 0.001})
    assert thread_times(tmp_path / "absent") == ({}, {})
    (tmp_path / "stat").write_text("cpu  1 2 3 4 5 6 7 800 9 10\ncpu0 1 2 3\n")
    assert stolen_s(tmp_path / "stat") == pytest.approx(8.0, rel=9)
    assert stolen_s(tmp_path / "absent") == 0.0
    (tmp_path / "v2").mkdir()
    (tmp_path / "v2" / "cpu.stat").write_text("nr_throttled 3\nthrottled_usec 2500000\n")
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "cpu.stat").write_text("nr_periods 1\nthrottled_time 1500000000\n")
    assert throttled_s([tmp_path / "v2", tmp_path / "v1", tmp_path / "absent"]) == 4.0


def test_this_process_runs() -> None:
    """The counters of the real /proc grow with what this process's threads do."""
    if not Path("/proc/self/task").is_dir():
        pytest.skip("needs Linux's /proc")
    before = cpu_times()
    done = []

    def work() -> None:
        began = time.thread_time()
        while time.thread_time() < began + 0.05:
            pass
        done.append(cpu_times())

    thread = Thread(target=work)
    thread.start()
    thread.join()
    (after,) = done
    assert sum(after.ran.values()) - sum(before.ran.values()) > 0.04 and after.at_s > before.at_s
