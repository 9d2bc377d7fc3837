"""Replayed: what came of a recorded run that was sent through a fresh engine, decision by decision."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from loratory.errors import InputError


@dataclass(frozen=True, slots=True)
class Replayed:
    """One run, replayed. ``steps``: of the engine; ``decisions``: lines compared; ``differs``: the first line that is
    not the same, from 1, None where all are; ``recorded`` and ``again``: the two texts of that line. ``notes``: what
    may explain it, one sentence each."""

    policy: str
    seed: int
    steps: int
    decisions: int
    differs: int | None
    recorded: str = ""
    again: str = ""
    notes: tuple[str, ...] = ()


def compare_decisions(
    policy: str,
    seed: int,
    steps: int,
    recorded: Sequence[Path],
    again: Path,
    *,
    whole: bool = True,
    notes: Sequence[str] = (),
) -> Replayed:
    """Compare ``recorded``, the parts of a decisions.jsonl, with the one that a replay wrote.

    Unless the recording is ``whole``, it may have more at its end than could be replayed. Raises `InputError` where
    there is none.
    """
    told, lines = tuple(notes), 0
    try:
        if not recorded:
            raise FileNotFoundError
        with ExitStack() as stack:
            first = _lines(stack.enter_context(open(path, encoding="ascii")) for path in recorded)
            second = stack.enter_context(open(again, encoding="ascii"))
            for one, two in zip_longest(first, second, fillvalue=""):
                if not whole and not two:
                    break
                lines += 1
                if one != two:
                    return Replayed(policy, seed, steps, lines, lines, one.rstrip(), two.rstrip(), told)
    except (OSError, UnicodeDecodeError) as error:
        where = recorded[0].parent if recorded else again.parent
        raise InputError(f"{where} has no decisions.jsonl: run again without --no-decisions") from error
    return Replayed(policy, seed, steps, lines, None, notes=told)


def _lines(files: Iterable[Iterable[str]]) -> Iterator[str]:
    for file in files:
        yield from file
