"""try_policy: every kind of bad policy is refused with one sentence, and leaves no process behind."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from admin_world import ADAPTERS, CONFIG, COST

from loratory.errors import LoratoryError
from loratory.experiment.policy_spec import policy_factory
from loratory.server.policy_trial import try_policy
from loratory.serving.engine import Engine
from loratory.serving.engine_copy import EngineCopy
from loratory.serving.plan import StepResult
from loratory.serving.request import Request

POLICIES = """
import ctypes, os, subprocess, time
from loratory.policy import Policy, want

class Good(Policy):
    def schedule(self, view):
        self.first(view)
        for request in view.unblocked():
            yield from want(view, request)
    def first(self, view): print("what a policy prints goes nowhere")

class RaisesWhenMade(Good):
    def __init__(self): raise ValueError("no")
class Raises(Good):
    def first(self, view): raise KeyError("no")
class Loops(Good):
    def first(self, view):
        while True: pass
class Exits(Good):
    def first(self, view): os._exit(0)
class Segfaults(Good):
    def first(self, view): ctypes.string_at(0)
class Kills(Good):
    def first(self, view): os.kill(os.getpid(), 9)
class Never(Good):
    def schedule(self, view):
        return
        yield
class Misspelt(Good):
    evict = "lruu"
class Stalls(Good):
    "Serves small worlds, and nothing when many wait."
    def schedule(self, view):
        if len(view.waiting) < 40:
            yield from super().schedule(view)
class Crowd(Good):
    "Fails when many wait, which the worlds of the checks have not."
    def first(self, view):
        if len(view.waiting) > 40: raise RuntimeError("too many")
class Hogs(Good):
    def first(self, view):
        if len(view.waiting) > 40: self.kept = bytearray(1 << 40)
class Leaves(Good):
    "Starts processes that outlive it."
    def first(self, view): subprocess.Popen(["sh", "-c", "sleep 987654; true", __file__])
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policies") / "mine.py"
    path.write_text(POLICIES)
    (path.parent / "gone.py").write_text("import nothing_of_that_name\n")
    return path


@pytest.fixture(scope="module")
def copy() -> EngineCopy:
    """Of an engine in which 4 run and 56 wait."""
    engine = Engine(CONFIG, ADAPTERS, policy_factory("fifo")(), COST)
    for number in range(60):
        engine.submit(Request(f"r{number}", f"a{number % 3 + 1}", number * 0.001, 5, 20))
    now = 1.0
    for _ in range(5):
        plan = engine.plan(now)
        assert plan is not None
        engine.commit(plan, StepResult(1), now := now + 0.02)
    assert len(engine.view.running) == 4
    return EngineCopy.of(engine)


def left_over(folder: Path) -> list[str]:
    """Processes that this one has started, and those that name the folder of its policies."""
    found = subprocess.run(["ps", "-eo", "ppid,args"], capture_output=True, text=True, check=True).stdout
    mine = re.compile(rf"\s*{os.getpid()} .*trial_process")
    return [line for line in found.splitlines() if mine.match(line) or str(folder) in line]


@pytest.mark.slow
def test_a_good_policy_passes_whatever_it_prints(
    file: Path, copy: EngineCopy, capfd: pytest.CaptureFixture[str]
) -> None:
    try_policy(f"{file}:Good", copy, COST)
    assert capfd.readouterr() == ("", "")


BAD = [
    ("mine.py:RaisesWhenMade", "its __init__() raised ValueError: no"),
    ("mine.py:Segfaults", "in the policy checks: it ended its process by SIGSEGV"),
    ("mine.py:Misspelt", "its evict is 'lruu'; did you mean 'lru'?"),
]
SLOW = [
    ("mine.py:Raises", "it raised KeyError: 'no'"),
    ("mine.py:Exits", "it tried to end the process"),
    ("mine.py:Kills", "in the policy checks: it ended its process by SIGKILL"),
    ("mine.py:Missing", "is no class with a schedule method"),
    ("gone.py:Mine", "raised ModuleNotFoundError"),
    ("nowhere.py:Mine", "there is no file"),
    ("mine.py:Loops", "did not come back within 1 s"),
    ("mine.py:Never", "breaks a promise (serves:"),
    ("mine.py:Stalls", "in a dry run over a copy of what waits and runs: it serves nothing"),
    ("mine.py:Crowd", "it raised RuntimeError: too many"),
    ("mine.py:Hogs", "Memory"),
    ("mine.py:Leaves", "its trial took longer than 12 s, and was"),
]


@pytest.mark.parametrize(("spec", "says"), [*BAD, *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW)])
def test_a_bad_policy_is_refused_and_nothing_is_left(file: Path, copy: EngineCopy, spec: str, says: str) -> None:
    with pytest.raises(LoratoryError) as caught:
        try_policy(f"{file.parent}/{spec}", copy, COST, 60.0 if "Leaves" not in spec else 12.0, 1.0)
    assert says in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) <= 400
    assert not left_over(file.parent)


@pytest.mark.slow
def test_every_policy_that_comes_with_loratory_passes(copy: EngineCopy) -> None:
    from loratory.experiment.policy_spec import policy_names

    for name in policy_names():
        try_policy(name, copy, COST, 120.0)
