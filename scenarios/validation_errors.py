"""Validation errors: pydantic's errors in a scenario as one line that a user can act on."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from loratory.errors import InputError, shortened
from loratory.scenarios.document import Document, Path, dotted
from loratory.scenarios.error_words import meant, shown, words
from loratory.scenarios.schema_lookup import description_at, form_at, is_one_of, key_hint, keys_at

_VERBS = frozenset(
    {"is", "are", "has", "have", "should", "cannot", "does", "names", "needs", "repeats", "sends", "ends"}
)
"""First words of texts whose subject is the key before them; any other text follows a colon."""


def explain(error: ValidationError, document: Document) -> InputError:
    """The first of the errors as ``file:line: key is wrong: remedy``, and how many more there are.

    Unknown keys come first, because a mistyped key often makes another one look missing.
    """
    found = [(_path(item, document.raw), item) for item in error.errors(include_url=False)]
    found.sort(key=lambda pair: (pair[1]["type"] != "extra_forbidden", _line(document.place(pair[0]))))
    path, item = found[0]
    text = _sentence(item, path, document.raw)
    if item["type"] == "value_error" and (named := _named_key(text, path, document)) != path:
        path, text = named, text.partition(" ")[2]
    more = len({dotted(p) for p, _ in found}) - 1
    tail = f" (and {more} more problem{'s' * (more > 1)})" if more > 0 else ""
    place, key = shortened(document.place(path), 160), shortened(dotted(path), 100)
    join = " " if text.partition(" ")[0] in _VERBS else ": "
    return InputError(shortened(f"{place}: {key}{join if key else ''}{text}{tail}"))


def _path(item: ErrorDetails, raw: Any) -> Path:
    """The key path of an error: its location without the names of union branches and of implied keys."""
    path: list[str | int] = []
    here: Any = raw
    loc = item["loc"]
    for index, part in enumerate(loc):
        last = index == len(loc) - 1
        if isinstance(here, dict):
            if not last and part == here.get("kind") and isinstance(here.get(part), str):
                continue  # the name of a union's branch, and also a key: cost.profile
            key = next((k for k in here if k == part or str(k) == str(part)), None)
            if key is not None or (last and item["type"] in ("missing", "extra_forbidden")):
                path.append(part if key is None else key)
                here = here.get(key)
        elif isinstance(here, list) and isinstance(part, int):
            path.append(part)
            here = here[part] if part < len(here) else None
    return (*path, *item.get("ctx", {}).get("path", ()))


def _named_key(text: str, path: Path, document: Document) -> Path:
    """The key that a message of `EngineConfig` begins with, if the file has it: its line is the one to change."""
    below = (*path, text.split(" ", 1)[0])
    return below if below in document.where else path


def _line(place: str) -> tuple[int, str]:
    number = place.rpartition(":")[2]
    return (int(number), "") if number.isdigit() else (0, place)


def _sentence(item: ErrorDetails, path: Path, raw: Any) -> str:
    """What is wrong with the key at ``path``, where the scenario's schema can say more than `words`."""
    kind = item["type"]
    if kind == "extra_forbidden":
        return f"unknown key; {key_hint(str(path[-1]), keys_at(path[:-1], raw) or [])}"
    if kind == "missing":
        if isinstance(path[-1], int):
            return "is missing: give [lo, hi]"
        meaning = description_at(path, raw)
        return "is missing: add it" + (f" ({meaning})" if meaning else "")
    if kind == "model_type" and is_one_of(path, raw):
        keys = keys_at(path, raw) or []
        given = f"{shown(item['input'])}{meant(item['input'], keys)}"
        return f"should be one of {', '.join(keys)}, such as {{{keys[0]}: ...}}, not {given}"
    if kind in ("model_type", "model_attributes_type") and (form := form_at(path, raw)):
        return f"should be a mapping of keys to values, such as {form}, not {shown(item['input'])}"
    return words(item)
