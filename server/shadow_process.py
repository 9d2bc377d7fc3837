"""shadow_process: a process in which a candidate sees what the server's policy sees, and says what it would do.

On stdin come pickles: a `ShadowCandidate`, a `ShadowBegin`, then lists of `ShadowStep`. On the descriptor that the
command line names goes one JSON object a line: ``{"ready": true}``, from time to time the counts, at the end
``{"ended": reason}``; ``input`` is true where the spec is wrong. What the candidate prints goes nowhere.
"""

from __future__ import annotations

import json
import os
import pickle
import select
import signal
import sys
from contextlib import suppress
from time import monotonic
from typing import IO, Any

from loratory.errors import InputError, LoratoryError, PolicyError, shortened
from loratory.experiment.policy_spec import policy_factory
from loratory.server.shadow_engine import ShadowEngine
from loratory.server.shadow_log import ShadowLog
from loratory.server.shadow_step import Choice, ShadowBegin, ShadowCandidate, ShadowStep, choices_of
from loratory.serving.engine_view import View
from loratory.serving.guest_errors import unexpected
from loratory.serving.policy_watch import PolicyWatch

_HEAD_START_S = 0.2
"""Seconds of asking that need not be earned by waiting."""

_TELL_S = 0.2

_leave = os._exit
"""Python's own: while a policy is watched, another is in its place."""


def main(answers: int) -> None:
    """Play what comes until there is no more, or the candidate fails."""
    stream = os.fdopen(os.dup(0), "rb")
    silence = os.open(os.devnull, os.O_RDWR)
    os.dup2(silence, 0)
    os.dup2(silence, 1)

    def tell(**what: Any) -> None:
        with suppress(BrokenPipeError):
            os.write(answers, json.dumps(what).encode() + b"\n")

    with suppress(OSError):
        os.nice(10)  # the server goes first
    candidate: ShadowCandidate = pickle.load(stream)
    sys.path[:] = candidate.path
    try:
        make = policy_factory(candidate.spec, candidate.answer_s)
        policy = make()
        tell(ready=True)
        begin: ShadowBegin = pickle.load(stream)
    except LoratoryError as error:
        tell(ended=str(error), input=isinstance(error, InputError))
        return
    except EOFError:
        return
    with open(candidate.file, "a", encoding="utf-8") as file:
        judge = _Judge(candidate, begin, policy, ShadowLog(file, candidate.spec, begin.live))
        why = judge.play_all(stream, tell)
        judge.log.end(why)
    tell(ended=why, **judge.log.counts())


class _Judge:
    """Plays steps, and asks the candidate at each of the server's choices that there is time for."""

    def __init__(self, candidate: ShadowCandidate, begin: ShadowBegin, policy: Any, log: ShadowLog) -> None:
        self._candidate = candidate
        self.log = log
        self._spent_s = 0.0
        self._began = monotonic()
        self._watch = PolicyWatch(candidate.spec, 3 * candidate.answer_s, keep=True)
        self._engine = ShadowEngine(begin, candidate.spec, policy, self._moment)

    def play_all(self, stream: IO[bytes], tell: Any) -> str:
        """Play until the stream ends; returns why the shadow has ended, empty where it was ended by the server."""
        told = 0.0
        try:
            while True:
                steps: list[ShadowStep] = pickle.load(stream)
                for step in steps:
                    self.log.begin_step(step)
                    with self._watch:
                        self._engine.play(step)
                    self.log.end_step()
                if (now := monotonic()) - told > _TELL_S or not steps:
                    told = now
                    self.log.flush()
                    tell(**self.log.counts(), behind_s=round(now - steps[-1].sent_at, 3) if steps else 0.0)
        except (EOFError, pickle.UnpicklingError):
            return ""
        except LoratoryError as error:
            return str(error)
        finally:
            self._watch.close()

    def _moment(self, view: View) -> None:
        """The server's policy is asked, with the engine as it is in ``view``: ask the candidate, too."""
        step = self._engine.step_now
        began = monotonic()
        if began - step.sent_at > self._candidate.behind_s:
            self.log.left_out("behind")
            return
        if self._spent_s > self._candidate.share * (began - self._began) + _HEAD_START_S:
            self.log.left_out("share")
            return
        chosen: tuple[Choice, ...] = ()
        if view.waiting or not self._engine.only_waiting:
            chosen = self._in_a_fork()
        self.log.compare(step, chosen, self._of)
        self._spent_s += monotonic() - began

    def _of(self, request_id: str) -> tuple[str | None, str]:
        """The adapter and the tenant of a request."""
        sequence = self._engine.engine.ledger.sequences.get(request_id)
        return (None, "") if sequence is None else (sequence.request.adapter, sequence.request.tenant)

    def _in_a_fork(self) -> tuple[Choice, ...]:
        """What the candidate would do, carried out in a process that is a copy of this one, and ends then.

        Raises `PolicyError` where it fails there, ends the process, or does not come back in time.
        """
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            _answer(self._engine, writer)
        os.close(writer)
        said: bytes | None = None
        try:
            said = _read(reader, monotonic() + self._candidate.answer_s)
        finally:
            os.close(reader)
            if said is None:
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        spec = shortened(self._candidate.spec, 100)
        if said is None:
            raise PolicyError(f"policy {spec} did not come back within {self._candidate.answer_s:g} s")
        if not said:
            how = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "exiting"
            raise PolicyError(f"policy {spec} ended its process by {how}")
        answer = json.loads(said)
        if "failed" in answer:
            raise PolicyError(answer["failed"])
        return tuple(Choice(action, name, tuple(values), word) for action, name, values, word in answer["chosen"])


def _answer(engine: ShadowEngine, writer: int) -> None:
    """In the fork: ask, tell, and leave without a trace of this process."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    try:
        try:
            engine.ask()
            text = json.dumps({"chosen": choices_of(engine.decided)})
        except BaseException as error:
            text = json.dumps({"failed": str(error) if isinstance(error, LoratoryError) else unexpected(error)})
        rest = text.encode()
        while rest:
            rest = rest[os.write(writer, rest) :]
    finally:
        _leave(0)


def _read(reader: int, until: float) -> bytes | None:
    """All that is written until the other end is closed; None where that is not in time."""
    parts: list[bytes] = []
    while True:
        left = until - monotonic()
        if left <= 0 or not select.select([reader], [], [], left)[0]:
            return None
        part = os.read(reader, 65_536)
        if not part:
            return b"".join(parts)
        parts.append(part)


if __name__ == "__main__":
    main(int(sys.argv[1]))
