"""error_words: one of pydantic's errors as words that follow the name of the key, for any model."""

from __future__ import annotations

from typing import Any

from pydantic_core import ErrorDetails

from loratory.errors import did_you_mean, shortened

_LIMITS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}
_WANTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
}


def words(item: ErrorDetails) -> str:
    """What pydantic found wrong, to follow the name of the key."""
    kind, context, given = item["type"], item.get("ctx", {}), shown(item["input"])
    if kind == "missing":
        return "is missing: add it"
    if kind in _LIMITS:
        key, limited = _LIMITS[kind]
        limit = context[key]
        return f"should be {limited} {f'{limit:g}' if isinstance(limit, float) else limit}, not {given}"
    if kind in _WANTED:
        return f"should be {_WANTED[kind]}, not {given}"
    if kind == "literal_error":
        choices = str(context["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        return f"should be one of {', '.join(choices)}, not {given}{meant(item['input'], choices)}"
    if kind == "union_tag_invalid":
        choices = str(context["expected_tags"]).replace("'", "").split(", ")
        tag = str(context["tag"])
        hint = did_you_mean(tag, choices, "correct it")
        return f"has kind {shortened(tag, 60)!r}, which is not one of {', '.join(choices)}; {hint}"
    if kind == "union_tag_not_found":
        return "needs kind: roofline, kernels, linear or profile"
    if kind in ("too_short", "string_too_short"):
        return "is empty: give at least one" if kind == "too_short" else "is empty: write something"
    if kind == "too_long":
        return f"has more than {context.get('max_length')} values: remove some"
    if kind == "invalid_key":
        return "has a key that is not text: put it in quotes"
    message = str(item["msg"]).removeprefix("Value error, ")
    return message[:1].lower() + message[1:] if kind not in ("wrong", "value_error") else message


def meant(given: Any, choices: list[str]) -> str:
    """``; did you mean 'x'?``, empty where no choice is like what was given."""
    hint = did_you_mean(given, choices, "") if isinstance(given, str) else ""
    return f"; {hint}" if hint else ""


def shown(value: Any) -> str:
    """A value as errors quote it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
