"""decisions.jsonl: one compact JSON object per action that a policy yielded, with the ledger's outcome."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from json.encoder import encode_basestring_ascii as quote
from math import isfinite
from pathlib import Path
from typing import IO, Any

from loratory.serving.actions import Admit, Evict, Load, Preempt, Prefetch, Reject, Wake
from loratory.serving.events import Decided

_FLUSH_LINES = 256
"""Decisions that are formatted together; few, so that they stay in the processor's cache."""


class DecisionLog:
    """Writes decisions to a file, in order; see `decision_lines` for what a line is."""

    __slots__ = ("_decided", "_file", "_path", "_tails")

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None
        self._decided: list[Decided] = []
        self._tails: list[Tails] = []
        """Of the decisions in `_decided`, one by one."""

    def writer(self, replica: int) -> Callable[[Decided], None]:
        """The function that appends the decisions of one replica."""
        decided, flush = self._decided, self._flush
        add, add_tails, tails = decided.append, self._tails.append, Tails(replica)

        def write(event: Decided) -> None:
            add(event)
            add_tails(tails)
            if len(decided) >= _FLUSH_LINES:
                flush()

        return write

    def _flush(self) -> None:
        if self._file is None:
            self._file = open(self._path, "w", encoding="ascii", newline="\n", buffering=1 << 16)  # noqa: SIM115
        self._file.write("".join(decision_lines(self._decided, self._tails)))
        self._decided.clear()
        self._tails.clear()

    def close(self) -> None:
        """Write what is left; a run without decisions leaves an empty file."""
        self._flush()
        if self._file is not None:
            self._file.close()

    def abandon(self) -> None:
        """Close the file without writing what is left; for a run that failed, perhaps because the disk is full."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()


class Tails(dict[str | None, str]):
    """The ends of one replica's lines, by outcome."""

    def __init__(self, replica: int) -> None:
        super().__init__()
        self._replica = replica

    def __missing__(self, outcome: str | None) -> str:
        tail = self[outcome] = f',"outcome":{quote(str(outcome))},"replica":{self._replica}}}\n'
        return tail


def decision_lines(decided: Sequence[Decided], tails: Iterable[Tails]) -> list[str]:
    """A line for each decision; ``tails`` has those of its replica. Formatted by hand: this runs for every action.

    Each line is ``{"t", "replica", "action", ..., "outcome"}``: ``t`` in seconds; ``action`` in admit, load, evict,
    preempt, reject, prefetch, wake with the action's own fields; ``outcome`` "ok" or the ledger's word of refusal.
    Any other object (of a broken policy) is written as ``"action":"invalid"`` with its type's name.
    """
    lines: list[str] = []
    add = lines.append
    last, text = math.nan, ""
    action: Any
    for (now, action, (ok, why)), ends in zip(decided, tails, strict=False):
        if now != last:
            last, text = now, repr(now) if type(now) is float and isfinite(now) else _number(now)
        tail = ends["ok" if ok else why]
        kind = type(action)
        try:
            if kind is Admit:
                request, tokens = action
                count = "" if tokens is None else f',"tokens":{_number(tokens)}'
                add(f'{{"t":{text},"action":"admit","request":{quote(request.request_id)}{count}{tail}')
            elif kind is Wake:
                add(f'{{"t":{text},"action":"wake","at":{_number(action[0])},"after_steps":{_number(action[1])}{tail}')
            elif kind in _WORDS:
                add(f'{{"t":{text},"action":"{_WORDS[kind]}","adapter":{quote(action[0])}{tail}')
            else:
                add(f'{{"t":{text},{_rare(action)}{tail}')
        except (AttributeError, TypeError, ValueError):
            add(f'{{"t":{text},"action":"invalid","type":{quote(kind.__name__)}{tail}')
    return lines


_WORDS: dict[type, str] = {Load: "load", Evict: "evict", Prefetch: "prefetch"}


def _rare(action: Any) -> str:
    if isinstance(action, Preempt):
        return f'"action":"preempt","request":{quote(action.request.request_id)}'
    if isinstance(action, Reject):
        return f'"action":"reject","request":{quote(action.request.request_id)},"why":{quote(action.why)}'
    raise TypeError(action)


def _number(value: float | None) -> str:
    """A JSON number that reads back equal, or null for a value that JSON cannot hold."""
    if value is None or not math.isfinite(value):
        return "null"
    return str(int(value)) if isinstance(value, int) else float.__repr__(float(value))
