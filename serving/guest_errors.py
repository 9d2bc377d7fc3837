"""Guest errors: an exception out of a guest's code in one sentence: what it was, and in which file and line."""

from __future__ import annotations

import os
import signal
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from traceback import walk_tb
from types import FrameType
from typing import Any, TypeVar

from loratory.errors import InputError, Interruption, PolicyError, PolicyTimeout, shortened

T = TypeVar("T")

_SERVING = Path(__file__).parent
_OURS = (f"{_SERVING}{os.sep}", f"{_SERVING.parent / 'sim'}{os.sep}")
"""Folders whose code calls guests."""

_GUESTS = f"{_SERVING.parent / 'sim' / 'routers'}{os.sep}"
"""In one of them, but called as a guest's is."""

_MAX_CHARACTERS = 200
"""Characters of an exception's own text that an error quotes."""


def guest(policy: str, subject: str, call: Callable[..., T], *arguments: Any, word: str = "policy") -> T:
    """What a policy's own code returns, outside of a run; ``subject`` says which code that is.

    ``word``: what kind of guest it is, "policy" or "router".

    Raises `InputError` when it raises, and `PolicyError` when it exits or does not come back in time.
    """
    try:
        return call(*arguments)
    except InputError:
        raise
    except BaseException as error:
        if is_order(error) or (isinstance(error, PolicyError) and str(error).startswith(("policy ", "router "))):
            raise  # one of another guest inside has been told already
        kind = InputError if isinstance(error, Exception) else PolicyError
        raise kind(shortened(f"{word} {shortened(policy, 100)!r}: {raised(error, subject)}")) from error


def is_order(error: BaseException) -> bool:
    """Whether an exception comes from outside, not from the code it passed through: a signal's, or Python's Ctrl-C."""
    if isinstance(error, Interruption):
        return True
    python_raises_it = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return isinstance(error, KeyboardInterrupt) and python_raises_it


def raised(error: BaseException, subject: str = "it", *, ours: bool = False, characters: int = _MAX_CHARACTERS) -> str:
    """``it raised ValueError: no such key (mine.py:12)``; whatever the exception is, and if it cannot be printed.

    The line is a guest's; with ``ours`` it may be one of the engine's own files. Of the exception's own text, the
    first ``characters`` are quoted.
    """
    if isinstance(error, PolicyTimeout):
        return f"{subject} {error.text}"
    try:
        text = shortened(error.msg if isinstance(error, SyntaxError) else str(error), characters)
    except Exception:
        text = ""
    where = _unread(error) or place(error, ours=ours)
    at = f" ({where})" if where else ""
    if isinstance(error, SystemExit):
        return f"{subject} tried to end the process, with exit code {text or 0}{at}: return instead"
    return f"{subject} raised {type(error).__name__}{': ' if text else ''}{text}{at}"


def unexpected(error: BaseException) -> str:
    """One line for an exception that was not foreseen: what it is, where it comes from, and what to do about it."""
    what = raised(error, "Loratory", ours=True, characters=100)
    return (
        f"{what}, which is a fault of its own: please report it, with the command and the input (LORATORY_TRACEBACK=1 "
        "shows the traceback)"
    )


def place(error: BaseException, *, ours: bool = False) -> str:
    """``mine.py:12``: the innermost line of guest's code an exception came from; empty where it has no traceback."""
    entries = [
        (frame.f_code.co_filename, line)
        for frame, line in walk_tb(error.__traceback__)
        if "__tracebackhide__" not in frame.f_code.co_varnames
    ]
    return innermost(reversed(entries), ours)


def place_of(frame: FrameType | None) -> str:
    """The same for code that is running: the innermost line of a guest on the stack that ends in ``frame``."""
    return innermost((found.f_code.co_filename, found.f_lineno) for found in outward(frame))


def _unread(error: BaseException) -> str:
    """Where Python could not read a file: its traceback ends in the line that imports it."""
    if not isinstance(error, SyntaxError) or not error.filename:
        return ""
    return f"{shortened(_short(error.filename), 100)}:{error.lineno or 1}"


def outward(frame: FrameType | None) -> Iterator[FrameType]:
    """A frame and those that called it, the innermost first."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def innermost(entries: Iterable[tuple[str, int | None]], ours: bool = False) -> str:
    """Of (file, line) from the innermost out, the first of a guest's file, or else the very first."""
    library = tuple(sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib"))
    first = ""
    for file, line in entries:
        text = f"{shortened(_short(file), 100)}:{line}"
        passed = not ours and file.startswith(_OURS) and not file.startswith(_GUESTS)
        if not passed and not file.startswith(("<frozen", *library)):
            return text
        first = first or text
    return first


def _short(file: str) -> str:
    """A path relative to the working folder where it lies below it."""
    try:
        relative = os.path.relpath(file)
    except (ValueError, OSError):
        return file
    return file if relative.startswith("..") or file.startswith("<") else relative
