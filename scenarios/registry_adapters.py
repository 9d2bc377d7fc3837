"""Registry adapters: adapters that exist, from a registry or written out, with their own ids, ranks and sizes."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import parse_qs, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, GetJsonSchemaHandler, ValidationInfo, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from loratory.errors import InputError
from loratory.scenarios.schema_types import Count, Name, Section, existing, no_bool, wrong

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def _place(value: str, info: ValidationInfo) -> str:
    """A URL as it is, a file as its absolute path."""
    if "://" not in value:
        return existing(value, info)
    try:
        parts = urlsplit(value)
        secret = parts.password is not None or "password" in parse_qs(parts.query, keep_blank_values=True)
    except ValueError:
        secret = False  # opening it reports what is wrong
    if secret:
        raise wrong("has a password, which would appear in results: put it in ~/.pgpass or PGPASSWORD instead")
    return value


def _source(value: str, info: ValidationInfo) -> str:
    """The absolute path of a folder beside the scenario; anything else unchanged."""
    folders = (info.context or {}).get("folders", ()) if "://" not in value else ()
    return next((os.path.abspath(folder / value) for folder in folders if (folder / value).exists()), value)


def _digest(value: str) -> str:
    """An adapter's digest, in lower case."""
    if not _DIGEST.fullmatch(value.lower()):
        raise wrong("should be sha256: and 64 hex digits, as loratory adapters show prints it")
    return value.lower()


class RegistrySpec(Section):
    """A registry of `loratory adapters`. A plain text is its url."""

    url: Annotated[Name, AfterValidator(_place)] = Field(
        description="a registry's file, or postgresql://USER@HOST/DATABASE without a password"
    )
    tenant: Name | None = Field(None, description="only adapters of this tenant")
    labels: dict[Name, Name] = Field({}, description="only adapters with all these labels")
    base_model: Name | None = Field(None, description="refuse adapters that were trained on another base model")

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, data: Any) -> Any:
        return {"url": data} if isinstance(data, str) else data

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core_schema))
        wide = {"anyOf": [dict(schema), {"type": "string"}], "description": schema.get("description", "")}
        schema.clear()
        schema.update(wide)
        return schema


class RecordSpec(Section):
    """One adapter that exists, as a registry describes it; a resolved scenario has these instead of the registry."""

    name: Name = Field(description="the name that requests use")
    lora_int_id: Annotated[int, Field(ge=1, lt=2**31), BeforeValidator(no_bool)] = Field(description="its id")
    rank: Count = Field(description="largest LoRA rank of its modules")
    parameters: Count = Field(description="number of parameters; each takes the bytes of the model's dtype")
    source: Annotated[Name, AfterValidator(_source)] = Field(description="the source of its files")
    target_modules: Annotated[list[Name], Field(min_length=1)] = Field(description="the modules that it changes")
    base_model: Name | None = Field(None, description="the base model that it was trained on")
    version: Count | None = Field(None, description="its version under this name in the registry")
    digest: Annotated[Name, AfterValidator(_digest)] | None = Field(
        None,
        description="sha256:... of its content: the executor serves no other; without it, the content it reads first",
    )


def read_records(spec: RegistrySpec, refs: Sequence[str] | None) -> list[RecordSpec]:
    """The records of ``refs`` (``name`` or ``name@version``, which they keep as names), or of every default version
    that fits the filters. Raises what validators raise, at a path below ``adapters``."""
    # Only here, so that scenarios without a registry need no database library.
    from loratory.adapters.record import AdapterRecord
    from loratory.adapters.registry.registry import Registry

    found: dict[str, AdapterRecord]
    if refs is not None and len(set(refs)) < len(refs):
        raise wrong(f"has {next(ref for ref in refs if refs.count(ref) > 1)!r} twice: name it once", "names")
    try:
        with Registry(spec.url, create=False) as registry:
            if refs is None:
                defaults = registry.defaults()
                fitting = registry.list(tenant=spec.tenant, labels=spec.labels)
                found = {each.name: each for each in fitting if defaults.get(each.name) == each.version}
            else:
                found = {ref: registry.resolve(ref) for ref in refs}
            where = registry.where
    except InputError as error:
        raise wrong(str(error), "registry" if refs is None else "names") from None
    if not found:
        fits = " that fits tenant and labels" if spec.tenant is not None or spec.labels else ""
        raise wrong(f"is {where}, which has no adapter{fits}: register some with loratory adapters add", "registry")
    owners: dict[int, str] = {}
    for name, each in found.items():
        if (other := owners.setdefault(each.lora_int_id, name)) != name:
            raise wrong(f"has {other!r} and {name!r}, which are one adapter, {each.ref}: name it once", "names")
        if spec.base_model is not None and each.base_model != spec.base_model:
            raise wrong(
                f"is {spec.base_model!r}, but adapter {name!r} was trained on {each.base_model!r}: correct it, or "
                "choose other adapters by tenant or labels",
                "base_model",
            )
    return [
        RecordSpec(
            name=name,
            lora_int_id=each.lora_int_id,
            rank=each.rank,
            parameters=each.parameters,
            source=each.source,
            target_modules=list(each.target_modules),
            base_model=each.base_model,
            version=each.version,
            digest=each.digest,
        )
        for name, each in found.items()
    ]


def other_base(records: Sequence[RecordSpec], served: Sequence[str]) -> str | None:
    """A note on adapters trained on another base model than the one ``served`` under these names, if there are any.

    The last part of a name or path counts, in either case: ``meta-llama/Llama-3.1-8B`` is ``/models/llama-3.1-8b``.
    """
    names = {_last(name) for name in served}
    others = [each for each in records if each.base_model is not None and _last(each.base_model) not in names]
    if not others:
        return None
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    first = others[0]
    return f"adapters for another base model than {served[0]}: {first.name} (for {first.base_model}){more}"


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].lower()
