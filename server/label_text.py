"""Label text: a name as the value of a metric's label."""

from __future__ import annotations

_LONGEST = 120


def label_text(name: str) -> str:
    """The name itself if it is of reasonable length; else its beginning. What UTF-8 cannot encode becomes "?".

    Names that come out equal are counted together, because a series may appear only once.

    >>> label_text("sql@2")
    'sql@2'
    """
    if len(name) <= _LONGEST and name.isascii():
        return name
    short = name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
    return short.encode("utf-8", "replace").decode()
