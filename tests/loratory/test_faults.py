"""Faults of policies, signals and full disks through the command line: one line, the exit code, nothing left over."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from calls import double
from command import SMALL, Command, command_line

from loratory.errors import InputError, Interruption, LoratoryError
from loratory.experiment.interruption import interruptible
from loratory.experiment.run import run_scenario
from loratory.experiment.workers import WorkerDiedError, shared
from loratory.reports.folder import ResultFolder, writing
from loratory.scenarios.load import load_text

ROOT = Path(__file__).resolve().parents[2]
FORCED = """\
class Stubborn:
    def schedule(self, view):
        while True:
            try:
                while True: pass
            except BaseException: pass
        yield
"""


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Command]:
    (tmp_path / "small.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    yield command_line(capsys, monkeypatch)


def left(folder: Path) -> list[str]:
    """What a run has left beside its result."""
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def one_line(text: str) -> str:
    (line,) = text.splitlines()
    assert line.startswith("loratory: ") and len(line) <= 400
    return line


def test_a_policy_that_catches_everything_takes_only_itself_down(tmp_path: Path) -> None:
    """Only the end of the process helps; it says so in one line and leaves no folder."""
    (tmp_path / "small.yaml").write_text(SMALL)
    (tmp_path / "mine.py").write_text(FORCED)
    arguments = ["loratory", "run", "small.yaml", "-p", "mine.py:Stubborn", "--policy-timeout", "0.2", "--out", "out"]
    code = f"import sys; sys.argv = {arguments}\nfrom loratory.cli.main import main\nmain()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1 and "did not come back within 0.2 s" in one_line(done.stderr)
    assert left(tmp_path) == [] and not (tmp_path / "out").exists()


def test_processes_share_calls_and_a_dead_one_is_one_line() -> None:
    assert dict(shared(double, [0, 1, 2], 2, str)) == {0: 0, 1: 2, 2: 4}
    with pytest.raises(WorkerDiedError, match="task 3: its process was ended by SIGKILL"):
        list(shared(double, [3], 1, lambda number: f"task {number}"))
    with pytest.raises(InputError, match="four is refused"):
        list(shared(double, [4], 1, str))
    with pytest.raises(LoratoryError, match=r"ValueError: nobody foresaw five \(.*calls\.py:\d+\)"):
        list(shared(double, [5], 1, str))


def test_a_policy_that_ends_a_workers_process_is_named(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import os\nclass Mine:\n    def schedule(self, view):\n        os.kill(os.getpid(), 9)\n        yield\n"
    )
    done = command("run", "small.yaml", "-p", "mine.py:Mine", "-p", "fifo", "-j", "2", "--out", "out")
    assert done.code == 1 and re.search(r"policy mine\.py:Mine, seed 0: .*SIGKILL", one_line(done.err))
    assert left(tmp_path) == [] and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_run_with_one_line_and_nothing_left(name: str, command: Command, tmp_path: Path) -> None:
    """The policy sends the signal itself, in the middle of the run, and catches what it can."""
    (tmp_path / "mine.py").write_text(
        "import os, signal\nclass Mine:\n    def schedule(self, view):\n"
        f"        try:\n            os.kill(os.getpid(), signal.{name})\n"
        "        except Exception:\n            pass\n        yield\n"
    )
    done = command("run", "small.yaml", "-p", "mine.py:Mine", "--out", "out")
    assert done.code == 128 + getattr(signal, name)
    assert f"interrupted by {name}" in one_line(done.err)
    assert left(tmp_path) == [] and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_while_modules_are_imported_is_one_line_too(name: str) -> None:
    hook = f"""\
import os, signal, sys
class Hook:
    def find_spec(self, module, path=None, target=None):
        if module == "loratory.experiment.interruption": os.kill(os.getpid(), signal.{name})
sys.meta_path.insert(0, Hook())
import runpy
runpy.run_module("loratory", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", hook], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 128 + getattr(signal, name)
    assert f"interrupted by {name}" in one_line(done.stderr)


def test_signals_end_the_block_once_and_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interruption) as caught, interruptible("SIGTERM") as received:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)  # does not disturb the cleaning up
    assert caught.value.args == (signal.SIGTERM,) and received == [signal.SIGTERM] * 2
    assert signal.getsignal(signal.SIGTERM) is before


def test_folders_of_dead_runs_are_removed_and_those_of_live_ones_are_not(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with ResultFolder(target) as alive:
        dead = tmp_path / ".out.abcd1234.partial"
        dead.mkdir()
        (dead / "requests.parquet").write_text("half")
        other = tmp_path / ".outer.abcd1234.partial"
        other.mkdir()
        mine = tmp_path / ".out.notes"
        mine.mkdir()
        with pytest.raises(RuntimeError), ResultFolder(target):
            raise RuntimeError
        assert alive.staged.is_dir() and other.is_dir() and mine.is_dir() and not dead.exists()


def test_a_result_that_a_dead_run_had_moved_aside_is_put_back(tmp_path: Path) -> None:
    aside = tmp_path / ".out.abcd1234.old" / "old"
    aside.mkdir(parents=True)
    (aside / "summary.json").write_text('{"format": 1, "policies": [], "runs": []}')
    (aside / "run_info.json").write_text('{"folders": {}}')
    with pytest.raises(RuntimeError), ResultFolder(tmp_path / "out"):
        raise RuntimeError
    assert (tmp_path / "out" / "summary.json").exists() and left(tmp_path) == []


def test_a_full_disk_is_one_line(command: Command, tmp_path: Path) -> None:
    """A limit on the size of files does what a full disk does, wherever the run is writing."""
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2); "
    limited += "from loratory.cli.main import main; main()"
    for most in ("0", "3000"):
        done = subprocess.run(
            [sys.executable, "-c", limited, most, "run", "small.yaml", "--out", "out"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        assert "out cannot be written (File too large): free space there" in one_line(done.stderr)
        assert left(tmp_path) == [] and not (tmp_path / "out").exists()


def test_what_fails_in_writing_names_the_result_not_the_folder_being_filled(tmp_path: Path) -> None:
    folder = tmp_path / ".out.abcd1234.partial" / "fifo" / "0"
    says = re.escape(f"{tmp_path / 'out'} cannot be written (No space left")
    with pytest.raises(InputError, match=says), writing(folder):
        raise OSError(28, "No space left on device")


def test_what_a_policy_prints_is_no_result(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loratory.reports.folder.render", lambda *_, **__: "")
    (tmp_path / "mine.py").write_text(
        "from loratory.policy import want\nclass Mine:\n    def schedule(self, view):\n        print('hello')\n"
        "        for request in list(view.waiting): yield from want(view, request)\n"
    )
    done = command("run", "small.yaml", "-p", "mine.py:Mine", "--out", "out", "--json")
    assert done.json["runs"] and "hello" in done.err


def test_the_python_interface_leaves_nothing_over_either(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import sys\nclass Mine:\n    def schedule(self, view):\n        sys.exit(0)\n        yield\n"
    )
    scenario = load_text(SMALL, policies=[f"{tmp_path / 'mine.py'}:Mine"])
    with pytest.raises(LoratoryError, match="tried to end the process"):
        run_scenario(scenario, tmp_path / "out", policy_timeout_s=5.0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]
