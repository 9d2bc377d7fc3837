"""AdapterCatalogue: public names of adapters, and the adapters that the engine knows by them.

    name            clients say `sql` or `sql@2`
    engine's name   `sql@2`: means one content, under one lora_int_id, for as long as the process runs
    where from      a registry (--registry), the command line (--lora-modules), POST /v1/load_lora_adapter

An adapter is given to the engine when a request first names it, or at the start for those of the command line. New
content under a name is a new version with a new id; what runs goes on with the version that it began with.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loratory.adapters.fetch import AdapterFetcher
from loratory.adapters.ids import HashIds
from loratory.adapters.record import AdapterRecord, check_name, split_ref
from loratory.adapters.registry.vllm_lora_modules import ModulePath
from loratory.adapters.verified import VerifiedAdapter
from loratory.errors import InputError, LoratoryError, RefusedAdapter, RemovedAdapter, UnknownAdapter, did_you_mean
from loratory.server.base_models import BaseModels
from loratory.server.engine_loop import EngineLoop
from loratory.server.openai_errors import ApiError
from loratory.server.registry_names import FRESH_S, RegistryNames
from loratory.serving.guest_errors import unexpected
from loratory.serving.lora import Adapter, LoRARequest

LOG = logging.getLogger("loratory.server")

MOST_KNOWN = 1000
"""Adapters of a registry that the engine knows at once: each keeps its files from being evicted from the cache."""


@dataclass(frozen=True, slots=True)
class ServedAdapter:
    """An adapter as one request uses it.

    ``asked``: the model that the client named; ``name``: the adapter's, without a version. ``lora``: the LoRARequest;
    its ``lora_name`` is the engine's name, ``name@version``. ``tenant``: of the registry's record. ``shown``: ``name``
    for the version that the bare name means now, else ``name@version``.
    """

    asked: str
    name: str
    lora: LoRARequest
    version: int
    tenant: str | None
    shown: str


@dataclass(slots=True)
class KnownAdapter:
    """An adapter that the engine knows. ``leaving``: it takes no request any more, ``gone`` when the engine has
    forgotten it."""

    name: str
    version: int
    adapter: Adapter
    files: VerifiedAdapter
    tenant: str | None = None
    created: int = 0
    leaving: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)


class AdapterCatalogue:
    """Finds the adapter that a request names, and gives it to the engine when it is not there yet.

    ``bases``: what the base model is called. ``item_bytes``: of one weight in a slot. Of the registry's adapters the
    engine knows the ``most_known`` that were asked for last. All methods but `close` belong to one event loop's thread.
    """

    def __init__(
        self,
        fetcher: AdapterFetcher,
        loop: EngineLoop,
        bases: BaseModels,
        item_bytes: int,
        names: RegistryNames | None = None,
        most_known: int = MOST_KNOWN,
    ) -> None:
        self.base_names = bases.names
        self._fetcher = fetcher
        self._loop = loop
        self._item_bytes = item_bytes
        self._names = names
        self._bases = bases
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="adapter-fetch")
        self._known: dict[str, KnownAdapter] = {}
        """By the engine's name."""
        self._asked: OrderedDict[str, None] = OrderedDict()
        """Those of the registry, the one that was asked for last at the end."""
        self._most_known = most_known
        self._tasks: set[asyncio.Task[None]] = set()
        self._own: dict[str, str] = {}
        """The engine's name by the public name of adapters that are not the registry's."""
        self._versions: dict[str, int] = {}
        self._ids: dict[int, str] = {}
        self._defaults: dict[str, int] = {}
        """The version that a name of the registry meant when it was last asked for."""
        self._coming: dict[str, asyncio.Task[KnownAdapter]] = {}
        self._refused: dict[str, tuple[float, ApiError]] = {}
        self._changing = asyncio.Lock()
        """Held while an adapter that is not the registry's is loaded or unloaded: one change follows the other."""

    # -- requests --------------------------------------------------------------------------------------------------

    async def find(self, model: str | None) -> ServedAdapter | None:
        """The adapter called ``model``; None for the base model, which is also what no name means.

        Between the return and the next ``await`` the engine knows it: submit the request before that. Raises
        `ApiError`: 404 for an unknown name, 400 where the adapter cannot be served.
        """
        if model is None or model in self.base_names:
            return None
        while True:
            known = self._own_adapter(model)
            record = None
            if known is None:
                record = await self._record(model)
                known = self._known.get(record.ref)
                if known is not None and known.files.digest != record.digest:
                    told = f"adapter {record.ref!r} has other content in the registry than this server began with"
                    raise ApiError(400, f"{told}: register it as a new version", param="model", code="adapter_refused")
            if known is not None and not known.leaving:
                lora = known.adapter.lora
                if record is not None:
                    self._asked[record.ref] = None
                    self._asked.move_to_end(record.ref)
                    while len(self._asked) > self._most_known:
                        self._forget_one()
                shown = self.shown(lora.lora_name)
                return ServedAdapter(model, known.name, lora, known.version, known.tenant, shown)
            if known is not None:  # it was unloaded, and is asked for again: wait for its last requests
                await known.gone.wait()
            elif record is not None:
                await self._bring(record)

    def shown(self, name: str) -> str:
        """How an adapter is shown to users, by the engine's name."""
        public, version = split_ref(name)
        default = self._own.get(public) == name or self._defaults.get(public) == version
        return public if default else name

    def known(self) -> list[KnownAdapter]:
        """The adapters that take requests, in the order in which they came."""
        return [each for each in self._known.values() if not each.leaving]

    async def records(self) -> tuple[AdapterRecord, ...]:
        """The default version of every name in the registry."""
        return () if self._names is None else await self._names.defaults()

    # -- the operator's and the clients' own adapters --------------------------------------------------------------

    async def load_module(self, module: ModulePath) -> None:
        """An adapter of the command line. Raises `InputError`.

        The operator may serve an adapter that was trained for another base model, with a line in the log; a
        ``base_model_name`` in the item says which one it is for, whatever its files say.
        """
        base = module.base_model_name
        self._bases.check(module.name, base)
        files = await self._load(module.name, module.source, in_place=False, check=lambda files: None)
        trained = files.description.base_model
        if base is None and trained is not None and not self._bases.has(trained):
            served = self.base_names[0]
            LOG.warning("adapter %s was trained for %s, and is served with %s", module.name, trained, served)

    async def load(self, name: str, folder: Path, in_place: bool) -> None:
        """Give the engine the adapter in a local folder, under a public name.

        With ``in_place`` a name that is there gets a new version; content that is there already changes nothing.
        Raises `InputError`, and harms nothing, for a name in use, an adapter that is refused or for another base model,
        no room in the slots.
        """

        def check(files: VerifiedAdapter) -> None:
            self._bases.check(name, files.description.base_model)

        await self._load(name, str(folder), in_place, check)

    async def unload(self, name: str, lora_int_id: int | None) -> None:
        """Take an adapter from the engine: no new request gets it; when its last request has ended, its slot, its host
        memory and its files are free. Raises `UnknownAdapter`; `InputError` for an id that it does not have."""
        async with self._changing:
            found = [each for each in self.known() if each.name == name or each.adapter.name == name]
            if not found:
                raise UnknownAdapter(f"The lora adapter '{name}' cannot be found.")
            ids = [each.adapter.lora.lora_int_id for each in found]
            if lora_int_id is not None and lora_int_id not in ids:
                raise InputError(f"lora_int_id {lora_int_id} is not that of {name!r}, which has {ids[-1]}: correct it")
            for each in found:
                if lora_int_id in (None, each.adapter.lora.lora_int_id):
                    await self._remove(each)

    # -- what the engine tells -------------------------------------------------------------------------------------

    def removed(self, name: str) -> None:
        """The engine has forgotten an adapter: its files may be evicted from the cache."""
        known = self._known.pop(name, None)
        self._asked.pop(name, None)
        if known is not None:
            self._fetcher.release(known.files)
            known.gone.set()

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _own_adapter(self, model: str) -> KnownAdapter | None:
        """The adapter of that name that is not the registry's, as name or name@version."""
        found = self._known.get(self._own.get(model, model))
        return found if found is not None and found.name in self._own and not found.leaving else None

    async def _record(self, model: str) -> AdapterRecord:
        """What the name means in the registry. Raises `ApiError`."""
        try:
            if self._names is None:
                raise UnknownAdapter("")
            split_ref(model)
            record = await self._names.resolve(model)
        except RemovedAdapter as error:
            raise ApiError(404, str(error), "NotFoundError", "model", "model_not_found") from None
        except UnknownAdapter:
            raise self._unknown(model) from None
        except InputError as error:
            if "@" in model or self._names is None:
                raise self._unknown(model) from None
            raise ApiError(503, f"the registry cannot be asked: {error}", param="model", retry_after_s=1.0) from None
        if model == record.name:
            self._defaults[record.name] = record.version
        return record

    def _unknown(self, model: str) -> ApiError:
        names = [*self.base_names, *self._own, *self._defaults]
        hint = did_you_mean(model, names, "GET /v1/models lists what there is")
        told = f"The model `{model[:200]}` does not exist: {hint}"
        return ApiError(404, told, "NotFoundError", "model", "model_not_found")

    async def _bring(self, record: AdapterRecord) -> KnownAdapter:
        """Fetch and check an adapter of the registry, and give it to the engine; requests that need it share this."""
        until, refusal = self._refused.get(record.ref, (0.0, None))
        if refusal is not None and until > time.monotonic():
            raise refusal
        coming = self._coming.get(record.ref)
        if coming is None:
            coming = self._coming[record.ref] = asyncio.create_task(self._fetch_and_add(record))
            coming.add_done_callback(lambda task: self._came(record.ref, task))
        try:
            return await asyncio.shield(coming)
        except LoratoryError as error:
            raise ApiError(400, str(error), param="model", code="adapter_refused") from None

    def _came(self, ref: str, task: asyncio.Task[KnownAdapter]) -> None:
        """Remember a refusal for a moment, so that many requests do not read a broken adapter many times."""
        self._coming.pop(ref, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            refusal = ApiError(400, str(error), param="model", code="adapter_refused")
            self._refused[ref] = (time.monotonic() + FRESH_S, refusal)
            told = str(error) if repr(split_ref(ref)[0])[1:-1] in str(error) else f"adapter {ref!r}: {error}"
            LOG.warning("%s", told)

    def _forget_one(self) -> None:
        """Take the registry's adapter that was asked for longest ago from the engine; it comes back when asked for."""
        known = self._known.get(self._asked.popitem(last=False)[0])
        if known is not None and not known.leaving:
            task = asyncio.create_task(self._remove_quietly(known))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _remove_quietly(self, known: KnownAdapter) -> None:
        with suppress(LoratoryError):  # it is pinned
            await self._remove(known)

    async def _fetch_and_add(self, record: AdapterRecord) -> KnownAdapter:
        self._bases.check(record.ref, record.base_model)
        files = await self._in_thread(lambda: self._fetcher.fetch_record(record))
        lora = record.lora_request(str(files.folder))
        known = KnownAdapter(
            record.name,
            record.version,
            self._adapter(lora, files, record.version),
            files,
            record.tenant,
            int(record.created.timestamp()),
        )
        return await self._add(known)

    async def _load(
        self, name: str, source: str, in_place: bool, check: Callable[[VerifiedAdapter], None]
    ) -> VerifiedAdapter:
        """Give the engine the adapter at a source; its files. ``check`` raises for files that may not be served."""
        if "," in name or name in (".", ".."):
            raise InputError(f"the name {name!r} cannot be told in metrics or URLs: leave out commas, or dots alone")
        check_name(name)
        async with self._changing:
            if name in self.base_names or await self._in_registry(name):
                raise InputError(f"the name {name!r} is in use: choose another")
            before = self._own_adapter(name)
            if before is not None and not in_place:
                raise InputError(
                    f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, "
                    "set 'load_inplace' to True."
                )
            version = self._versions.get(name, 0) + 1
            files = await self._in_thread(lambda: self._fetcher.verified(f"{name}@{version}", source, None))
            if before is not None and before.files.digest == files.digest and before.files.source == files.source:
                self._fetcher.release(files)
                return before.files
            try:
                check(files)
            except BaseException:
                self._fetcher.release(files)
                raise
            number = await self._new_id(str(files.source), files.digest)
            lora = LoRARequest(f"{name}@{version}", number, str(files.folder), files.description.base_model)
            known = KnownAdapter(name, version, self._adapter(lora, files, version), files, None, int(time.time()))
            await self._add(known)
            self._ids[number] = lora.lora_name
            self._versions[name] = version
            self._own[name] = lora.lora_name
            LOG.info("adapter %s, id %d, from %s", lora.lora_name, number, files.source)
            if before is not None:
                await self._remove(before)
            return files

    async def _in_registry(self, name: str) -> bool:
        if self._names is None:
            return False
        try:
            await self._names.resolve(name)
        except (UnknownAdapter, RemovedAdapter):
            return False
        return True

    async def _new_id(self, source: str, digest: str) -> int:
        """An id that means this content and no other, here and in the registry; equal in every process."""
        tried = 0
        while True:
            number = HashIds.candidate(source, digest, tried)
            given = self._names is not None and await self._names.id_is_given(number)
            if number not in self._ids and not given:
                return number
            tried += 1

    def _adapter(self, lora: LoRARequest, files: VerifiedAdapter, version: int) -> Adapter:
        size = files.description.parameters * self._item_bytes
        return Adapter(lora, files.description.rank, size, digest=files.digest, version=version)

    async def _add(self, known: KnownAdapter) -> KnownAdapter:
        """Give an adapter to the engine. If it refuses, the files are released."""
        adapter, files = known.adapter, known.files
        try:
            await asyncio.wrap_future(self._loop.call(lambda executor, at: executor.add_adapter(adapter, files, at)))
        except BaseException:
            self._fetcher.release(files)
            raise
        self._known[adapter.name] = known
        return known

    async def _remove(self, known: KnownAdapter) -> None:
        known.leaving = True
        name = known.adapter.name
        order: Future[Any] = self._loop.call(lambda executor, at: executor.remove_adapter(name, at))
        if why := await asyncio.wrap_future(await asyncio.wrap_future(order)):
            known.leaving = False
            raise InputError(why)
        if self._own.get(known.name) == name:
            del self._own[known.name]

    async def _in_thread(self, work: Callable[[], VerifiedAdapter]) -> VerifiedAdapter:
        """Fetch files. Whatever is wrong with them is a `LoratoryError`."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except (LoratoryError, asyncio.CancelledError):
            raise
        except Exception as error:
            LOG.exception("an adapter could not be fetched")
            raise RefusedAdapter(unexpected(error)) from error
