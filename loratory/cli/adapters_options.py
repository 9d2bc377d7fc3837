"""Adapters options: where the registry and the cache are, and which adapters are accepted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loratory.errors import InputError
from loratory.user_files import (
    CACHE_SIZE_VARIABLE,
    CACHE_VARIABLE,
    DEFAULT_CACHE_SIZE,
    REGISTRY_VARIABLE,
    adapter_cache,
    user_registry,
)

if TYPE_CHECKING:
    from loratory.adapters.fetch import AdapterFetcher
    from loratory.adapters.registry.registry import Registry
    from loratory.models.shape import ModelShape

RegistryPlace = Annotated[
    str | None,
    typer.Option("--registry", envvar=REGISTRY_VARIABLE, help="file or postgresql:// URL; by default your own file"),
]
CacheFolder = Annotated[
    Path | None, typer.Option("--cache", envvar=CACHE_VARIABLE, help="folder of downloads; by default your own")
]
CacheSize = Annotated[
    str,
    typer.Option("--cache-size", envvar=CACHE_SIZE_VARIABLE, help="largest total size of the downloads, such as 20GiB"),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="catalogue name or config.json of a base model that adapters must fit")
]
MaxRank = Annotated[int, typer.Option("--max-lora-rank", min=1, help="largest rank to accept")]
Tenant = Annotated[str | None, typer.Option("--tenant", help="the tenant that owns the adapter")]
LabelOption = Annotated[list[str] | None, typer.Option("--label", help="a label, as key=value; may be repeated")]
Ids = Annotated[
    str | None, typer.Option("--ids", help="id strategy of a new registry: sequential, hash, user or semantic")
]
NewVersion = Annotated[bool, typer.Option("--new-version", help="add a version if the name already has other content")]

DEFAULT_MAX_RANK = 256


@contextmanager
def reading(place: str | None) -> Iterator[Registry]:
    """A registry that exists."""
    from loratory.adapters.registry.registry import Registry

    with Registry(place or str(user_registry()), create=False) as registry:
        yield registry


@contextmanager
def writing(place: str | None, ids: str | None = None) -> Iterator[Registry]:
    """A registry, created when it is first written to. The folder of the default one is created at once."""
    from loratory.adapters.registry.registry import Registry

    if place is None:
        file = user_registry()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{file.parent} cannot be created ({error.strerror}): give --registry FILE") from error
        place = str(file)
    registry = Registry(place, ids)
    try:
        yield registry
    finally:
        registry.close()


@contextmanager
def adapter_fetcher(
    cache: Path | None,
    cache_size: str = DEFAULT_CACHE_SIZE,
    model: str | None = None,
    max_lora_rank: int = DEFAULT_MAX_RANK,
) -> Iterator[AdapterFetcher]:
    """Yields a fetcher that validates adapters; its cache (by default the user's own) is closed at the end."""
    from loratory.adapters.fetch import AdapterFetcher
    from loratory.adapters.files.validation import FileLimits

    limits = FileLimits(max_lora_rank=max_lora_rank, base=None if model is None else base_shape(model))
    with adapter_cache(cache, cache_size) as store:
        yield AdapterFetcher(store, limits)


def base_shape(model: str) -> ModelShape:
    """The shape of a model of the catalogue, or of a Hugging Face ``config.json`` or the folder that holds one."""
    from loratory.sim.catalogue import model as spec_of

    try:
        return spec_of(model).shape
    except InputError as error:
        raise InputError(f"--model: {error}") from error


def labels_of(given: list[str] | None) -> Mapping[str, str]:
    """The ``--label key=value`` options as a mapping."""
    found: dict[str, str] = {}
    for item in given or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"--label {item!r} has no =: write it as key=value")
        if key in found:
            raise InputError(f"--label has the key {key!r} twice: keep one")
        found[key] = value
    return found
