"""read_object: reads the JSON object in one of a base model's files, such as config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loratory.errors import InputError, shortened
from loratory.git_lfs import HEAD_BYTES, LFS_POINTER, lfs_pointer

MAX_BYTES = 64 << 20
"""A larger file is refused; the index of the largest checkpoints has some 20 MB."""


def read_object(path: Path) -> dict[str, Any]:
    """The object in ``path``: UTF-8 JSON, a byte order mark allowed, no key twice.

    Raises `InputError` for a file that cannot be read, a Git LFS pointer, and one that holds no JSON object. Numbers
    are as Python's json module reads them, so one may be NaN: callers check those they use.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or shortened(str(error), 80)
        raise InputError(f"{path} cannot be read ({why}): check the path and its permissions") from None
    if lfs_pointer(data[:HEAD_BYTES]):
        raise InputError(f"{path} {LFS_POINTER}")
    if len(data) > MAX_BYTES:
        raise InputError(f"{path} is larger than {MAX_BYTES >> 20} MiB: give the file of a Hugging Face model")
    if not data.strip():
        raise InputError(f"{path} is empty: copy the file again")
    if data[:4] == b"GGUF":
        raise InputError(f"{path} is a GGUF file: give the config.json of the unquantised checkpoint")
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_once)
    except _RepeatedKeyError as error:
        raise InputError(f"{path} has the key {error.args[0]!r} twice: keep one of them") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8 text") from None
    except json.JSONDecodeError as error:
        comment = error.pos < len(error.doc) and error.doc[error.pos] in "/#"
        remedy = "JSON has no comments: remove it" if comment else "copy the file again"
        raise InputError(
            f"{path} cannot be read as JSON (line {error.lineno}, column {error.colno}: {error.msg}): {remedy}"
        ) from None
    except (ValueError, RecursionError):
        raise InputError(
            f"{path} cannot be read as JSON (a number or a nesting without end): copy the file again"
        ) from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a JSON object: give a Hugging Face config.json")
    return value


class _RepeatedKeyError(Exception):
    """A key that an object has twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _RepeatedKeyError(shortened(key, 80))
            seen.add(key)
    return mapping
