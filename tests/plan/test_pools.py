"""A plan is the same wherever its runs are made, whatever dies meanwhile, and however often it is interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from small_plan import small, text

from loratory.errors import InputError
from loratory.file_lock import FileLock
from loratory.plan.run import plan_scenario
from loratory.plan.store import EVALUATIONS

SPACE = {"space": {"engine.max_loras": [1, 2, 4], "policy": ["fifo", "affinity"]}, "details": True}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Equal but for the CPU time."""
    return {**one, "cpu_s": 0} == {**other, "cpu_s": 0}


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return plan_scenario(small(plan=SPACE))


def test_processes_give_the_same_plan(alone: dict[str, Any]) -> None:
    assert same(plan_scenario(small(plan=SPACE), jobs=2), alone)


def _kill_one(parent: int, killed: list[int]) -> None:
    """End a child of a process by force, as soon as there are two."""
    for _ in range(400):
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        if len(children) > 1:
            time.sleep(0.5)
            os.kill(int(children[0]), signal.SIGKILL)
            killed.append(int(children[0]))
            return
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's list of child processes")
def test_a_process_that_is_killed_loses_nothing(alone: dict[str, Any]) -> None:
    killed: list[int] = []
    killer = threading.Thread(target=_kill_one, args=(os.getpid(), killed))
    killer.start()
    found = plan_scenario(small(plan=SPACE), jobs=2)
    killer.join()
    assert killed and same(found, alone)


@pytest.mark.slow
def test_ray_gives_the_same_plan_though_a_worker_is_killed(alone: dict[str, Any]) -> None:
    ray = pytest.importorskip("ray", reason="ray is not installed")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    killed: list[int] = []

    def kill() -> None:
        for _ in range(600):
            time.sleep(0.05)
            for entry in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    line = entry.read_bytes()
                except OSError:
                    continue
                if line.startswith(b"ray::") and b"_answer" in line:
                    os.kill(int(entry.parent.name), signal.SIGKILL)
                    killed.append(int(entry.parent.name))
                    return

    killer = threading.Thread(target=kill)
    try:
        killer.start()
        found = plan_scenario(small(plan=SPACE), ray="auto")
    finally:
        killer.join()
        ray.shutdown()
    assert killed and same(found, alone)


def test_a_plan_that_was_killed_goes_on_where_it_was(tmp_path: Path, alone: dict[str, Any]) -> None:
    scenario, out = tmp_path / "small.yaml", tmp_path / "plan"
    scenario.write_text(text(plan={"replicas": {"most": 5}, **SPACE}))
    command = [sys.executable, "-m", "loratory", "plan", str(scenario), "--out", str(out), "--jobs", "1", "--json"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lines = out / EVALUATIONS
    while not lines.exists() or lines.read_bytes().count(b"\n") < 10:
        assert first.poll() is None
        time.sleep(0.05)
    first.kill()
    first.wait()
    done = lines.read_bytes().count(b"\n")
    with lines.open("a") as file:
        file.write('{"key": "cut')  # as a line is that was being written
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(again.stdout)
    rows = [json.loads(line) for line in lines.read_text().splitlines() if line.endswith("}")]
    assert len({row["key"] for row in rows}) == len(rows) == found["runs"] > done  # nothing was done twice
    assert found["answer"] == alone["answer"]
    assert {path.name for path in out.iterdir()} == {"plan.html", "plan.json", "best.yaml", EVALUATIONS}
    best = subprocess.run(
        [
            sys.executable,
            "-m",
            "loratory",
            "run",
            str(out / "best.yaml"),
            "--out",
            str(tmp_path / "run"),
            "--require-slo",
        ],
        capture_output=True,
        text=True,
    )
    assert best.returncode == 0, best.stderr


def test_two_plans_do_not_share_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "plan"
    folder.mkdir()
    held = FileLock.take(folder / ".lock")
    with held, pytest.raises(InputError, match="another plan"):
        plan_scenario(small(), folder)


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="thesis"):
        plan_scenario(small(), tmp_path)


def test_no_ray_cluster_at_an_address_is_said() -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    for address, why in (("127.0.0.1:1", "no Ray cluster"), ("here", "no address")):
        with pytest.raises(InputError, match=why):
            plan_scenario(small(), ray=address)
