"""Reference: tables of every key a scenario may have, made from the schema for docs/scenarios.md."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from loratory.scenarios.schema import Scenario
from loratory.scenarios.schema_types import OneOf

_BEGIN, _END = "<!-- keys: made by python -m loratory.scenarios.reference -->", "<!-- end of keys -->"


def sections() -> dict[str, type[BaseModel]]:
    """Every section by the path it has in a scenario, in the order of the schema; a section used twice appears once."""
    found: dict[str, type[BaseModel]] = {}
    for path, model in _walk("", Scenario):
        if model not in found.values():
            found[path] = model
    return found


def tables() -> str:
    """The tables, as Markdown between two marks."""
    parts = [_BEGIN]
    for path, model in sections().items():
        parts.append(f"\n### {path or 'the scenario'}\n")
        parts.append(" ".join((model.__doc__ or "").replace("``", "`").split()) + "\n")
        parts.append("| key | default | meaning |\n|---|---|---|")
        parts.extend(_row(key, field, issubclass(model, OneOf)) for key, field in model.model_fields.items())
    return "\n".join([*parts, "", _END])


def _walk(path: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    yield path, model
    for key, field in model.model_fields.items():
        for kind, below in _models(field.annotation):
            yield from _walk(f"{path}.{key}{kind}".lstrip("."), below)


def _models(annotation: Any) -> list[tuple[str, type[BaseModel]]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        kinds = get_args(annotation.model_fields["kind"].annotation) if "kind" in annotation.model_fields else ()
        return [("".join(f" (kind: {kind})" for kind in kinds), annotation)]
    origin = getattr(annotation, "__origin__", None)
    kind = "[]" if origin is list else ""
    return [(kind + inner, model) for arg in get_args(annotation) for inner, model in _models(arg)]


def _row(key: str, field: FieldInfo, alternative: bool) -> str:
    default: Any = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        shown = "required"
    elif alternative or default in (None, "", {}) or isinstance(default, BaseModel):
        shown = ""
    else:
        shown = f"`{default}`".replace("'", "")
    return f"| `{field.alias or key}` | {shown} | {(field.description or 'upper limit, s').replace('|', '/')} |"


def main(page: str) -> None:
    """Put the tables into a page, between the marks."""
    path = Path(page)
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(f"{_BEGIN}.*{_END}", lambda _: tables(), text, flags=re.S), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
