"""Shadow: a candidate that sees what the live policy sees, in a process of its own, and whose choices are logged."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from loratory.errors import InputError, PolicyError, shortened
from loratory.server.child_process import environment, how_it_ended
from loratory.server.live_tape import LiveStep, LiveTape
from loratory.server.shadow_step import ShadowBegin, ShadowCandidate, plain_step
from loratory.serving.engine import Engine
from loratory.serving.engine_copy import EngineCopy
from loratory.serving.plan import CostView
from loratory.serving.policy import policy_name

SHADOW_FILE = "shadow.jsonl"

SHARE = 0.05
"""The share of its time in which a shadow's process may ask its candidate."""

BEHIND_S = 1.0
"""Seconds by which a shadow's process may be behind the server and still ask its candidate."""

_READY_S = 30.0
_MOST_WAITING = 20_000
"""Steps that may wait for the shadow's process."""

_BATCH = 500
_IDLE_S = 0.3
_GOODBYE_S = 5.0


@dataclass(frozen=True, slots=True)
class ShadowStatus:
    """How a shadow does. ``running``: whether it sees events; ``ended``: why it does not, empty where that was ordered.

    ``compared``: moments at which both were asked; ``same``: at which both did the same; ``left_out``: at which only
    the live policy was, by reason (``share``: asking would take more than its share of time; ``behind``: it catches
    up). ``behind_s``: by how much it is behind the server.
    """

    spec: str
    running: bool = True
    ended: str = ""
    compared: int = 0
    same: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    behind_s: float = 0.0


class Shadow:
    """One candidate, from `start` to `stop`. It cannot act, and nothing it does can hurt the server or make it wait.

    Making one starts the process and makes the candidate in it. Raises `InputError` or `PolicyError` for a candidate
    that cannot be imported or made, and where processes cannot be forked.
    """

    def __init__(
        self, spec: str, folder: Path, answer_s: float, share: float = SHARE, behind_s: float = BEHIND_S
    ) -> None:
        if not hasattr(os, "fork"):
            raise InputError("a shadow needs fork, which this system does not have: leave --shadow out")
        self._spec = spec
        self._status = ShadowStatus(spec)
        self._waiting: deque[tuple[LiveStep, float]] = deque()
        self._some = threading.Event()
        self._begin: ShadowBegin | None = None
        self._tape: LiveTape | None = None
        self._stopping = self._killed = self._is_input = False
        reader, writer = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "loratory.server.shadow_process", str(writer)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(writer,),
                env=environment(),
                start_new_session=True,
            )
        except OSError as error:
            os.close(reader)
            raise InputError(f"a shadow cannot be started ({error}): leave --shadow out") from error
        finally:
            os.close(writer)
        self._ready = threading.Event()
        self._listener = threading.Thread(target=self._listen, args=(reader,), name="shadow-answers", daemon=True)
        self._writer = threading.Thread(target=self._write, name="shadow-steps", daemon=True)
        self._listener.start()
        first = ShadowCandidate(spec, tuple(sys.path), answer_s, share, behind_s, str(folder / SHADOW_FILE))
        self._send(first)
        self._ready.wait(_READY_S + answer_s)
        if not self._ready.is_set() or self._status.ended:
            why = self._status.ended or f"policy {shortened(spec, 100)}: it was not made within {_READY_S:g} s"
            self._kill()
            raise InputError(why) if self._is_input else PolicyError(why)

    @property
    def status(self) -> ShadowStatus:
        """How it does now."""
        return self._status

    def start(self, engine: Engine, cost: CostView, tape: LiveTape) -> None:
        """From the next step on, it sees what the engine does. In the engine's thread, between two steps."""
        self._begin = ShadowBegin(EngineCopy.of(engine), cost, policy_name(engine.policy))
        self._tape = tape
        tape.add(self._take)
        self._writer.start()

    def stop(self) -> ShadowStatus:
        """No more events; returns when what has been seen is in the log, or after a few seconds. Not in the engine's
        thread."""
        self._leave_tape()
        self._stopping = True
        self._some.set()
        if self._writer.is_alive():
            self._writer.join(_GOODBYE_S)
        with suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        self._listener.join(_GOODBYE_S)
        self._kill()
        self._end("")
        return self._status

    # -- in the engine's thread ------------------------------------------------------------------------------------

    def _take(self, step: LiveStep) -> None:
        if len(self._waiting) >= _MOST_WAITING:
            self._end("its process fell too far behind the server")
            self._leave_tape()
            self._stopping = True
        else:
            self._waiting.append((step, monotonic()))
        self._some.set()

    # -- in threads of its own -------------------------------------------------------------------------------------

    def _write(self) -> None:
        """Send the engine's copy, then the steps as they come."""
        self._send(self._begin)
        sent = False
        while True:
            if not self._some.wait(_IDLE_S if sent else None):
                sent = False
                self._send([])  # nothing comes for a while: the counts are wanted
            self._some.clear()
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
                plain = [step for live, at in batch if (step := plain_step(live, at)) is not None]
                if plain and not self._send(plain):
                    return
                sent = True
            if self._stopping:
                return

    def _send(self, what: Any) -> bool:
        """Whether the process is still there to take it."""
        assert self._process.stdin is not None
        try:
            pickle.dump(what, self._process.stdin, protocol=5)
            self._process.stdin.flush()
        except (OSError, ValueError):
            return False
        return True

    def _listen(self, reader: int) -> None:
        """Take in what the process tells, until it ends."""
        with os.fdopen(reader, "rb") as file:
            for line in file:
                with suppress(ValueError, TypeError):
                    self._told(json.loads(line))
        code = self._process.wait()
        if code and not self._killed:
            self._end(f"policy {shortened(self._spec, 100)}: {how_it_ended(code, b'')}")
            self._leave_tape()
        self._ready.set()

    def _told(self, said: dict[str, Any]) -> None:
        before = self._status
        if "compared" in said:
            self._status = ShadowStatus(
                before.spec,
                before.running,
                before.ended,
                int(said["compared"]),
                int(said["same"]),
                dict(said["left_out"]),
                float(said.get("behind_s", 0.0)),
            )
        if "ended" in said:
            self._is_input = said.get("input") is True
            self._end(str(said["ended"]))
            self._leave_tape()
        self._ready.set()

    def _end(self, why: str) -> None:
        was = self._status
        if was.running:
            self._status = ShadowStatus(was.spec, False, why, was.compared, was.same, was.left_out, was.behind_s)

    def _leave_tape(self) -> None:
        if self._tape is not None:
            self._tape.remove(self._take)

    def _kill(self) -> None:
        self._stopping = self._killed = True
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        self._listener.join(_GOODBYE_S)
