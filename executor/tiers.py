"""AdapterTiers: brings adapters from disk to host memory and into LoRA slots, as the ledger has decided."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from loratory.adapters.verified import VerifiedAdapter
from loratory.errors import InputError
from loratory.serving.ledger import Ledger
from loratory.serving.plan import AdapterLoad

HostAdapter = TypeVar("HostAdapter")


class Slots(Protocol[HostAdapter]):  # type: ignore[misc]  # a value goes in, none comes out
    """Where adapters are used from: ``loratory.executor.lora.slots.LoRASlots``."""

    def write(self, slot: int, adapter: HostAdapter) -> None:
        """Put an adapter's weights into a slot; on return they may be used."""

    def require_room(self, files: VerifiedAdapter) -> None:
        """Raises `InputError` for an adapter that no slot has room for."""


class AdapterTiers(Generic[HostAdapter]):
    """The adapters in host memory and in slots. The ledger decides which they are; this class moves the bytes.

    ``read(name)`` brings an adapter's weights from disk to host memory; ``slots`` holds ``max_loras`` of them. There is
    one transfer at a time over each link, disk to host and host to slot, as in simulation. ``wake()`` is called, in
    another thread, when a load is over.
    """

    def __init__(
        self,
        read: Callable[[str], HostAdapter],
        slots: Slots[HostAdapter],
        max_loras: int,
        wake: Callable[[], None],
        files: MutableMapping[str, VerifiedAdapter] | None = None,
    ) -> None:
        self.files = {} if files is None else files
        """The files that ``read`` reads from, by adapter."""
        self._read = read
        self._slots = slots
        self._wake = wake
        self._host: dict[str, HostAdapter] = {}
        self._reading: dict[str, Future[HostAdapter]] = {}
        self._slot_of: dict[str, int] = {}
        self._free = list(range(max_loras))
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="adapter-disk")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="adapter-slot")
        self._done: SimpleQueue[tuple[AdapterLoad, str | None]] = SimpleQueue()
        self.in_flight = 0
        """Loads started in the background that `finished` has not returned yet."""

    def slot(self, name: str) -> int:
        """The slot an adapter is in, or being loaded to."""
        return self._slot_of[name]

    @property
    def resident(self) -> dict[str, int]:
        """Adapters that hold a slot, and which."""
        return dict(self._slot_of)

    @property
    def in_host(self) -> frozenset[str]:
        """Adapters whose weights are in host memory."""
        return frozenset(self._host)

    def evicted(self, name: str) -> None:
        """An adapter gave up its slot; its weights stay in host memory."""
        slot = self._slot_of.pop(name, None)
        if slot is not None:
            self._free.append(slot)

    def require_room(self, files: VerifiedAdapter) -> None:
        """Raises `InputError` for an adapter that no slot has room for."""
        self._slots.require_room(files)

    def forget(self, name: str) -> None:
        """An adapter is not served any more, and no load of it is in flight."""
        self._host.pop(name, None)
        self._reading.pop(name, None)
        self.files.pop(name, None)

    def follow(self, ledger: Ledger) -> None:
        """Drop the weights of adapters that have left host memory."""
        for name in [name for name in self._host if name not in ledger.host_cache.held]:
            del self._host[name]

    def bring(self, load: AdapterLoad) -> None:
        """Load now; returns when the adapter is in its slot. Raises `InputError` with the reason when it cannot be."""
        name = load.adapter.name
        slot = self._claim(name)
        try:
            self._slots.write(slot, self._host_copy(name))
        except Exception as error:
            self._free.append(self._slot_of.pop(name))
            raise InputError(reason(error)) from error

    def start(self, load: AdapterLoad) -> None:
        """Load in the background; `finished` returns it once it is over."""
        name = load.adapter.name
        self.in_flight += 1
        reading = self._fetch(name)
        if load.prefetch:
            self._reader.submit(self._tell, load, reading)
        else:
            self._writer.submit(self._write, load, reading, self._claim(name))

    def finished(self) -> list[tuple[AdapterLoad, str | None]]:
        """Background loads that are over since the last call, each with the reason if it failed."""
        ended: list[tuple[AdapterLoad, str | None]] = []
        while True:
            try:
                load, why = self._done.get_nowait()
            except Empty:
                return ended
            self.in_flight -= 1
            name = load.adapter.name
            reading = self._reading.get(name)
            if reading is not None and reading.done():
                del self._reading[name]
                if reading.exception() is None:
                    self._host[name] = reading.result()
            if why is not None and not load.prefetch:
                self._free.append(self._slot_of.pop(name))
            ended.append((load, why))

    def close(self) -> None:
        """Wait for loads in flight and drop all weights."""
        self._reader.shutdown(wait=True, cancel_futures=True)
        self._writer.shutdown(wait=True, cancel_futures=True)
        self._host.clear()
        self._reading.clear()

    def _claim(self, name: str) -> int:
        assert name not in self._slot_of, f"adapter {name!r} has a slot already"
        self._free.sort(reverse=True)
        slot = self._slot_of[name] = self._free.pop()
        return slot

    def _fetch(self, name: str) -> Future[HostAdapter]:
        """The weights in host memory: present, in flight, or requested now."""
        reading = self._reading.get(name)
        if reading is not None:
            return reading
        if name in self._host:
            there: Future[HostAdapter] = Future()
            there.set_result(self._host[name])
            return there
        reading = self._reading[name] = self._reader.submit(self._read, name)
        return reading

    def _host_copy(self, name: str) -> HostAdapter:
        reading = self._reading.get(name)
        if reading is not None:  # its own prefetch is in flight
            return reading.result()
        if name not in self._host:
            self._host[name] = self._read(name)
        return self._host[name]

    def _write(self, load: AdapterLoad, reading: Future[HostAdapter], slot: int) -> None:
        why = None
        try:
            self._slots.write(slot, reading.result())
        except Exception as error:
            why = reason(error)
        self._over(load, why)

    def _tell(self, load: AdapterLoad, reading: Future[Any]) -> None:
        error = reading.exception()
        self._over(load, None if error is None else reason(error))

    def _over(self, load: AdapterLoad, why: str | None) -> None:
        self._done.put((load, why))
        self._wake()


def reason(error: BaseException) -> str:
    """What went wrong, on one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"
