"""LiveRecording: what a server is asked and decides, on disk as it happens; never a prompt's or an output's text.

    engine's thread:  LiveStep  ->  a queue  ->  a thread of its own: lines, then files, twice a second

A step's decisions are written before the step itself: whatever a kill leaves, every step in ``recording.jsonl`` has
all its decisions in ``decisions.jsonl``.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import repeat
from pathlib import Path
from typing import Any

from loratory.adapters.verified import VerifiedAdapter
from loratory.errors import InputError
from loratory.file_lock import FileLock
from loratory.reports.decisions import Tails, decision_lines
from loratory.scenarios.registry_adapters import RecordSpec
from loratory.server.line_file import LineFile
from loratory.server.live_tape import LiveStep
from loratory.server.policy_files import file_digest
from loratory.server.recorded_scenario import ServedSetup, record_of, recorded_scenario, without_scenario
from loratory.server.recording_folder import (
    DECISIONS,
    KIND,
    LOCK,
    PROFILE,
    RECORDING,
    REQUESTS,
    RUN_INFO,
    SCENARIO,
    replace_text,
    set_aside,
)
from loratory.serving.events import Ended
from loratory.serving.lora import Adapter
from loratory.serving.run_recording import adapter_of, adapter_values, recorded_lines
from loratory.serving.sequence import sequence_of
from loratory.sim.cost.profile import ProfileCost

LOG = logging.getLogger("loratory.server")

EVERY_S = 0.5
"""Seconds between two writes."""

LEAST_FREE_BYTES = 1 << 30
"""With less than this left on the disk, the recording ends."""

_MOST_WAITING = 20_000
"""Steps that may wait to be written."""

_REMOVED = "its files have been removed"
_PACKAGES = ("loratory", "torch", "transformers")


@dataclass(frozen=True, slots=True)
class RecordingStatus:
    """How a recording does: where, how many bytes and steps so far, and why it has ended, empty while it goes on."""

    folder: Path
    bytes: int
    steps: int
    failure: str


class LiveRecording:
    """Records into ``folder`` until `close`; an older recording there is moved into a folder below it.

    ``files_of(name)``: the files that an adapter is served from, asked in the engine's thread. When the disk is full,
    fails or is too slow, the recording ends, `status` says why, and the server goes on. Raises `InputError` for a
    folder that cannot be used, or that another server records into.
    """

    def __init__(
        self,
        folder: Path,
        served: ServedSetup,
        cost: ProfileCost,
        adapters: Sequence[Adapter],
        files_of: Callable[[str], VerifiedAdapter | None],
        started_unix: float,
    ) -> None:
        self._folder = folder.resolve()
        self._served = served
        self._files_of = files_of
        self._waiting: deque[tuple[LiveStep, tuple[RecordSpec, ...]]] = deque()
        self._some = threading.Event()
        self._closing = threading.Event()
        self._failure = ""
        self._steps = 0
        self._tails = Tails(0)
        self._records = {each.name: record_of(each, files_of(each.name), served) for each in adapters}
        self._pinned = [each.name for each in adapters if each.pinned]
        self._started = datetime.fromtimestamp(started_unix, UTC).isoformat(timespec="seconds")
        self._info: dict[str, Any] = {
            "kind": KIND,
            "format": 1,
            "started": self._started,
            "started_unix": started_unix,
            "complete": False,
            "policy": served.policy,
            "policy_files": {},
            "engine": served.config.model_dump(exclude_none=True),
            "adapters": [adapter_values(each) for each in adapters],
            "host": platform.node(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "versions": {name: found for name in _PACKAGES if (found := _version(name)) is not None},
        }
        self._lock = self._prepare(cost)
        self._files = {stem: LineFile(self._folder, stem) for stem in (DECISIONS, RECORDING)}
        self._requests = LineFile(self._folder, REQUESTS.partition(".")[0], None)
        self._thread = threading.Thread(target=self._write, name="recording", daemon=True)
        self._thread.start()

    @property
    def status(self) -> RecordingStatus:
        """How it does now."""
        files = (*self._files.values(), self._requests)
        return RecordingStatus(self._folder, sum(file.written for file in files), self._steps, self._failure)

    def take(self, step: LiveStep) -> None:
        """A step has ended. In the engine's thread."""
        if self._failure:
            return
        if len(self._waiting) >= _MOST_WAITING:
            self._fail("the disk is too slow")
            return
        added = [adapter_of(change.values) for change in step.changes if change.kind == "add"]
        records = tuple(record_of(each, self._files_of(each.name), self._served) for each in added)
        self._waiting.append((step, records))
        self._some.set()

    def close(self) -> RecordingStatus:
        """Write what is left, and say that the recording is complete. Not in the engine's thread."""
        self._closing.set()
        self._some.set()
        self._thread.join()
        for file in (*self._files.values(), self._requests):
            file.close()
        if not self._failure:
            self._info |= {"complete": True, "ended": datetime.now(UTC).isoformat(timespec="seconds")}
            with suppress(OSError):
                self._write_info()
        self._lock.release()
        return self.status

    # -- in a thread of its own ------------------------------------------------------------------------------------

    def _write(self) -> None:
        """Write what has come, twice a second."""
        try:
            while True:
                self._some.wait()
                self._some.clear()
                closing = self._closing.wait(EVERY_S)
                if not self._is_there():
                    self._fail(_REMOVED)
                    return
                self._write_waiting()
                if closing or self._failure:
                    return
                if shutil.disk_usage(self._folder).free < LEAST_FREE_BYTES:
                    self._fail(f"less than {LEAST_FREE_BYTES >> 30} GiB is free on the disk")
                    return
        except OSError as error:
            self._fail(f"{error.strerror or error}" if self._is_there() else _REMOVED)
        except Exception as error:  # a fault of our own must not end the server
            if self._is_there():
                LOG.exception("the recording has failed")
            self._fail(f"{type(error).__name__}: {error}" if self._is_there() else _REMOVED)

    def _is_there(self) -> bool:
        """Whether the folder still is the recording's: a file that was removed could be written to without an error."""
        return (self._folder / RUN_INFO).exists()

    def _write_waiting(self) -> None:
        taken = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if not taken:
            return
        steps = [step for step, _ in taken]
        self._files[DECISIONS].write(
            line for step in steps if step.step for line in decision_lines(step.decided, repeat(self._tails))
        )
        self._requests.write(map(_request_line, (event for step in steps for event in step.ended)))
        self._files[RECORDING].write(line for step in steps for line in _lines(step))
        self._steps += sum(step.step is not None for step in steps)
        self._note(record for _, records in taken for record in records)
        swapped = [change.values[0] for step in steps for change in step.changes if change.kind == "swap"]
        if swapped:
            for spec in swapped:
                self._info["policy_files"] |= _file_of(spec)
            self._write_info()

    def _note(self, records: Iterable[RecordSpec]) -> None:
        """Adapters that were added: the scenario has them as well."""
        added = {record.name: record for record in records}
        if added:
            self._records |= added
            self._write_scenario()

    def _fail(self, why: str) -> None:
        if not self._failure:
            self._failure = f"the recording in {self._folder} has ended: {why}"
            LOG.error("%s", self._failure)
            self._waiting.clear()

    # -- files that are written as a whole -------------------------------------------------------------------------

    def _prepare(self, cost: ProfileCost) -> FileLock:
        """Make the folder ready."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock.attempt(self._folder / LOCK)
            if lock is None:
                raise InputError(f"--record {self._folder}: another server records into it: name another folder")
            try:
                aside = set_aside(self._folder)
                if aside is not None:
                    LOG.info("an older recording is in %s now", aside)
                cost.profile.save(self._folder / PROFILE)
                (self._folder / REQUESTS).touch()
                self._info["policy_files"] |= _file_of(self._served.policy)
                self._write_info()
                self._write_scenario()
            except BaseException:
                lock.release()
                raise
        except OSError as error:
            raise InputError(
                f"--record {self._folder} cannot be written ({error.strerror or error}): name another folder"
            ) from error
        return lock

    def _write_info(self) -> None:
        replace_text(self._folder / RUN_INFO, json.dumps(self._info, indent=2) + "\n")

    def _write_scenario(self) -> None:
        try:
            records = [*self._records.values()]
            text = recorded_scenario(self._served, records, self._pinned, self._folder, self._started)
        except InputError as error:
            LOG.warning("%s", without_scenario(error))
            return
        replace_text(self._folder / SCENARIO, text)


def _lines(step: LiveStep) -> Iterable[str]:
    """A step's lines in the recording."""
    steps = () if step.step is None else (step.step,)
    return recorded_lines(step.requests, steps, step.loads, step.changes, step.outputs)


def _request_line(event: Ended) -> str:
    """A request's line in the trace: when it came, what it wanted, what it got, and how it ended."""
    sequence = sequence_of(event.request)
    request = sequence.request
    row: Mapping[str, Any] = {
        "arrival_s": request.arrival,
        "adapter": request.adapter,
        "tenant": request.tenant,
        "prompt_tokens": request.prompt_tokens,
        "output_tokens": sequence.generated,
        "max_tokens": request.max_tokens,
        "priority": request.priority,
        "deadline_s": None if request.deadline is None else max(0.0, request.deadline - request.arrival),
        "status": event.status,
    }
    return json.dumps(row, separators=(",", ":")) + "\n"


def _file_of(spec: str) -> dict[str, str]:
    """The file that a policy spec names, and the digest of what is in it now."""
    digest = file_digest(spec)
    return {} if digest is None else {os.path.abspath(spec.partition(":")[0]): digest}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
