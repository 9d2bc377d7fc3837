"""Class parameters: what a guest's constructor takes, what that means, and the values that a spec's text stands for."""

from __future__ import annotations

import inspect
import types
import typing
from typing import Any, Literal

LARGEST = 1e18
"""The largest number that a spec can give to a parameter: sums and products of such numbers stay finite."""


def own(kind: type) -> dict[str, tuple[Any, Any]]:
    """The parameters of a class's constructor: (type, default)."""
    if kind.__init__ is object.__init__:  # type: ignore[misc]
        return {}
    try:
        hints = typing.get_type_hints(kind.__init__)  # type: ignore[misc]
    except Exception:
        hints = {}
    return {
        name: (hints.get(name) or _type_of(parameter.default), _default(parameter))
        for name, parameter in signature(kind).items()
    }


def _default(parameter: inspect.Parameter) -> Any:
    return None if parameter.default is parameter.empty else parameter.default


def _type_of(default: Any) -> type:
    """The type of a parameter that names none: its default's, or else a text."""
    return type(default) if isinstance(default, bool | int | float) else str


def signature(kind: type) -> dict[str, inspect.Parameter]:
    """The parameters of a class's constructor that a spec can name."""
    if kind.__init__ is object.__init__:  # type: ignore[misc]
        return {}
    found = inspect.signature(kind.__init__)  # type: ignore[misc]
    return {
        name: parameter
        for name, parameter in list(found.parameters.items())[1:]
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def options_of(kind: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def value_of(kind: Any, text: str) -> Any:
    """A text as a value of one type. Raises `ValueError`."""
    if typing.get_origin(kind) is Literal:
        for choice in typing.get_args(kind):
            if text == str(choice):
                return choice
    elif kind is bool:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() in words:
            return words[text.lower()]
    elif kind in (int, float):
        number = kind(text)
        if abs(number) <= LARGEST:  # nor is NaN
            return number
    elif kind is str:
        return text
    raise ValueError(text)


def too_large(kind: Any, text: str) -> bool:
    """Whether a text that stands for no value of a type is a number beyond `LARGEST`."""
    try:
        is_number = text.strip().lstrip("+-")[:1].isdigit()  # infinity, by name, is none
        return is_number and any(option in (int, float) for option in options_of(kind)) and abs(float(text)) > LARGEST
    except ValueError:
        return False


def type_text(kind: Any) -> str:
    """A type as ``loratory policies`` shows it."""
    options = options_of(kind)
    if len(options) > 1:
        return " | ".join(map(type_text, options))
    if typing.get_origin(kind) is Literal:
        return " | ".join(map(str, typing.get_args(kind)))
    return _TYPES.get(kind, str(kind) if typing.get_origin(kind) else str(getattr(kind, "__name__", kind)))


_TYPES = {int: "whole number", float: "number", str: "text", bool: "true | false", types.NoneType: "none"}


def wanted(kind: Any) -> str:
    """What to give for a type, in a sentence."""
    words = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false"}
    words[types.NoneType] = "none"
    known = [words[option] for option in options_of(kind) if option in words]
    if len(known) == len(options_of(kind)):
        return " or ".join(known)
    return f"a value in Python, since {type_text(kind)} cannot be written here"


def meanings_of(listed: str) -> dict[str, str]:
    """``name: meaning`` lines of a docstring's Parameters section; continuation lines are indented further."""
    meanings: dict[str, str] = {}
    name = ""
    for line in listed.splitlines():
        stripped = line.strip()
        if line.startswith("    ") and not line.startswith("     ") and ":" in stripped:
            name, _, text = stripped.partition(":")
            meanings[name] = text.strip()
        elif stripped and name:
            meanings[name] += " " + stripped
    return meanings
