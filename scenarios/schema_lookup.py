"""Schema lookup: which keys a scenario may have at a key path, found from the pydantic models themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from loratory.errors import did_you_mean, several
from loratory.scenarios.schema import Scenario
from loratory.scenarios.schema_types import OneOf


def fields_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """A model's fields by the keys that a scenario has for them."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def models_at(path: Sequence[str | int], raw: Any) -> list[type[BaseModel]]:
    """The models that can stand at ``path``; where there are several, ``raw``'s ``kind`` chooses."""
    models: list[type[BaseModel]] = [Scenario]
    plain: list[Any] = []
    here: Any = raw
    for part in path:
        here = _below(here, part)
        annotations = [fields_of(m)[str(part)].annotation for m in models if str(part) in fields_of(m)]
        inside = [element for p in plain for element in _elements(p)]
        plain = [a for a in (*annotations, *inside) if a is not None]
        models = list(dict.fromkeys(m for a in plain for m in _models_in(a)))
        kind = here.get("kind") if isinstance(here, dict) else None
        if kind is not None and len(models) > 1:
            models = [m for m in models if _kinds(m) == (kind,)] or models
    return models


def keys_at(path: Sequence[str | int], raw: Any) -> list[str] | None:
    """The keys that a mapping at ``path`` may have; None if it may have any (adapter names, ranks)."""
    models = models_at(path, raw)
    return list(dict.fromkeys(key for m in models for key in fields_of(m))) if models else None


def is_one_of(path: Sequence[str | int], raw: Any) -> bool:
    """Whether the mapping at ``path`` holds exactly one of its keys."""
    models = models_at(path, raw)
    return bool(models) and all(issubclass(m, OneOf) for m in models)


def form_at(path: Sequence[str | int], raw: Any) -> str:
    """How a mapping at ``path`` is written: ``{first: ..., most: ...}``, with the keys it needs, or else all of a few
    or the first; empty where it may have any keys, or is of several kinds."""
    models = models_at(path, raw)
    if len(models) != 1:
        return ""
    fields = fields_of(models[0])
    shown = [key for key, field in fields.items() if field.is_required()]
    shown = shown or list(fields)[: None if len(fields) <= 3 else 1]
    return f"{{{', '.join(f'{key}: ...' for key in shown)}}}"


ELSEWHERE = {
    "transfers": "tiers, which sets how adapters come from remote storage, disk and host",
    "quantization": "cost.dtype to fp8, or remove it",
    "kv_cache_dtype": "memory.kv_cache_dtype",
    "dtype": "cost.dtype",
    "policy_timeout_s": "the option --policy-timeout of loratory run",
}
"""Keys that users put into another section than the one that has them, such as vLLM's engine arguments."""


def key_hint(word: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?``, the section that has the key, or the known keys."""
    known = list(known)
    if word == "dtype" and "kind" in known:
        return "set memory.dtype: the step times of this kind of cost hold for one dtype"
    if word in ELSEWHERE:
        return f"set {ELSEWHERE[word]}"
    if "adapters" in known and (sections := _sections_with(word)):
        return f"put it in {' or '.join(sections)}"
    return did_you_mean(word, known, f"known keys: {several(known, 10)}")


def _sections_with(word: str) -> list[str]:
    """The sections of a scenario that have a key which was written at the top level."""
    sections = {name: list(_models_in(field.annotation)) for name, field in Scenario.model_fields.items()}
    return [name for name, models in sections.items() if any(word in fields_of(m) for m in models)]


def description_at(path: Sequence[str | int], raw: Any) -> str | None:
    """The schema's field for the key at ``path``."""
    for model in models_at(path[:-1], raw):
        found = fields_of(model).get(str(path[-1]))
        if found is not None and found.description:
            return found.description
    return None


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models directly in an annotation: through unions, Annotated and Optional, not into lists or mappings."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    origin = getattr(annotation, "__origin__", None)
    if origin in (list, dict, tuple):
        return
    for arg in get_args(annotation):
        yield from _models_in(arg)


def _elements(annotation: Any) -> Iterator[Any]:
    """What a list or mapping in an annotation holds, through unions and Annotated."""
    origin, args = getattr(annotation, "__origin__", None), get_args(annotation)
    if origin in (list, dict, tuple):
        yield args[-1]
        return
    for arg in args:
        yield from _elements(arg)


def _below(here: Any, part: str | int) -> Any:
    if isinstance(here, dict):
        return here.get(part)
    if isinstance(here, list) and isinstance(part, int) and part < len(here):
        return here[part]
    return None


def _kinds(model: type[BaseModel]) -> tuple[Any, ...]:
    kind = model.model_fields.get("kind")
    return () if kind is None else get_args(kind.annotation)
