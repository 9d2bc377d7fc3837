"""RegistryNames: what adapter names mean in a registry now, asked at most once a second a name."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from loratory.adapters.record import AdapterRecord
from loratory.adapters.registry.registry import Registry
from loratory.errors import InputError, LoratoryError, RemovedAdapter, UnknownAdapter

T = TypeVar("T")
LOG = logging.getLogger("loratory.server")

FRESH_S = 1.0
"""Seconds for which an answer of the registry holds: so long may a promotion take to reach new requests."""

MOST_NAMES = 4096
"""Names whose answers are kept: clients may ask for any."""


class RegistryNames:
    """Resolves names in threads of its own; requests that ask for one name at once share the answer.

    All methods but `open` and `close` belong to one event loop.
    """

    def __init__(self, registry: Registry, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry = registry
        self._clock = clock
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="registry")
        self._answers: dict[str, tuple[float, AdapterRecord | InputError]] = {}
        self._asking: dict[str, asyncio.Task[AdapterRecord | InputError]] = {}
        self._listed: tuple[float, tuple[AdapterRecord, ...]] = (0.0, ())

    def open(self) -> None:
        """Connect. Raises `InputError` where there is no registry."""
        self._registry.open()

    async def resolve(self, ref: str) -> AdapterRecord:
        """What ``name`` or ``name@version`` means now.

        Raises `UnknownAdapter` and `RemovedAdapter` as `Registry.resolve`. While the registry cannot be reached, the
        last answer stands; without one, the registry's `InputError` is raised.
        """
        until, answer = self._answers.get(ref, (0.0, None))
        if answer is None or until <= self._clock():
            asking = self._asking.get(ref)
            if asking is None:
                asking = self._asking[ref] = asyncio.create_task(self._ask(ref))
                asking.add_done_callback(lambda _: self._asking.pop(ref, None))
            answer = await asyncio.shield(asking)
        if isinstance(answer, InputError):
            raise answer
        return answer

    async def id_is_given(self, lora_int_id: int) -> bool:
        """Whether an id means an adapter of the registry, removed ones included."""

        def ask() -> bool:
            try:
                self._registry.by_id(lora_int_id)
            except InputError:
                return False
            return True

        return await self._in_thread(ask)

    async def defaults(self) -> tuple[AdapterRecord, ...]:
        """The default version of every name that resolves; the last answer while the registry cannot be reached."""
        until, records = self._listed
        if until <= self._clock():
            try:
                records = await self._in_thread(self._list)
            except LoratoryError as error:
                LOG.warning("the registry cannot be listed: %s", error)
            self._listed = (self._clock() + FRESH_S, records)
        return records

    def close(self) -> None:
        """End the threads, and close the registry."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._registry.close()

    async def _ask(self, ref: str) -> AdapterRecord | InputError:
        answer: AdapterRecord | InputError
        try:
            answer = await self._in_thread(lambda: self._registry.resolve(ref))
        except (UnknownAdapter, RemovedAdapter) as error:
            answer = error.with_traceback(None)
        except InputError as error:
            known = self._answers.get(ref)
            LOG.warning("the registry cannot be asked for %r: %s", ref, error)
            answer = known[1] if known is not None else error.with_traceback(None)
        if len(self._answers) >= MOST_NAMES:
            now = self._clock()
            self._answers = {name: each for name, each in self._answers.items() if each[0] > now}
            while len(self._answers) >= MOST_NAMES:
                del self._answers[next(iter(self._answers))]
        self._answers[ref] = (self._clock() + FRESH_S, answer)
        return answer

    def _list(self) -> tuple[AdapterRecord, ...]:
        defaults = self._registry.defaults()
        return tuple(record for record in self._registry.list() if defaults.get(record.name) == record.version)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
