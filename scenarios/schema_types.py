"""Schema types: Section, the pydantic base of every part of a scenario, and the field types that they share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationInfo,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from loratory.errors import shortened


class Section(BaseModel):
    """A mapping in a scenario file: unknown keys and non-finite numbers are refused; its values cannot be changed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class OneOf(Section):
    """A mapping with exactly one of its keys: ``{poisson: 12}``. `kind` is the key, `value` is what it holds.

    ``shorthand`` lets a plain number, text or list stand for one key: ``512`` for ``{fixed: 512}``. It maps the Python
    types to the key they mean; a text stands for the key of that name, set to true.
    """

    shorthand: ClassVar[Mapping[type, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, data: Any) -> Any:
        if isinstance(data, bool):
            return data
        if isinstance(data, str) and (field := cls.model_fields.get(data)) is not None:
            if cls.shorthand.get(str) == "" and field.annotation == (bool | None):
                return {data: True}
            example = "1.0" if "float" in str(field.annotation) else "..."
            meaning = f" ({field.description})" if field.description else ""
            raise wrong(f"is {data} without a value: write {{{data}: {example}}}{meaning}")
        if float in cls.shorthand and is_number(data):
            return {cls.shorthand[float]: data}
        for kind, key in cls.shorthand.items():
            if key and isinstance(data, kind):
                return {key: data}
        return data

    @model_validator(mode="after")
    def _exactly_one(self) -> OneOf:
        given = [key for key in type(self).model_fields if getattr(self, key) is not None]
        if len(given) != 1:
            known = ", ".join(type(self).model_fields)
            raise PydanticCustomError(
                "one_of", "{text}", {"text": f"needs exactly one of {known}; it has {' and '.join(given) or 'none'}"}
            )
        return self

    @property
    def kind(self) -> str:
        """The one key that is given."""
        return next(key for key in type(self).model_fields if getattr(self, key) is not None)

    @property
    def value(self) -> Any:
        """The value of the one key that is given."""
        return getattr(self, self.kind)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core_schema))
        schema.update({"minProperties": 1, "maxProperties": 1})
        for key in schema.get("properties", {}).values():
            key.pop("default", None)
        if not cls.shorthand:
            return schema
        names = {int: "number", float: "number", list: "array", tuple: "array"}
        types = sorted({names[kind] for kind in cls.shorthand if kind in names})
        words = [{"enum": [k for k, f in cls.model_fields.items() if f.annotation == (bool | None)]}]
        words = words if cls.shorthand.get(str) == "" else []
        wide = {"anyOf": [dict(schema), *({"type": kind} for kind in types), *words]}
        wide["description"] = schema.get("description", "")
        schema.clear()
        schema.update(wide)
        return schema


def wrong(text: str, *path: str | int) -> PydanticCustomError:
    """An error for a validator to raise: ``text`` as it is, at ``path`` below the section that is being checked."""
    return PydanticCustomError("wrong", "{text}", {"text": text, "path": list(path)})


def is_number(value: Any) -> bool:
    """Whether a value is a text that holds a number, as in quotes, or `1e3`, which YAML reads as a text."""
    try:
        return isinstance(value, str) and value.strip()[:1] in tuple("+-.0123456789") and isfinite(float(value))
    except ValueError:
        return False


def no_bool(value: Any) -> Any:
    """Refuses true and false instead of a number; pydantic would read them as 1 and 0."""
    if isinstance(value, bool):
        raise PydanticCustomError("not_a_number", "{text}", {"text": f"should be a number, not {str(value).lower()}"})
    return value


def _find(value: str, folders: tuple[Path, ...]) -> str:
    """The absolute path of a file named in a scenario, relative to one of ``folders``; refuses a missing file."""
    if value.startswith("~"):
        value = os.path.expanduser(value)
    for folder in folders:
        found = os.path.abspath(folder / value)
        if os.path.isfile(found) or os.path.isdir(found):
            return found
        if os.path.exists(found):
            raise wrong(f"is {shortened(value, 150)!r}, which is a device or a pipe: name a file")
    places = " or ".join(str(folder) for folder in folders)
    raise wrong(f"names no file {value!r} in {places}: give its path relative to the scenario file, or an absolute one")


def beside_the_scenario(value: str, info: ValidationInfo) -> str:
    """A spec with the absolute path of its file where that is not relative to the working folder."""
    head, colon, rest = value.partition(":")
    if not head.endswith(".py") or os.path.isabs(head) or os.path.isfile(head):
        return value
    for folder in _folders(info):
        if os.path.isfile(folder / head):
            return f"{os.path.abspath(folder / head)}{colon}{rest}"
    return value


def _folders(info: ValidationInfo) -> tuple[Path, ...]:
    return tuple((info.context or {}).get("folders", ()))


def existing(value: str, info: ValidationInfo) -> str:
    """A file's absolute path, if the folders that it is relative to are known; refuses a missing file."""
    folders = _folders(info)
    return _find(value, folders) if folders else value


def _resolve_if_path(value: str, info: ValidationInfo) -> str:
    folders = _folders(info)
    looks_like_path = value.endswith((".json", ".yaml", ".yml", ".parquet")) or "/" in value or os.sep in value
    if not folders:
        return value
    if not looks_like_path:
        # A bare name is a catalogue name, unless a model's folder has that name.
        return next((os.path.abspath(f / value) for f in folders if (f / value / "config.json").is_file()), value)
    if not value.endswith((".json", ".yaml", ".yml", ".parquet")):
        # A Hugging Face name such as meta-llama/Llama-3.1-8B looks like a path as well: its reader decides.
        return next((os.path.abspath(f / value) for f in folders if (f / value).exists()), value)
    return _find(value, folders)


FileRef = Annotated[str, Field(min_length=1), AfterValidator(existing)]
"""A file's path, relative to the scenario file or else to the working folder; absolute once the scenario is loaded."""

NameOrFile = Annotated[str, Field(min_length=1), AfterValidator(_resolve_if_path)]
"""A catalogue name, or a file's path."""


def _as_spec(value: Any) -> Any:
    """Refuses a mapping in place of a spec, and says how its parameters are written."""
    if not isinstance(value, Mapping):
        return value
    name, rest = value.get("name", "NAME"), [f"{key}={item}" for key, item in value.items() if key != "name"]
    spec = f"{name}:{','.join(rest)}" if rest else str(name)
    raise wrong(f'should be text, not a mapping: write "{shortened(spec, 120)}"')


GuestSpec = Annotated[str, Field(min_length=1), BeforeValidator(_as_spec), AfterValidator(beside_the_scenario)]
"""A policy's or router's name, or ``path/file.py:Class``: a file that is not in the working folder may be beside the
scenario file."""

Count = Annotated[int, Field(ge=1), BeforeValidator(no_bool)]
Index = Annotated[int, Field(ge=0), BeforeValidator(no_bool)]
Positive = Annotated[float, Field(gt=0), BeforeValidator(no_bool)]
Period = Annotated[float, Field(ge=1e-6), BeforeValidator(no_bool)]
"""Seconds after which something happens again: long enough to advance the clock of any run."""

NotNegative = Annotated[float, Field(ge=0), BeforeValidator(no_bool)]
Share = Annotated[float, Field(ge=0, le=1), BeforeValidator(no_bool)]
Name = Annotated[str, Field(min_length=1)]
