"""Errors that a user can cause: each is one sentence with the remedy."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice

LONGEST_MESSAGE = 400
"""Most characters in a message to a user; `several` shortens lists, and `shortened` shortens texts from outside."""


def several(names: Iterable[object], most: int = 5) -> str:
    """``a, b, c``; with more than ``most`` names ``a, b, c, d, e and 12 more``. Reads each name once."""
    every = iter(names)
    first = [str(name) for name in islice(every, most)]
    rest = sum(1 for _ in every)
    return ", ".join(first) + (f" and {rest:,} more" if rest else "")


def shortened(text: str, most: int = LONGEST_MESSAGE) -> str:
    """``text`` on one line; if it has more than ``most`` characters, ``...`` replaces its middle."""
    line = " ".join(text.split())
    if len(line) <= most:
        return line
    tail = (most - 5) // 3
    return f"{line[: most - 5 - tail]} ... {line[-tail:]}"


def a_or_an(noun: str) -> str:
    """The noun with its article.

    >>> a_or_an("object"), a_or_an("str")
    ('an object', 'a str')
    """
    return f"{'an' if noun[:1].lower() in 'aeio' else 'a'} {noun}"


def did_you_mean(word: str, known: Iterable[str], otherwise: str, least: float = 0.5) -> str:
    """``did you mean 'fifo'?`` with the name in ``known`` most like ``word``; ``otherwise`` if none is similar.

    ``least``: how similar it must be, up to 1 for equal ones.
    """
    near = nearest(word, known, least=least)
    return f"did you mean {near[0]!r}?" if near else otherwise


def nearest(word: str, known: Iterable[str], most: int = 1, least: float = 0.5) -> list[str]:
    """The names in ``known`` that ``word`` most likely means: those with its numbers, then those that begin with it."""
    names = list(known)
    near = get_close_matches(word, names, n=most, cutoff=least)
    if any(map(str.isdigit, word)):
        same = [name for name in names if _unpadded(name) == _unpadded(word)]
        near = list(dict.fromkeys([*same, *near]))[:most]
    return sorted(near, key=lambda name: (_unpadded(name) != _unpadded(word), not name.startswith(word)))


def _unpadded(name: str) -> str:
    """A name whose numbers are without zeros in front: ``adapter-7`` for ``adapter-007``."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", name)


def error_line(text: str) -> str:
    """An error as the command line prints it: ``loratory: text``, one line of at most `LONGEST_MESSAGE` characters."""
    return "loratory: " + shortened(text, LONGEST_MESSAGE - len("loratory: "))


class LoratoryError(Exception):
    """Base of every error that Loratory raises on purpose; the command line prints its text without a traceback."""

    exit_code = 1


class InputError(LoratoryError):
    """Bad input (a file, a key, a value, an option). The text names the file, the key and the remedy; exit code 2."""

    exit_code = 2


class UnknownAdapter(InputError):  # noqa: N818 - a refusal, as callers read it
    """A name that was never registered; the text names the nearest."""


class RemovedAdapter(InputError):  # noqa: N818 - a refusal, as callers read it
    """A version that a known name does not have, or has no more; also a known name without versions."""


class RefusedAdapter(InputError):  # noqa: N818 - a refusal, as callers read it
    """The adapter of one request cannot be served; that request is refused, and no other is affected."""


class InvalidAdapter(InputError):  # noqa: N818 - a refusal, as callers read it
    """An adapter's files are refused. The text names the file, what is wrong with it, and the remedy."""


class PolicyError(LoratoryError):
    """A policy or a router raised, or a policy yielded actions without end; its run has stopped."""


class Interruption(KeyboardInterrupt):
    """A signal ordered this process to stop: ``args[0]`` is its number. It is never blamed on a policy."""


class PolicyTimeout(BaseException):
    """Raised inside a guest's code that does not return in time; ``text`` tells where it was, ``name`` whose it is."""

    text = ""
    name = ""


class StalledError(LoratoryError):
    """A run cannot continue: work is waiting, nothing is running, and no event can change that."""
