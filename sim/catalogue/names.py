"""unknown_name: the error for a name that is not in the catalogue, with the nearest names."""

from __future__ import annotations

from collections.abc import Iterable

from loratory.errors import InputError, nearest, several, shortened


def unknown_name(what: str, name: object, known: Iterable[str], otherwise: str = "") -> InputError:
    """An `InputError` that calls ``what`` unknown and offers the nearest of ``known``, or all, and ``otherwise``."""
    options = list(known)
    name = shortened(str(name), 100)
    given = name.lower()
    near = nearest(given, options, 3)  # h100 means h100-80gb rather than h200
    if near:
        hint = f"did you mean {' or '.join(near)}?" + (f" If not, {otherwise}" if otherwise else "")
    else:
        hint = f"use one of {several(options, 12)}" + (f", or {otherwise}" if otherwise else "")
    return InputError(f"unknown {what} {name!r}: {hint}")
