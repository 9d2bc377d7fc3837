"""ShadowLog: shadow.jsonl, a line for each moment at which the live policy was asked and a candidate beside it.

    {"shadow": SPEC, "live": SPEC}                               a candidate begins
    {"t": S, "live": {"admit": [...], ...}, "shadow": {...}}     what each did at second S, where they differ
    {"t": S, "both": {"admit": [...], ...}}                      what both did, where it was the same
    {"t": S, "live_now": SPEC}                                   another policy is in force
    {"t": S, "compared": N, "same": N, "left_out": {WORD: N}}    counts since the candidate began, once a second, and
                                                                 before each "live_now"
    {"t": S, "ended": REASON}                                    the candidate's end; empty where it was ordered

Of requests, ``of`` has adapter and tenant where the two differ. Only what the ledger carried out counts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import IO, Any

from loratory.server.shadow_step import OK_WORD, Choice, ShadowStep

EVERY_S = 1.0
"""Seconds of the server's clock between two lines with counts."""

Of = Callable[[str], tuple[str | None, str]]
"""From a request's id to its adapter and its tenant."""


class ShadowLog:
    """Counts and writes what a candidate would do, moment by moment."""

    def __init__(self, file: IO[str], spec: str, live: str) -> None:
        self._file = file
        self._live = live
        self._at = 0.0
        self._counted_at: float | None = None
        self._compared = self._same = 0
        self._left_out: Counter[str] = Counter()
        self._write({"shadow": spec, "live": live})

    def compare(self, step: ShadowStep, chosen: Sequence[Choice], of: Of) -> None:
        """Both were asked: the live policy chose what is in ``step``."""
        self._at = step.step.start_s
        live, shadow = done(step.choices), done(chosen)
        self._compared += 1
        if live == shadow:
            self._same += 1
            if live:
                self._write({"t": self._at, "both": live})
        else:
            differ = set(live.get("admit", ())) ^ set(shadow.get("admit", ()))
            first = [*live.get("admit", ())[:1], *shadow.get("admit", ())[:1]]
            named = {request_id: of(request_id) for request_id in dict.fromkeys((*sorted(differ), *first))}
            self._write({"t": self._at, "live": live, "shadow": shadow, "of": named})
        self._count(EVERY_S)

    def left_out(self, why: str) -> None:
        """The live policy was asked, the candidate was not."""
        self._left_out[why] += 1

    def begin_step(self, step: ShadowStep) -> None:
        """A step is about to be played: note policies that were put in, and what was counted under those before."""
        self._at = step.step.start_s
        for policy in step.put_in:
            if policy != self._live:  # the candidate may have begun between a swap and the next step
                self._live = policy
                self._count(-1.0)
                self._write({"t": self._at, "live_now": policy})

    def end_step(self) -> None:
        """The step has been played."""
        self._count(EVERY_S)

    def counts(self) -> dict[str, Any]:
        """How many moments were compared, at how many both did the same, and how many were left out, by reason."""
        return {"compared": self._compared, "same": self._same, "left_out": dict(self._left_out)}

    def end(self, why: str) -> None:
        """The last lines."""
        self._count(-1.0)
        self._write({"t": self._at, "ended": why})
        self.flush()

    def flush(self) -> None:
        """Nothing is left in memory."""
        self._file.flush()

    def _count(self, every_s: float) -> None:
        if self._counted_at is None or self._at - self._counted_at > every_s:
            self._counted_at = self._at
            self._write({"t": self._at, **self.counts()})

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, separators=(",", ":")) + "\n")


def done(choices: Sequence[Choice]) -> dict[str, list[str]]:
    """What the ledger carried out, by action, in order: requests and adapters."""
    found: dict[str, list[str]] = {}
    for choice in choices:
        if choice.outcome == OK_WORD and choice.action != "wake":
            found.setdefault(choice.action, []).append(choice.name)
    return found
