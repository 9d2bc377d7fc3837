"""The answer to a name nobody knows: one sentence with the nearest ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from loratory.errors import InputError, several, shortened


def unknown_name(what: str, name: object, known: Iterable[str], extra: str = "") -> InputError:
    """An `InputError` that says ``what`` is unknown and offers the nearest of ``known``, or all of them."""
    options = list(known)
    name = shortened(str(name), 100)
    given = name.lower()
    near = difflib.get_close_matches(given, options, n=3, cutoff=0.5)
    near.sort(key=lambda option: not option.startswith(given))  # h100 is nearer to h100-80gb than to h200
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {several(options, 12)}"
    return InputError(f"unknown {what} {name!r}: {hint}{extra}")
