"""check-policy: good policies pass; each kind of bad one fails the promise it breaks, with a program that shows it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from command import Command, command_line
from hypothesis import given
from lab import examples
from roster import POLICIES

from loratory.testing import BrokenLaw, Run, World, assert_laws, assert_serves, edge_worlds, run, worlds
from loratory.testing.check_policy import PROMISES, check_policy
from loratory.testing.simpler_world import simplest
from loratory.testing.world_program import program

PLAIN = """
    def schedule(self, view):
        for request in view.unblocked():
            yield from want(view, request)
"""
BODIES = {
    "Good": PLAIN,
    "NoLoad": """
    def schedule(self, view):
        for request in view.unblocked():
            yield Admit(request)
""",
    "Raises": """
    def schedule(self, view):
        for request in view.unblocked():
            if len(view.running) > 2:
                raise KeyError("no room")
            yield from want(view, request)
""",
    "Spins": """
    def schedule(self, view):
        while True:
            pass
        yield
""",
    "Exits": """
    def schedule(self, view):
        import os
        os._exit(0)
        yield
""",
    "Random": """
    def schedule(self, view):
        import random
        requests = list(view.unblocked())
        random.shuffle(requests)
        for request in requests:
            yield from want(view, request)
""",
    "CountsSteps": """
    told = 0
    def observe(self, event):
        self.told += type(event) is Served
    def schedule(self, view):
        requests = list(view.unblocked())
        for request in requests[:: -1 if self.told % 2 else 1]:
            yield from want(view, request)
""",
    "Assumes": """
    def observe(self, event):
        if not hasattr(event, "request") and not hasattr(event, "adapter"):
            self.steps = event.steps
"""
    + PLAIN,
    "Takes": """
    def schedule(self, view):
        view._ledger.kv.used += 1
        return
        yield
""",
}


BODIES["Sets"] = """
    def schedule(self, view):
        for name in {request.request_id for request in view.unblocked()}:
            yield from want(view, next(r for r in view.waiting if r.request_id == name))
"""
BODIES["SortsSets"] = BODIES["Sets"].replace("in {request", "in sorted({request").replace("()}:", "()}):")
BODIES["FailsElsewhere"] = f"""
    def schedule(self, view):
        import os
        if os.getpid() != {os.getpid()}:
            raise KeyError("elsewhere")
        yield from ()
        for request in view.unblocked():
            yield from want(view, request)
"""
BODIES["Promises"] = PLAIN + "    def bound(self, limits):\n        return -1\n"
BODIES["RaisesInBound"] = PLAIN + "    def bound(self, limits):\n        raise KeyError('none')\n"
BODIES["NamesAny"] = PLAIN + "    def victim(self, view):\n        return 'r0'\n"


@pytest.fixture
def policies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file of policies, made the working folder."""
    bodies = "\n".join(f"class {name}:{body}" for name, body in BODIES.items())
    (tmp_path / "mine.py").write_text(f"from loratory.policy import Admit, Served, want\n\n{bodies}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def loratory(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    return command_line(capsys, monkeypatch)


def test_a_good_policy_passes_and_leaves_nothing_behind(
    policies: Path, loratory: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(policies.rglob("*"))
    monkeypatch.setenv("COLUMNS", "80")
    done = loratory("check-policy", "mine.py:Good", "--examples", 4)
    assert done.code == 0 and done.err == ""
    lines = [line for line in done.out.splitlines() if line.startswith("  ")]
    assert [line.split()[:2] for line in lines] == [["ok", law] for law in PROMISES]
    assert max(map(len, done.out.splitlines())) <= 80
    assert [path for path in sorted(policies.rglob("*")) if "__pycache__" not in path.parts] == before


@pytest.mark.parametrize(
    ("name", "laws", "text"),
    [
        ("NoLoad", ["serves"], "the policy admits without loading: yield Load first, or use want"),
        ("Raises", ["returns"], "it raised KeyError: 'no room' (mine.py:"),
        ("Spins", ["returns"], "did not come back within 0.2 s; it was at mine.py:"),
        ("Exits", ["returns"], "it tried to end the process, with exit code 0 (mine.py:"),
        ("Random", ["determinism"], "the other time"),
        ("CountsSteps", ["jumps"], "the other time"),
        ("Assumes", ["events"], "look at the event's type first, or name the types wanted in observes"),
        ("Takes", ["integrity"], "KV blocks used is"),
    ],
)
def test_each_kind_of_bad_policy_fails_what_it_breaks(
    policies: Path, loratory: Command, name: str, laws: list[str], text: str
) -> None:
    done = loratory("check-policy", f"mine.py:{name}", "--examples", 30, "--policy-timeout", 0.2, "--json")
    assert done.code == 1, done.err
    found = {finding["law"]: finding for finding in done.json["findings"]}
    broken = [law for law, finding in found.items() if finding["ok"] is False]
    assert set(laws) <= set(broken) <= {*laws, "serves"} and not done.json["passed"]
    assert text in found[laws[0]]["found"], found[laws[0]]["found"]
    assert f"breaks {len(broken)} of {len(PROMISES)}" in done.err
    if name in ("NoLoad", "Raises", "Takes"):  # and the program shows it again
        again = subprocess.run([sys.executable, "-c", found[laws[0]]["program"]], capture_output=True, text=True)
        assert again.returncode == 1
        assert found[laws[0]]["found"].partition(" failed at")[0] in again.stderr


def test_what_it_prints_fits_and_names_the_world(
    policies: Path, loratory: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = subprocess.run(
        [sys.executable, "-m", "loratory", "check-policy", "mine.py:Raises", "--examples", "5"],
        env={**os.environ, "COLUMNS": "80"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "  FAILED   returns       its code comes back in time, and raises nothing" in done.stdout
    assert "    requests = [\n" in done.stdout and "refused by the ledger: " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("fiffo",), "did you mean 'fifo'"),
        (("nowhere.py:Mine",), "there is no file nowhere.py"),
        (("fifo", "--examples", "0"), "--examples"),
        (("fifo", "--seed", "-1"), "--seed"),
        (("fifo", "--policy-timeout", "0"), "--policy-timeout"),
        (("fifo:strict=maybe",), "strict is 'maybe'"),
    ],
)
def test_bad_input(loratory: Command, arguments: tuple[str, ...], text: str) -> None:
    done = loratory("check-policy", *arguments)
    assert done.code == 2 and done.out == "" and text in done.err and done.err.count("\n") == 1


def test_without_hypothesis_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "hypothesis.py").write_text("raise ModuleNotFoundError('no', name='hypothesis')")
    done = subprocess.run(
        [sys.executable, "-m", "loratory", "check-policy", "fifo"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "loratory: check-policy needs hypothesis: pip install 'loratory[testing]'\n"


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_of_the_package_keeps_every_law_in_every_edge_world(policy: str) -> None:
    """Among them a request for an adapter that nobody registered, which policies are not told of."""
    for name, world in edge_worlds().items():
        result = assert_laws(POLICIES[policy], world)
        assert_serves(result)
        assert result.ended, name


def test_the_same_seed_gives_the_same_report() -> None:
    first, second = (check_policy("fifo", examples=3, seed=5) for _ in range(2))
    assert first == second != check_policy("fifo", examples=3, seed=6)


@examples(25)
@given(world=worlds())
def test_a_program_makes_the_world_again(world: World) -> None:
    text = program(world, "fifo", "serves").replace("assert_serves(run(world, policy))", "")
    names: dict[str, object] = {}
    exec(text, names)
    again = names["world"]
    assert isinstance(again, World)
    policy = POLICIES["affine_deficit"]
    assert run(world, policy, check_books=False).flat == run(again, policy, check_books=False).flat


@examples(15)
@given(world=worlds())
def test_a_plainer_world_still_fails_and_nothing_plainer_does(world: World) -> None:
    """Here what fails is that some request asks for an adapter."""

    def fails(other: World) -> bool:
        return any(other.workload.adapter >= 0)

    if not fails(world):
        return
    found = simplest(world, fails)
    assert fails(found) and len(found.workload) == 1 and len(found.adapters) == 1
    assert found.workload.after is None and found.cost == type(found.cost)()
    assert dedent(program(found, "fifo", "serves")).count("'at': 0.0, 'adapter'") == 1


def test_a_run_in_which_nobody_waits_for_ever_serves() -> None:
    served: Run = run(edge_worlds()["all at once"], POLICIES["fifo"])
    assert_serves(served)
    starved = run(edge_worlds()["all at once"], lambda: _Never())
    with pytest.raises(BrokenLaw, match=r"12 of 12 requests were never served: .*; the policy admitted no request"):
        assert_serves(starved)


class _Never:
    """Admits nobody."""

    def schedule(self, view):  # type: ignore[no-untyped-def]
        return
        yield


@pytest.mark.parametrize(
    ("name", "law", "says"),
    [
        ("Sets", "determinism", "in another process, where Python gives sets another order (PYTHONHASHSEED)"),
        ("FailsElsewhere", "determinism", "in another process it fails: policy mine.py:FailsElsewhere failed at"),
        ("Promises", "returns", "its bound() returned -1: return a finite number"),
        ("RaisesInBound", "returns", "its bound() raised KeyError: 'none' (mine.py:"),
        ("NamesAny", "returns", "its victim() returned 'r0': return a running request"),
    ],
)
def test_what_one_process_does_not_show_and_what_is_promised(policies: Path, name: str, law: str, says: str) -> None:
    found = check_policy(f"mine.py:{name}", examples=10)
    assert [(each.law, says in each.found) for each in found.findings if each.ok is False] == [(law, True)]


def test_a_set_that_is_sorted_is_no_fault(policies: Path) -> None:
    assert check_policy("mine.py:SortsSets", examples=10).passed
