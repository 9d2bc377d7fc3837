"""Registry among processes: eight that register at once, and writers that are killed in the middle."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from registry_process import description

from loratory.adapters.registry.check import problems
from loratory.adapters.registry.registry import Registry

ROOT = Path(__file__).parents[3]
WORKERS = 8


def _start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "tests" / "support" / "registry_process.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "random"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)


@pytest.mark.parametrize(
    "strategy", ["sequential", *(pytest.param(name, marks=pytest.mark.slow) for name in ("hash", "user", "semantic"))]
)
def test_eight_processes_at_once_lose_nothing_and_duplicate_nothing(registry_url: str, strategy: str) -> None:
    workers = [_start("race", registry_url, strategy, str(number)) for number in range(WORKERS)]
    for worker in workers:
        assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    told = []
    for worker in workers:
        out, err = worker.communicate()
        assert worker.returncode == 0, err
        told.append(json.loads(out))
    with Registry(registry_url) as registry:
        assert registry.ids == strategy
        records = registry.list()
        assert problems(registry) == []
    names = {f"shared-{i}" for i in range(20)} | {f"own-{w}-{i}" for w in range(WORKERS) for i in range(20)}
    first = {record.name: record.lora_int_id for record in records if record.version == 1}
    assert set(first) == names
    assert len(records) == len(names) + WORKERS
    assert len({record.lora_int_id for record in records}) == len(records)
    for report in told:
        assert len(report["ids"]) == 40
        assert all(first[name] == number for name, number in report["ids"].items())
    versions = {record.version: record.lora_int_id for record in records if record.name == "shared-0"}
    # A new version of content that differs, asked for by each: none of them got another's.
    assert sorted(report["version"][0] for report in told) == list(range(2, WORKERS + 2))
    assert dict(report["version"] for report in told).items() <= versions.items()


def test_killed_writers_leave_a_consistent_registry(registry_url: str) -> None:
    rng = random.Random(4)
    told: dict[str, int] = {}
    for life in range(8):
        writer = _start("until-killed", registry_url, str(life))
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(rng.randint(1, 150))]
        # It goes on writing while we count: SIGKILL meets it wherever it is, mostly inside a transaction.
        writer.kill()
        lines += writer.stdout.readlines()  # communicate() would pass over what readline() has buffered
        writer.communicate()
        for line in lines:
            if line.endswith("\n"):
                verb, ref, number = line.split()
                assert verb == "add"
                assert ref not in told and int(number) not in told.values()
                told[ref] = int(number)
        with Registry(registry_url, create=False) as registry:
            assert problems(registry) == []
            stored = {record.ref: record.lora_int_id for record in registry.list(removed=True)}
            assert told.items() <= stored.items()
            record = registry.add(f"after-{life}", "/z", description("z"))
            assert record.lora_int_id not in stored.values()
            told[record.ref] = record.lora_int_id
    assert len(told) > 8
