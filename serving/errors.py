"""Errors a user can cause: each is one sentence that names the remedy."""

from __future__ import annotations


class LoratoryError(Exception):
    """Base of every error Loratory raises on purpose; the command line prints its text and no traceback."""

    exit_code = 1


class InputError(LoratoryError):
    """Bad input (a file, a key, a value, an option). The text names the file, the key and the remedy; exit code 2."""

    exit_code = 2


class UnknownAdapter(InputError):  # noqa: N818 - a refusal, as callers read it
    """A name that was never registered; the text names the nearest."""


class RefusedAdapter(InputError):  # noqa: N818 - a refusal, as callers read it
    """The adapter one request asks for cannot be served; that request is refused, and nothing else is touched."""


class InvalidAdapter(InputError):  # noqa: N818 - a refusal, as callers read it
    """An adapter's files are refused. The text names the file, what is wrong with it, and how to mend it."""


class PolicyError(LoratoryError):
    """A scheduling policy raised, or kept yielding actions without end; the run it was driving has stopped."""


class StalledError(LoratoryError):
    """A run cannot go on: work is waiting, nothing is running, and no event can change that."""
