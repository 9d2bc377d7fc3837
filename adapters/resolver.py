"""LoRAResolver: finds the adapter that a request names, and brings it to this machine, from a registry or a source.

The interface is vLLM's (vllm/lora/resolver.py): None means that the name is unknown here, and the next resolver is
asked. Any fault of an adapter is a `RefusedAdapter`, which ends the one request; no engine sees the adapter.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Collection
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

from loratory.adapters.fetch import AdapterFetcher, absolute
from loratory.adapters.files.validation import FileLimits
from loratory.adapters.ids import HashIds
from loratory.adapters.record import split_ref
from loratory.adapters.sources.cache import AdapterCache
from loratory.adapters.sources.remote import CONFIG
from loratory.adapters.sources.source import AdapterSource, list_source, parse_source
from loratory.adapters.verified import FetchedAdapter, VerifiedAdapter
from loratory.errors import InputError, LoratoryError, RefusedAdapter, UnknownAdapter
from loratory.serving.lora import LoRARequest

if TYPE_CHECKING:
    from loratory.adapters.registry.registry import Registry


class LoRAResolver(Protocol):
    """Finds adapters by the names that requests use."""

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """The adapter, whose ``lora_path`` is a validated local folder; None when the name is not known here.

        ``base_model_name`` is what the engine calls its model. Raises `RefusedAdapter`, and nothing else.
        """


class RegistryResolver:
    """Adapters of a registry, by ``name`` or ``name@version``, with the registry's ids.

    Every adapter it returns has the digest that was registered. An adapter for another base model than the engine's is
    refused; ``base_models`` are further names of the engine's model. Folders stay leased in the cache until `forget`,
    since an engine reads an adapter's files at every load.
    """

    def __init__(
        self,
        registry: Registry,
        cache: AdapterCache,
        limits: FileLimits | None = None,
        base_models: Collection[str] = (),
    ) -> None:
        self._registry = registry
        self._base_models = frozenset(base_models)
        self._leases = _Leases(AdapterFetcher(cache, limits))

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """`LoRAResolver.resolve_lora`; look-up and download run in a thread."""
        return await _guarded(lora_name, lambda: self._resolve(base_model_name, lora_name))

    def forget(self, lora_name: str) -> None:
        """Lets the cache evict an adapter, named as `LoRARequest.lora_name` names it; the engine has unloaded it."""
        self._leases.drop(lora_name)

    def _resolve(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        try:
            split_ref(lora_name)
        except InputError:
            # No registry holds such a name; another resolver may.
            return None
        try:
            record = self._registry.resolve(lora_name)
        except UnknownAdapter:
            return None
        _check_base(record.ref, record.base_model, base_model_name, self._base_models)
        fetched = self._leases.fetcher.fetch_record(record)
        self._leases.keep(record.ref, fetched)
        return record.lora_request(str(fetched.folder))


class SourceResolver:
    """Adapters below a local folder or an ``hf://``, ``s3://`` or ``gs://`` prefix, by their paths below it.

    Ids are `HashIds` of source and digest: the same in every process, and new when the content changes. Each call lists
    the sources again, so adapters that are added later are found.
    """

    def __init__(
        self,
        prefix: str,
        cache: AdapterCache,
        limits: FileLimits | None = None,
        base_models: Collection[str] = (),
    ) -> None:
        self._local = "://" not in prefix
        self._prefix = str(absolute(prefix)) if self._local else prefix.rstrip("/")
        if self._prefix.startswith(("http://", "https://")):
            raise InputError(f"{prefix} cannot be listed, as web servers cannot: register its adapters one by one")
        self._base_models = frozenset(base_models)
        self._leases = _Leases(AdapterFetcher(cache, limits))
        self._ids: dict[int, tuple[str, str]] = {}
        self._mutex = Lock()

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """`LoRAResolver.resolve_lora`; listing and download run in a thread."""
        return await _guarded(lora_name, lambda: self._resolve(base_model_name, lora_name))

    def forget(self, lora_name: str) -> None:
        """Lets the cache evict an adapter; the engine has unloaded it."""
        self._leases.drop(lora_name)

    def _resolve(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        source = self._find(lora_name)
        if source is None:
            return None
        fetched = self._leases.fetcher.fetch(source)
        base_model = fetched.description.base_model
        try:
            _check_base(lora_name, base_model, base_model_name, self._base_models)
        except RefusedAdapter:
            self._leases.fetcher.release(fetched)
            raise
        self._leases.keep(lora_name, fetched)
        number = self._id(str(source), fetched.description.digest)
        return LoRARequest(lora_name, number, str(fetched.folder), base_model)

    def _find(self, lora_name: str) -> AdapterSource | None:
        """The source that a name means; None for one not below the prefix, such as a path or a link out of it."""
        if any(part.startswith(".") or not _PART.fullmatch(part) for part in lora_name.split("/")):
            return None
        if self._local:
            folder = Path(self._prefix, lora_name)
            inside = folder.resolve().is_relative_to(Path(self._prefix).resolve())
            return parse_source(str(folder)) if inside and (folder / CONFIG).is_file() else None
        return next((each for each in list_source(self._prefix) if self._named(each) == lora_name), None)

    def _named(self, source: AdapterSource) -> str:
        return str(source).removeprefix(self._prefix).strip("/")

    def _id(self, source: str, digest: str) -> int:
        """The id of the first round that no other adapter of this resolver has."""
        with self._mutex:
            tried = 0
            while self._ids.setdefault(number := HashIds.candidate(source, digest, tried), (source, digest)) != (
                source,
                digest,
            ):
                tried += 1
            return number


class ResolverChain:
    """Asks resolvers in turn until one knows the name, and refuses an id that already means another adapter."""

    def __init__(self, *resolvers: LoRAResolver) -> None:
        self._resolvers = resolvers
        self._meanings: dict[int, str] = {}

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """`LoRAResolver.resolve_lora`. A refusal is final: no further resolver is asked."""
        for resolver in self._resolvers:
            request = await resolver.resolve_lora(base_model_name, lora_name)
            if request is None:
                continue
            meaning = self._meanings.setdefault(request.lora_int_id, request.lora_name)
            if meaning != request.lora_name:
                raise RefusedAdapter(
                    f"adapter {lora_name!r} has the lora_int_id {request.lora_int_id}, which is adapter {meaning!r} "
                    "here: register it, so that it gets an id of its own"
                )
            return request
        return None


class VLLMResolver:
    """A resolver for vLLM's registry of resolvers: it returns vLLM's ``LoRARequest``, imported when first needed.

    ``kind`` is that class, or one like it.
    """

    def __init__(self, resolver: LoRAResolver, kind: type[Any] | None = None) -> None:
        self._resolver = resolver
        self._kind = kind

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
        """`LoRAResolver.resolve_lora` with the result turned into vLLM's object."""
        request = await self._resolver.resolve_lora(base_model_name, lora_name)
        return None if request is None else request.to_vllm(self._kind)


_PART = re.compile(r"[^\x00-\x1f\x7f\\]+")


class _Leases:
    """The folders returned so far, one for each adapter, however often it was asked for."""

    def __init__(self, fetcher: AdapterFetcher) -> None:
        self.fetcher = fetcher
        self._kept: dict[str, FetchedAdapter | VerifiedAdapter] = {}
        self._mutex = Lock()

    def keep(self, name: str, fetched: FetchedAdapter | VerifiedAdapter) -> None:
        with self._mutex:
            former, self._kept[name] = self._kept.get(name), fetched
        if former is not None:
            self.fetcher.release(former)

    def drop(self, name: str) -> None:
        with self._mutex:
            former = self._kept.pop(name, None)
        if former is not None:
            self.fetcher.release(former)


async def _guarded(lora_name: str, work: Callable[[], LoRARequest | None]) -> LoRARequest | None:
    """``work`` in a thread; whatever it raises is the refusal of this one name."""
    try:
        return await asyncio.to_thread(work)
    except RefusedAdapter:
        raise
    except LoratoryError as error:
        raise RefusedAdapter(f"adapter {lora_name!r} is refused: {error}") from error
    except Exception as error:
        raise RefusedAdapter(
            f"adapter {lora_name!r} is refused because of an unexpected {type(error).__name__} ({error}): "
            "see the log, and report it"
        ) from error


def _check_base(name: str, wanted: str | None, served: str, aliases: frozenset[str]) -> None:
    if wanted is None or not served or wanted == served or wanted in aliases:
        return
    raise RefusedAdapter(
        f"adapter {name!r} is for the base model {wanted!r}, but this engine serves {served!r}: route the request to "
        "an engine that serves it, or give the resolver that name in base_models"
    )
