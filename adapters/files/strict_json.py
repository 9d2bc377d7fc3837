"""parse_object: parses a JSON object from an untrusted file."""

from __future__ import annotations

import json
import re

from loratory.errors import InvalidAdapter
from loratory.git_lfs import LFS_POINTER, lfs_pointer

MAX_CONFIG_BYTES = 1 << 20
"""A configuration larger than this is refused; PEFT's largest, with one rank pattern a module, takes some 100 kB."""

MAX_DEPTH = 32
"""Levels of nesting that a configuration may have; PEFT's has 3."""

_LINK = re.compile(rb"(?:\.\./)+[^\s{}]{1,1000}")
"""What git writes instead of a symbolic link where it may not create one: the path that the link leads to."""


def parse_object(data: bytes, where: str, limit: int) -> dict[str, object]:
    """The object in ``data``, which must be UTF-8 JSON of at most ``limit`` bytes with no key twice.

    ``where`` is the name of the file in messages. Raises `InvalidAdapter`.
    """
    if lfs_pointer(data):
        raise InvalidAdapter(f"{where} {LFS_POINTER}")
    if link := _LINK.fullmatch(data):
        raise InvalidAdapter(
            f"{where} holds {shown(link[0].decode(errors='replace'))}, the path of a symbolic link, not the file: "
            "copy the folder again with its links, or with cp -L"
        )
    if len(data) > limit:
        raise InvalidAdapter(f"{where} is larger than {limit} bytes: remove what PEFT did not write")
    if not data.strip():
        raise InvalidAdapter(f"{where} is empty: copy it again from where the adapter was saved")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidAdapter(f"{where} is not UTF-8 (byte {error.start}): save it as UTF-8 text") from None

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(items)
        if len(found) != len(items):
            seen: set[str] = set()
            twice = next(key for key, _ in items if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise InvalidAdapter(f"{where} has the key {shown(twice)} twice: keep one of them")
        return found

    def constant(name: str) -> object:
        raise InvalidAdapter(f"{where} holds {name}, which is not a JSON number: write a finite number")

    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
        depth = _depth(value)
    except RecursionError:
        raise InvalidAdapter(f"{where} is nested too deeply: at most {MAX_DEPTH} levels are read, flatten it") from None
    except json.JSONDecodeError as error:
        raise InvalidAdapter(
            f"{where} is not valid JSON (line {error.lineno}, column {error.colno}: {error.msg}): save the file again"
        ) from None
    except ValueError:
        raise InvalidAdapter(f"{where} holds a number with thousands of digits: write the number meant") from None
    if depth > MAX_DEPTH:
        raise InvalidAdapter(f"{where} is nested {depth} levels deep: at most {MAX_DEPTH} are read, flatten it")
    if not isinstance(value, dict):
        raise InvalidAdapter(f"{where} holds a JSON {_kind(value)}: it must hold an object of keys and values")
    return value


def shown(value: object) -> str:
    """``value`` as a message shows it: on one line and of bounded length."""
    text = ascii(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else f"{text[:70]}... ({len(text)} characters)"


def _depth(value: object) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    return depth


def _kind(value: object) -> str:
    return {list: "array", str: "string", bool: "boolean", type(None): "null"}.get(type(value), "number")
