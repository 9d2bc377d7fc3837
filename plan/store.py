"""Store: the results of a plan's runs on disk, so that a plan that was interrupted goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from io import TextIOWrapper
from math import inf, isinf
from pathlib import Path
from typing import Any

from loratory.errors import InputError
from loratory.file_lock import FileLock
from loratory.plan.evaluate import Evaluation
from loratory.plan.measure import Measured

EVALUATIONS = "evaluations.jsonl"
"""The file of a plan's folder that holds a line for each run."""

LOCK = ".lock"
_ROOMS = ("serving", "sim", "policies", "scenarios", "reports", "models", "adapters", "plan", "experiment")
"""What a result depends on: a changed file in one of these makes every kept result unknown."""


class Store:
    """Results by what was asked; each one is on disk before it is used. Without a folder they are kept in memory."""

    def __init__(self, file: TextIOWrapper | None = None, known: dict[str, Measured] | None = None) -> None:
        self._file = file
        self._known = known or {}
        self.resumed = len(self._known)
        """Results that an earlier plan left."""

    @classmethod
    @contextmanager
    def at(cls, folder: Path | None) -> Iterator[Store]:
        """The store of a plan's folder, which is made if need be, for this process alone.

        Raises `InputError` when another plan is at work there, or it cannot be written.
        """
        if folder is None:
            yield cls()
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock.attempt(folder / LOCK)
            if lock is None:
                raise InputError(f"{folder}: another plan is being made there: wait for it, or name another --out")
            with lock:
                path = folder / EVALUATIONS
                known = _read(path)
                with path.open("a", encoding="utf-8") as file:
                    if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
                        file.write("\n")  # the process that wrote the last line was killed within it
                    yield cls(file, known)
            (folder / LOCK).unlink(missing_ok=True)
        except OSError as error:
            raise InputError(
                f"{folder} cannot be written ({error.strerror}): name another folder with --out"
            ) from error

    def get(self, asked: Evaluation) -> Measured | None:
        """The result of a run, if there is one."""
        return self._known.get(key_of(asked))

    def put(self, asked: Evaluation, found: Measured) -> None:
        """Keep the result of a run."""
        key = key_of(asked)
        self._known[key] = found
        if self._file is not None:
            self._file.write(json.dumps({"key": key, **_plain(found)}) + "\n")
            self._file.flush()


def key_of(asked: Evaluation) -> str:
    """A digest of all that the result of a run depends on: scenario, policy, seed, files, and Loratory's code."""
    scenario = asked.scenario.model_dump(mode="json", exclude={"name", "description", "plan", "policies", "seeds"})
    parts = [scenario, asked.policy, asked.seed, asked.stop_early, _files(scenario), _file(asked.policy), code()]
    return sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _files(value: Any) -> list[Any]:
    """The files that a scenario names, with their sizes and times of change."""
    if isinstance(value, dict):
        return [found for item in value.values() for found in _files(item)]
    if isinstance(value, list):
        return [found for item in value for found in _files(item)]
    return _file(value) if isinstance(value, str) and value.startswith("/") else []


def _file(text: str) -> list[Any]:
    path = Path(text.partition(":")[0])
    try:
        return [str(path), path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else []
    except (OSError, ValueError):
        return []


@cache
def code() -> str:
    """A digest of Loratory's own code and tables."""
    digest, package = sha256(), Path(__file__).parents[1]
    for room in _ROOMS:
        for path in sorted((package / room).rglob("*")):
            if path.suffix in (".py", ".yaml", ".json") and path.is_file():
                digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _plain(found: Measured) -> dict[str, Any]:
    values = {name: "inf" if value is not None and isinf(value) else value for name, value in found.values.items()}
    return {
        "values": values,
        "missed": list(found.missed),
        "steady": found.steady,
        "requests": found.requests,
        "cpu_s": round(found.cpu_s, 3),
    }


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no number")
    return float(value)


def _read(path: Path) -> dict[str, Measured]:
    """The results in a file; a line that is cut off or is none of ours is passed over."""
    known: dict[str, Measured] = {}
    if not path.exists():
        return known
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            values = {name: inf if value == "inf" else _number(value) for name, value in row["values"].items()}
            missed = tuple(str(name) for name in row["missed"])
            requests, cpu_s = int(row["requests"]), float(row["cpu_s"])
            known[str(row["key"])] = Measured(values, missed, str(row["steady"]), requests, cpu_s)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return known
