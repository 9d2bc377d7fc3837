"""Guard: a policy's call into C that never returns ends the process with one line; a long call of ours does not."""

from __future__ import annotations

import faulthandler
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command import SMALL

from loratory.experiment.run import run_scenario
from loratory.experiment.workers import WorkerDiedError
from loratory.scenarios.load import load_text
from loratory.serving.policy_guard import Guard
from loratory.serving.policy_guard_process import in_policy

STUCK = """\
import itertools
class InSchedule:
    def schedule(self, view):
        sum(itertools.count())
        yield
class Deep(InSchedule):
    def __init__(self, depth=300):
        if depth: Deep(depth - 1)
        else: -1 in itertools.count()
"""
OF_OURS = """\
import hashlib, sys
from loratory.experiment.policy_spec import policy_factory
from loratory.serving.policy_watch import PolicyWatch
with PolicyWatch("mine.py:InSchedule", 0.1):
    hashlib.pbkdf2_hmac("sha256", b"", b"", 1_000_000)
print("alive", flush=True)
policy_factory("mine.py:Deep", 0.1)
"""
KNOWN = {
    "entries": [["/x/serving/policy_runner.py", "consult"]],
    "ours": ["/x/serving/"],
    "passing": ["/x/serving/reservation.py"],
    "blame_deep": True,
}


@pytest.mark.parametrize(("timeout_s", "after_s"), [(0.05, 1.0), (7.0, 7.0)])
def test_a_process_without_cpu_for_a_moment_is_not_taken_for_one_that_hangs(
    timeout_s: float, after_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its stack comes after so many seconds without a sign of life; only a second one like it ends the process."""
    waits: list[float] = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda seconds, **_: waits.append(seconds))
    guard = Guard(("policy x", ""), timeout_s, {}, [], [])
    guard.stop()
    assert waits == [after_s]


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What a process that runs ``code`` leaves."""
    (folder / "small.yaml").write_text(SMALL)
    (folder / "mine.py").write_text(STUCK)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, timeout=60)


LINE = r"policy .*mine\.py:InSchedule did not come back within 0\.2 s; it was at .*mine\.py:4, in a call that Python"


@pytest.mark.slow
def test_a_call_into_c_that_never_returns_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    arguments = ["loratory", "run", "small.yaml", "-p", "mine.py:InSchedule"]
    arguments += ["--policy-timeout", "0.2", "--out", "made/out"]
    done = python(f"import sys; sys.argv = {arguments}\nfrom loratory.cli.main import main\nmain()", tmp_path)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and re.match("loratory: " + LINE, line) and len(line) <= 400
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.py", "small.yaml"]


@pytest.mark.slow
def test_in_a_worker_it_is_the_callers_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(STUCK)
    scenario = load_text(SMALL, policies=[f"{tmp_path / 'mine.py'}:InSchedule", "fifo"])
    with pytest.raises(WorkerDiedError, match=f"^{LINE}"):
        run_scenario(scenario, tmp_path / "made" / "out", jobs=2, policy_timeout_s=0.2)
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".py"] in ([], ["__pycache__"])


@pytest.mark.slow
def test_a_long_call_of_ours_is_let_be_and_a_constructor_is_not(tmp_path: Path) -> None:
    """Hashing takes many times 0.1 s, outside of a policy; then a call three hundred calls deep in one."""
    done = python(OF_OURS, tmp_path)
    assert done.stdout == "alive\n" and done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "mine.py:9, in a call that Python cannot interrupt" in line


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("kept", ["[0] * 1000", "bytearray(10**7)"], ids=["in small pieces", "in large ones"])
def test_a_policy_that_takes_all_memory_is_one_line_and_leaves_nothing(kept: str, tmp_path: Path) -> None:
    arguments = ["loratory", "run", "small.yaml", "-p", "keeps.py:Keeps", "--out", "out"]
    (tmp_path / "keeps.py").write_text(
        f"class Keeps:\n    kept = []\n    def schedule(self, view):\n        while True: self.kept.append({kept})\n"
        "        yield\n"
    )
    limited = (
        f"import resource, sys, loratory.experiment.run; from loratory.cli.main import main; sys.argv = {arguments}\n"
    )
    limited += "most = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize() + 600_000_000\n"
    done = python(f"{limited}resource.setrlimit(resource.RLIMIT_AS, (most, most))\nmain()", tmp_path)
    (line,) = done.stderr.splitlines()
    assert (
        done.returncode == 1 and "policy keeps.py:Keeps" in line and "emory" in line and "fault of its own" not in line
    )
    assert not (tmp_path / "out").exists() and not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def stack(*frames: str) -> str:
    """As faulthandler writes it, the innermost frame first."""
    return "(most recent call first):\n" + "".join(
        f'  File "{frame.partition(" ")[0]}", line 3 in {frame.partition(" ")[2]}\n' for frame in frames
    )


@pytest.mark.parametrize(
    ("text", "guilty"),
    [
        (stack("/lib/re.py match", "/q.py schedule", "/x/serving/policy_runner.py consult"), True),
        (stack("/q.py schedule", "/x/serving/reservation.py schedule", "/x/serving/policy_runner.py consult"), True),
        (stack("/lib/np.py sort", "/x/serving/ledger.py admit", "/x/serving/policy_runner.py consult"), False),
        (stack("/lib/np.py sort", "/x/serving/policy_runner.py consult"), True),
        (stack("/lib/np.py sort", "/x/serving/engine.py plan"), False),
        (stack(*["/q.py deep"] * 100) + "  ...\n", True),
        (stack("/x/serving/policy_runner.py consult"), False),
        ("", False),
    ],
)
def test_whose_code_is_at_work(text: str, guilty: bool) -> None:
    assert in_policy(text, KNOWN) is guilty
