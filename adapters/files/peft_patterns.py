"""Patterns: PEFT's regular expressions, matched in bounded time because an untrusted file supplies them.

Python's ``re`` backtracks: ``(a+)+b`` on a long row of a's takes exponential time, and an adapter's configuration may
hold any expression. Here an expression is instead run on all positions of the text at once. A set of positions is the
bits of one integer, and every part of an expression maps the set where it may begin to the set where it may end:

    text       q _ p r o j          pattern  [a-z]_p.*
    position   0 1 2 3 4 5 6
    begin      1 . . . . . .        a match begins at 0
    [a-z]      . 1 . . . . .        a letter at 0: go on at 1
    _          . . 1 . . . .
    p          . . . 1 . . .
    .*         . . . 1 1 1 1        each round adds the positions one further, until none is new
                           ^        the end of the text is in the set: the whole text matches

A literal is a mask and a shift; a choice is the union of its branches; a repetition runs until no position is new,
which is at most once for each position. So time is polynomial, and the number of steps is bounded as well (`MAX_WORK`).
The expression is parsed by Python's own parser (``re._parser``), so its syntax is Python's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

from loratory.adapters.files.strict_json import shown
from loratory.errors import InvalidAdapter

MAX_PATTERN = 4096
"""Characters that an expression may have."""

MAX_WORK = 2_000_000
"""Steps that matching may take for one adapter, about a second; a 70B model with a rank a module takes 160,000."""

_PLAIN = re.compile(r"\^?(?:[\w.-]|\\\.)+\Z", re.ASCII)
_Node = tuple[Any, Any]


class Patterns:
    """Matches as Python's ``re`` does, without backtracking; the steps of all matches together are bounded.

    Back references, look-behind, inline flags and atomic groups are refused. Texts are ASCII, without line breaks.
    Raises `InvalidAdapter`.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._work = 0
        self._parsed: dict[str, list[_Node]] = {}
        self._plain: dict[str, re.Pattern[str]] = {}

    def whole(self, pattern: str, text: str) -> bool:
        """Whether ``re.fullmatch(pattern, text)`` matches."""
        return bool(self._ends(pattern, text) >> len(text))

    def begins(self, pattern: str, text: str) -> bool:
        """Whether ``re.match(pattern, text)`` matches."""
        return self._ends(pattern, text) != 0

    def key(self, keys: Iterable[str], text: str) -> str | None:
        """The first of ``keys`` that PEFT applies to module ``text``: a suffix of its path, or an expression.

        The rule of peft/utils/other.py, ``get_pattern_key`` (0.21): ``re.match(rf"(.*\\.)?({key})$", text)``.
        """
        for key in keys:
            pattern = rf"(.*\.)?({key})$"
            if _PLAIN.match(key):
                # Without a repetition or a choice inside, re makes one attempt for each dot of the text.
                self._spend(1)
                if len(key) - key.count("\\") - key.count("^") > len(text):
                    continue
                if key not in self._plain:
                    self._spend(len(key))
                    self._plain[key] = re.compile(pattern)
                if self._plain[key].match(text):
                    return key
            elif self.begins(pattern, text):
                return key
        return None

    def _ends(self, pattern: str, text: str) -> int:
        """Positions, as bits, where a match that begins at the start of the text can end."""
        self._spend(len(text))
        if pattern not in self._parsed:
            # A parsed character takes some hundred bytes of memory, so parsing counts as work.
            self._spend(32 * len(pattern))
            self._parsed[pattern] = self._parse(pattern)
        try:
            return _Run(text, self._spend, lambda what: self._refused(pattern, what)).sequence(self._parsed[pattern], 1)
        except RecursionError:
            raise self._refused(pattern, "is nested too deeply") from None

    def _parse(self, pattern: str) -> list[_Node]:
        if len(pattern) > MAX_PATTERN:
            raise self._refused(pattern, f"is longer than {MAX_PATTERN} characters")
        try:
            parsed: Any = import_module("re._parser").parse(pattern)
        except (re.error, RecursionError, OverflowError, Warning) as error:
            raise self._refused(pattern, f"is no regular expression ({error})") from None
        if parsed.state.flags != re.UNICODE.value:
            raise self._refused(pattern, "sets flags")
        return list(parsed)

    def _spend(self, steps: int) -> None:
        self._work += steps
        if self._work > MAX_WORK:
            raise InvalidAdapter(f"{self._where} has patterns that take too long to match: name the modules in a list")

    def _refused(self, pattern: str, what: str) -> InvalidAdapter:
        return InvalidAdapter(
            f"{self._where} has the pattern {shown(pattern)}, which {what}: name the modules in a list"
        )


class _Run:
    """One expression on one text; every method maps the positions where a part may begin to those where it may end."""

    def __init__(self, text: str, spend: Callable[[int], None], refused: Callable[[str], InvalidAdapter]) -> None:
        self.text = text
        self.spend = spend
        self.refused = refused
        self.at: dict[str, int] = {}
        for position, character in enumerate(text):
            self.at[character] = self.at.get(character, 0) | 1 << position

    def sequence(self, nodes: Iterable[_Node], starts: int) -> int:
        for op, value in nodes:
            if not starts:
                return 0
            self.spend(1)
            starts = self._node(str(op), value, starts)
        return starts

    def _node(self, op: str, value: Any, starts: int) -> int:
        if op == "LITERAL":
            return (starts & self.at.get(chr(value), 0)) << 1
        if op == "NOT_LITERAL":
            return (starts & ~self.at.get(chr(value), 0) & self._inside) << 1
        if op == "ANY":
            return (starts & self._inside) << 1
        if op == "IN":
            return (starts & self._set(value)) << 1
        if op == "BRANCH":
            ends = 0
            for branch in value[1]:
                ends |= self.sequence(branch, starts)
            return ends
        if op == "SUBPATTERN":
            _, add, remove, body = value
            if add or remove:
                raise self.refused("sets flags")
            return self.sequence(body, starts)
        if op in ("MAX_REPEAT", "MIN_REPEAT"):
            return self._repeat(value[0], value[1], value[2], starts)
        if op == "AT":
            return starts & self._anchor(str(value))
        if op in ("ASSERT", "ASSERT_NOT") and value[0] == 1:
            return self._look_ahead(value[1], starts, op == "ASSERT")
        raise self.refused(f"uses {op.lower().replace('_', ' ')}, which is not supported")

    @property
    def _inside(self) -> int:
        return (1 << len(self.text)) - 1

    def _repeat(self, least: int, most: int, body: list[_Node], starts: int) -> int:
        # A round moves each position on or leaves it, so nothing is new after as many rounds as there are positions.
        rounds = len(self.text) + 1
        for _ in range(min(least, rounds)):
            starts = self.sequence(body, starts)
        ends = new = starts
        for _ in range(min(most - least, rounds)):
            new = self.sequence(body, new) & ~ends
            if not new:
                break
            ends |= new
        return ends

    def _look_ahead(self, body: list[_Node], starts: int, wanted: bool) -> int:
        # One position at a time: from the ends of all together the starts that matched cannot be told apart.
        kept = 0
        for position in range(len(self.text) + 1):
            bit = 1 << position
            if starts & bit and bool(self.sequence(body, bit)) is wanted:
                kept |= bit
        return kept

    def _anchor(self, where: str) -> int:
        end = 1 << len(self.text)
        if where in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
            return 1
        if where in ("AT_END", "AT_END_STRING"):
            return end
        word = [False, *(character.isalnum() or character == "_" for character in self.text), False]
        boundary = sum(1 << i for i in range(len(self.text) + 1) if word[i] != word[i + 1])
        if where == "AT_BOUNDARY":
            return boundary
        # Before Python 3.14 \B does not match an empty text, but no module has an empty path.
        return ~boundary & (self._inside | end)

    def _set(self, items: list[_Node]) -> int:
        self.spend(len(items))
        found = 0
        for character, positions in self.at.items():
            if any(_in(str(op), value, character) for op, value in items):
                found |= positions
        negated = bool(items) and str(items[0][0]) == "NEGATE"
        return self._inside & ~found if negated else found


def _in(op: str, value: Any, character: str) -> bool:
    if op == "LITERAL":
        return bool(ord(character) == value)
    if op == "RANGE":
        return bool(value[0] <= ord(character) <= value[1])
    if op == "CATEGORY":
        name = str(value)
        kind = name.rsplit("_", 1)[-1]
        in_kind = {
            "DIGIT": character.isdecimal(),
            "SPACE": character.isspace(),
            "WORD": character.isalnum() or character == "_",
        }
        return in_kind[kind] is ("_NOT_" not in name)
    return False
