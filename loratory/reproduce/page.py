"""Page: the generated blocks of docs/fidelity.md, one per reproduction.

A block begins with ``<!-- made by: loratory reproduce NAME -->`` and ends with ``<!-- end -->``.
"""

from __future__ import annotations

import re

from loratory.errors import InputError


def block(text: str, name: str) -> str | None:
    """The text between a reproduction's marks; None if the page has none."""
    found = _pattern(name).search(text)
    return None if found is None else found[2]


def with_block(text: str, name: str, content: str) -> str:
    """The page with the block of a reproduction replaced. Raises `InputError` if the page has none."""
    if block(text, name) is None:
        raise InputError(
            f"the page has no block for {name}: write <!-- made by: loratory reproduce {name} --> <!-- end -->"
        )
    return _pattern(name).sub(lambda found: f"{found[1]}\n{content}{found[3]}", text, count=1)


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- made by: loratory reproduce {re.escape(name)} -->)\s*?\n?(.*?)(<!-- end -->)", re.S)
