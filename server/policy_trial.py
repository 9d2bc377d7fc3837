"""try_policy: a candidate is imported, checked and run over a copy of the engine, in a process of its own."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

from loratory.errors import InputError, PolicyError, shortened
from loratory.server.child_process import environment, how_it_ended
from loratory.serving.engine_copy import EngineCopy
from loratory.serving.plan import CostView

TRIAL_S = 60.0
"""Seconds that a trial may take; on a quiet machine it takes four."""

ANSWER_S = 5.0
"""Seconds that a candidate may take for one answer in its trial, if a live policy may take that long."""

_LAST_WORDS_S = 2.0
"""What a process has told is there at once, unless another one that it started holds the pipe open."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What a trial's process is sent. ``copy``: of the engine that the policy is to be put into, or None; ``cost``:
    that engine's cost model, which can be pickled; ``path``: where modules are found."""

    spec: str
    policy_timeout_s: float
    path: tuple[str, ...]
    copy: EngineCopy | None
    cost: CostView | None


def try_policy(
    spec: str,
    copy: EngineCopy | None,
    cost: CostView | None,
    timeout_s: float = TRIAL_S,
    policy_timeout_s: float = ANSWER_S,
) -> None:
    """Return if the policy may be put in. Raises `InputError` or `PolicyError`, one sentence, if it may not.

    The candidate never runs in this process, so neither a crash nor a loop nor the interpreter's lock hurts it. Paths
    in ``spec`` are relative to this process's working folder. The trial's process and all that it has started have
    ended when this returns.
    """
    trial = Trial(spec, policy_timeout_s, tuple(sys.path), copy, cost)
    with tempfile.TemporaryFile() as sent, tempfile.TemporaryFile() as words:  # pipes could be held open by others
        pickle.dump(trial, sent)
        sent.seek(0)
        late, code, told = _run(spec, sent, words, timeout_s)
        words.seek(0)
        last = words.read()[-4096:]
    if late:
        raise PolicyError(
            f"policy {_shown(spec)}: its trial took longer than {timeout_s:g} s, and was {told.stage} then: try it "
            "with loratory check-policy"
        )
    if not told.ended:
        raise PolicyError(shortened(f"policy {_shown(spec)}, {told.stage}: {how_it_ended(code, last)}"))
    if told.refused is not None:
        raise InputError(told.refused) if told.is_input else PolicyError(told.refused)


def _run(spec: str, sent: IO[bytes], words: IO[bytes], timeout_s: float) -> tuple[bool, int, _Told]:
    """Run the trial's process: whether it was late, its exit code, and what it told."""
    reader, writer = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "loratory.testing.trial_process", str(writer)],
            stdin=sent,
            stdout=subprocess.DEVNULL,
            stderr=words,
            pass_fds=(writer,),
            env=environment(),
            start_new_session=True,
        )
    except OSError as error:
        os.close(reader)
        raise InputError(f"policy {_shown(spec)} cannot be tried: no process can be started ({error})") from error
    finally:
        os.close(writer)
    told = _Told(reader)
    late = False
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        late = True
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        told.close()
    return late, process.returncode, told


class _Told:
    """Reads what a trial's process tells, in a thread, until its end."""

    def __init__(self, descriptor: int) -> None:
        self.stage = "being started"
        self.ended = False
        self.refused: str | None = None
        self.is_input = False
        self._file = os.fdopen(descriptor, "rb")
        self._thread = threading.Thread(target=self._read, name="policy-trial", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Wait for its last words; the processes that write them have ended."""
        self._thread.join(_LAST_WORDS_S)

    def _read(self) -> None:
        with self._file:
            for line in self._file:
                with suppress(ValueError):
                    self._take(json.loads(line))

    def _take(self, said: Any) -> None:
        if not isinstance(said, dict):
            return
        if "at" in said:
            self.stage = str(said["at"])
        elif "refused" in said:
            self.ended = True
            self.refused = None if said["refused"] is None else str(said["refused"])
            self.is_input = said.get("input") is True


def _shown(spec: str) -> str:
    return shortened(spec, 100)
