"""Swept values: ``--set engine.max_loras=8,16,32`` read as one key with several values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from loratory.errors import InputError, shortened

_TEXTS = ("name", "description", "cost.source")
"""Keys whose value is any text: a comma in it is a comma."""

_SPECS = frozenset({"cluster.router", "cluster.placement", "policies"})
"""Keys whose values are specs, with parameters between commas: ``lora_affinity:queue=2,kv=0``."""

_PARAMETER = re.compile(r"\s*[A-Za-z_]\w*\s*=")
"""How a parameter begins, and no spec."""

_LISTS = {"seeds": "seeds=[0,1,2]", "policies": "policies=[fifo,affinity]"}
"""Keys whose values every variant runs anyway, and how to give several of them."""


@dataclass(frozen=True, slots=True)
class Axis:
    """A key of the scenario with the values that a sweep gives it, as they were written."""

    key: str
    values: tuple[str, ...]

    @property
    def setting(self) -> str:
        """``--set engine.max_loras=8,16,32``, for messages."""
        return _label(f"{self.key}={','.join(self.values)}")


def axes_of(settings: Sequence[str]) -> list[Axis | str]:
    """Each setting of ``--set``, in order: an `Axis` where it has several values, else the setting as it was given.

    A value is split at commas outside of brackets, braces and quotes, but not where a parameter of a spec follows:
    ``cluster.router=lora_affinity:queue=2,kv=0`` is one router. Raises `InputError` for an empty part, a value
    that is repeated, a swept key that a later setting replaces, and sweeps of what every variant runs anyway.
    """
    found = [_axis(setting) for setting in settings]
    for place, one in enumerate(found):
        for later in found[place + 1 :]:
            if isinstance(one, Axis) or isinstance(later, Axis):
                _refuse_replaced(one, later)
    return found


def is_sweep(settings: Sequence[str]) -> bool:
    """Whether a setting of ``--set`` has several values. Raises `InputError` as `axes_of` does."""
    return any(isinstance(each, Axis) for each in axes_of(settings))


def split_values(text: str) -> list[str]:
    """``text`` split at its commas outside of brackets, braces and quotes; whole where these do not match.

    A quote opens only where a YAML value begins, so the apostrophe of ``don't`` is a letter.

    >>> split_values("8,{uniform: [1, 2]},'a, b'")
    ['8', '{uniform: [1, 2]}', "'a, b'"]
    """
    parts, begin, place = [], 0, 0
    open_now: list[str] = []
    fresh = True  # whether a value may begin here
    while place < len(text):
        letter = text[place]
        if fresh and letter in "'\"":
            place = _end_of_quote(text, place)
            if place < 0:
                return [text]
            fresh = False
            continue
        if letter in "[{":
            open_now.append("]" if letter == "[" else "}")
        elif letter in "]}" and (not open_now or open_now.pop() != letter):
            return [text]
        elif letter == "," and not open_now:
            parts.append(text[begin:place])
            begin = place + 1
        fresh = letter in ",[{" or (letter.isspace() and (fresh or text[place - 1] == ":"))
        place += 1
    return [text] if open_now else [*parts, text[begin:]]


def _end_of_quote(text: str, place: int) -> int:
    """The place behind the quoted text that begins at ``place``, -1 if it does not end."""
    quote = text[place]
    place += 1
    while place < len(text):
        if text[place] == "\\" and quote == '"':
            place += 1
        elif text[place] == quote:
            if quote == '"' or text[place + 1 : place + 2] != quote:
                return place + 1
            place += 1
        place += 1
    return -1


def plain(text: str) -> Any:
    """A value as YAML reads it; the text itself where that is no number, word, list or mapping."""
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):
        return text
    return value if value is None or isinstance(value, bool | int | float | str | list | dict) else text


def _axis(setting: str) -> Axis | str:
    key, equals, text = setting.partition("=")
    key = key.strip()
    if not equals or not key or key in _TEXTS:
        return setting
    values = split_values(text)
    if key in _SPECS:
        values = _whole_specs(values)
    if len(values) == 1:
        return setting
    label, top = _label(setting), key.partition(".")[0]
    if top in _LISTS:
        raise InputError(f"{label} would sweep {top}, but every variant runs all of them: give a list, {_LISTS[top]}")
    values = [value.strip() for value in values]
    if not all(values):
        raise InputError(f"{label} has an empty value between commas: remove a comma, or write null for no value")
    if repeated := [value for place, value in enumerate(values) if _among(value, values[:place])]:
        raise InputError(f"{label} has {shortened(repeated[0], 60)} twice: keep it once")
    return Axis(key, tuple(values))


def _whole_specs(parts: Sequence[str]) -> list[str]:
    """Specs out of the parts between commas: a parameter belongs to the spec before it, where that has parameters."""
    specs: list[str] = []
    for part in parts:
        if specs and ":" in specs[-1] and _PARAMETER.match(part):
            specs[-1] += f",{part}"
        else:
            specs.append(part)
    return specs


def _among(value: str, others: Sequence[str]) -> bool:
    """Whether another text means the same value; true is not 1."""
    mine = plain(value)
    return any(mine == other and isinstance(mine, bool) == isinstance(other, bool) for other in map(plain, others))


def _refuse_replaced(one: Axis | str, later: Axis | str) -> None:
    first, second = (each.key if isinstance(each, Axis) else each.partition("=")[0].strip() for each in (one, later))
    if first == second or (isinstance(one, Axis) and first.startswith(f"{second}.")):
        labels = [each.setting if isinstance(each, Axis) else _label(each) for each in (one, later)]
        raise InputError(f"{labels[1]} replaces {labels[0]}: give one of them, with all values")


def _label(setting: str) -> str:
    return shortened(f"--set {setting}", 120)
