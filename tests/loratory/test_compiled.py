"""The compiled core gives what the sources give, byte for byte: every library scenario, and every policy.

``make compiled`` builds it in build/compiled; without a build of these very sources the tests are skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loratory.experiment.policy_spec import policy_names
from loratory.scenarios.library_index import library

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / "build" / "compiled"

RUNS = """
import sys
from pathlib import Path
from loratory import load_scenario, run_scenario
from loratory.serving.compiling import is_compiled

folder, expected, *runs = sys.argv[1:]
assert is_compiled() == (expected == "compiled")
for number, run in enumerate(runs):
    name, policies = run.split("=")
    scenario = load_scenario(name, ["seeds=[0]"], policies=policies.split(",") if policies else None)
    run_scenario(scenario, Path(folder) / str(number))
"""


def sources_of_the_build() -> bool:
    """Whether the build is one of the sources that are here: it has a copy of each."""
    for room in ("serving", "sim", "reports", "policies"):
        for path in (ROOT / room).rglob("*.py"):
            copy = BUILT / "loratory" / path.relative_to(ROOT)
            if not copy.exists() or copy.read_bytes() != path.read_bytes():
                return False
    return True


def results(core: str, folder: Path, runs: list[str]) -> dict[str, bytes]:
    """The records and summaries of these runs, by file; ``core`` is "compiled" or "pure"."""
    first = BUILT if core == "compiled" else ROOT
    env = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": str(first)}
    done = subprocess.run(
        [sys.executable, "-c", RUNS, str(folder), core, *runs], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".parquet", ".jsonl") or path.name == "summary.json"
    }


def compare(tmp_path: Path, runs: list[str]) -> None:
    """Runs them on both, and finds the same files with the same bytes."""
    if not (BUILT / "loratory").exists():
        pytest.skip("no compiled core in build/compiled: make compiled")
    if not sources_of_the_build():
        pytest.skip("build/compiled is of other sources: make compiled")
    pure, compiled = (results(core, tmp_path / core, runs) for core in ("pure", "compiled"))
    assert pure and pure.keys() == compiled.keys()
    assert [name for name in pure if pure[name] != compiled[name]] == []


def test_every_policy_gives_the_same_bytes(tmp_path: Path) -> None:
    compare(tmp_path, [f"quickstart={','.join(policy_names())}"])


@pytest.mark.slow
def test_every_library_scenario_gives_the_same_bytes(tmp_path: Path) -> None:
    compare(tmp_path, [f"{entry.name}=" for entry in library()])
