"""Prepare: a command builds its scenario once, and reads each policy of it once."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from command import SMALL, Command, command_line

from loratory.errors import InputError
from loratory.experiment import resolve, runner
from loratory.experiment.prepare import prepare
from loratory.experiment.resolve import Built
from loratory.scenarios.load import load_text
from loratory.scenarios.schema import Scenario

POLICY = """\
import pathlib

log = pathlib.Path(__file__).with_suffix(".log")
with log.open("a") as file:
    file.write("read\\n")
print("a policy that talks")


class Mine:
    def __init__(self, depth: int = 3):
        self.depth = depth

    def schedule(self, view):
        yield from ()
"""


@pytest.fixture
def loratory(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    return command_line(capsys, monkeypatch)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Scenario]:
    """Every scenario that is built from here on. A report's advice builds others, with engine settings to try."""
    built: list[Scenario] = []
    build = resolve._build

    def counted(scenario: Scenario) -> Built:
        built.append(scenario)
        return build(scenario)

    monkeypatch.setattr(resolve, "_build", counted)
    return built


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A scenario with two seeds, the policy it names, and the file in which the policy counts how often it is read."""
    policy = tmp_path / "mine.py"
    policy.write_text(POLICY)
    scenario = tmp_path / "small.yaml"
    scenario.write_text(SMALL.replace("[fifo]", f"[fifo, '{policy}:Mine:depth=4']\nseeds: [0, 1]"))
    return scenario, policy, policy.with_suffix(".log")


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_builds_its_scenario_once(
    jobs: int,
    files: tuple[Path, Path, Path],
    builds: list[Scenario],
    loratory: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def here(call: Callable[[Any], Any], tasks: Sequence[Any], jobs: int, _: object) -> Iterator[tuple[int, Any]]:
        """What `workers.shared` does in other processes, in this one, where calls can be counted."""
        theirs = pickle.loads(pickle.dumps(call))
        yield from ((place, theirs(pickle.loads(pickle.dumps(task)))) for place, task in enumerate(tasks))

    monkeypatch.setattr(runner, "shared", here)
    scenario, _, log = files
    loratory("run", scenario, "--out", scenario.parent / "out", "--jobs", jobs)
    assert (scenario.parent / "out" / "report.html").exists()
    assert sum(each.engine == builds[0].engine for each in builds) == 1
    in_workers = 1 if jobs > 1 else 0  # a class of a file cannot be sent: each process reads it again, once
    assert log.read_text() == "read\n" * (1 + in_workers)


def test_a_check_builds_and_reads_once_and_prints_nothing_of_the_policy(
    files: tuple[Path, Path, Path], builds: list[Scenario], loratory: Command
) -> None:
    scenario, _, log = files
    assert loratory("scenarios", "check", scenario, "--json").json["runs"] == 4
    assert len(builds) == 1 and log.read_text() == "read\n"


def test_a_prepared_policy_has_its_settings_and_makes_a_fresh_one_each_time(files: tuple[Path, Path, Path]) -> None:
    scenario, policy, _ = files
    spec = f"{policy}:Mine:depth=4"
    prepared = prepare(load_text(scenario.read_text()))
    assert list(prepared.policies) == ["fifo", spec]
    factory: Any = prepared.policies[spec]
    assert factory.settings == {"depth": 4, "evict": "lru", "prefetch": 0, "reserve": False}
    assert factory.decides_by is None and prepared.policies["fifo"].decides_by is not None
    one, other = factory(), factory()
    assert one is not other and one.depth == other.depth == 4


def test_errors_of_a_build_begin_with_the_file() -> None:
    scenario = load_text(SMALL.replace("h100-80gb", "abacus"))
    with pytest.raises(InputError, match=r"^my\.yaml: gpu: "):
        prepare(scenario, source="my.yaml")
    with pytest.raises(InputError, match=r"^gpu: "):
        prepare(scenario)
