"""decisions.jsonl: one compact JSON object for each action a policy yielded and what the ledger answered."""

from __future__ import annotations

import math
from collections.abc import Callable
from json.encoder import encode_basestring_ascii as quote
from math import isfinite
from pathlib import Path
from typing import IO, Any

from serving.events import Decided
from serving.policy import Admit, Evict, Load, Preempt, Prefetch, Reject, Wake

_FLUSH_LINES = 16_384


class DecisionLog:
    """Writes decisions to a file, in order. Formatted by hand: this runs for every action of the policy.

    Each line is ``{"t", "replica", "action", ..., "outcome"}``: ``t`` in seconds; ``action`` in admit, load, evict,
    preempt, reject, prefetch, wake with the action's own fields; ``outcome`` "ok" or the ledger's word of refusal.
    An action that is none of these (a broken policy's) is written as ``"action":"invalid"`` with its type's name.
    """

    __slots__ = ("_file", "_lines", "_path")

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None
        self._lines: list[str] = []

    def writer(self, replica: int) -> Callable[[Decided], None]:
        """The function that appends the decisions of one replica."""
        lines, flush = self._lines, self._flush
        add = lines.append
        tails: dict[str | None, str] = {}
        last, text = math.nan, ""

        def write(event: Decided) -> None:
            nonlocal last, text
            action: Any
            now, action, (ok, why) = event
            if now != last:
                last, text = now, repr(now) if type(now) is float and isfinite(now) else _number(now)
            answer = "ok" if ok else why
            try:
                tail = tails[answer]
            except KeyError:
                tail = tails[answer] = f',"outcome":{quote(str(answer))},"replica":{replica}}}\n'
            try:
                kind = type(action)
                if kind is Admit:
                    request, tokens = action
                    count = "" if tokens is None else f',"tokens":{_number(tokens)}'
                    add(f'{{"t":{text},"action":"admit","request":{quote(request.request_id)}{count}{tail}')
                elif kind in _WORDS:
                    add(f'{{"t":{text},"action":"{_WORDS[kind]}","adapter":{quote(action[0])}{tail}')
                else:
                    add(f'{{"t":{text},{_rare(action)}{tail}')
            except (AttributeError, TypeError, ValueError):
                add(f'{{"t":{text},"action":"invalid","type":{quote(type(action).__name__)}{tail}')
            if len(lines) >= _FLUSH_LINES:
                flush()

        return write

    def _flush(self) -> None:
        if self._file is None:
            self._file = open(self._path, "w", encoding="ascii", newline="\n")  # noqa: SIM115
        self._file.write("".join(self._lines))
        self._lines.clear()

    def close(self) -> None:
        """Write what is left; a run without decisions leaves an empty file."""
        self._flush()
        if self._file is not None:
            self._file.close()


_WORDS: dict[type, str] = {Load: "load", Evict: "evict", Prefetch: "prefetch"}


def _rare(action: Any) -> str:
    if isinstance(action, Preempt):
        return f'"action":"preempt","request":{quote(action.request.request_id)}'
    if isinstance(action, Reject):
        return f'"action":"reject","request":{quote(action.request.request_id)},"why":{quote(action.why)}'
    if isinstance(action, Wake):
        return f'"action":"wake","at":{_number(action.at)},"after_steps":{_number(action.after_steps)}'
    raise TypeError(action)


def _number(value: float | None) -> str:
    """A JSON number that reads back equal, or null for what JSON has no number for."""
    if value is None or not math.isfinite(value):
        return "null"
    return str(int(value)) if isinstance(value, int) else float.__repr__(float(value))
