"""Lifetime: a server under uvicorn in one event loop: it starts, serves, drains and ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator

import torch
import uvicorn

from loratory.executor.cpu_share import CPUShare
from loratory.server.app import create_app
from loratory.server.connection import connection_class
from loratory.server.edge import MAX_HEADER_BYTES
from loratory.server.server import Server

LOG = logging.getLogger("loratory.server")

CPU_LOOK_S = 10.0
"""Seconds between two looks at the CPU time that the process got."""

GOODBYE_S = 5
"""Seconds in which the last answers may be sent when everything has ended."""


class _Uvicorn(uvicorn.Server):
    """uvicorn without signal handlers of its own: `Lifetime` decides what a signal does."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


class Lifetime:
    """Runs a server on a listening socket until `stop` has been called and everything has ended."""

    def __init__(self, server: Server, listening: socket.socket) -> None:
        self.server = server
        self._listening = listening
        self._stops = 0
        self._stop = asyncio.Event()
        self._now = asyncio.Event()
        config = uvicorn.Config(
            create_app(server),
            http=connection_class(server.settings.receive_s),  # h11's: its headers are bounded
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nobody reads the client's address, and a proxy may say what it likes of it
            h11_max_incomplete_event_size=2 * MAX_HEADER_BYTES,  # longer ones get 400 before they are read
            timeout_graceful_shutdown=GOODBYE_S,
        )
        self._uvicorn = _Uvicorn(config)

    async def run(self, ready: Callable[[str], None]) -> None:
        """Serve. ``ready(url)`` is called when requests are answered. Raises `InputError` for a bad adapter."""
        server = self.server
        await server.start()
        host, port = self._listening.getsockname()[:2]
        serving = asyncio.create_task(self._uvicorn.serve([self._listening]))
        stopping = asyncio.create_task(self._stop.wait())
        watching = asyncio.create_task(self._watch_cpu())
        with self._signals():
            ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                await self._drain()
                self._uvicorn.should_exit = True
                await serving
        stopping.cancel()
        watching.cancel()

    async def _watch_cpu(self) -> None:
        """Say so in the log, once each time that it begins, when this process does not get the CPU it asks for."""
        share, told = CPUShare(torch.get_num_threads()), False
        while True:
            await asyncio.sleep(CPU_LOOK_S)
            sentence = share.sentence()
            if sentence and not told:
                LOG.warning("%s", sentence)
            told = bool(sentence)

    def stop(self) -> None:
        """Begin to drain; the second call ends what is in progress at once. In the event loop's thread."""
        self._stops += 1
        self._stop.set()
        if self._stops > 1:
            self._now.set()

    async def _drain(self) -> None:
        server = self.server
        count, seconds = server.limits.in_progress, server.settings.drain_s
        LOG.info("shutting down: %d requests are in progress and have %g s", count, seconds)
        now = asyncio.create_task(self._now.wait())
        draining = asyncio.create_task(server.drain(seconds))
        await asyncio.wait({now, draining}, return_when=asyncio.FIRST_COMPLETED)
        now.cancel()
        draining.cancel()
        if left := server.limits.in_progress:
            LOG.warning("%d requests are aborted", left)
        await asyncio.to_thread(server.stop)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT stop the server, where this is the main thread; timers that a policy has set do not."""
        loop, handled = asyncio.get_running_loop(), []
        for number in (signal.SIGTERM, signal.SIGINT):
            before = signal.getsignal(number)
            with contextlib.suppress(ValueError, RuntimeError):  # not the main thread: whoever runs this calls `stop`
                loop.add_signal_handler(number, self.stop)
                handled.append((number, before))
        for number in (signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF):
            before = signal.getsignal(number)
            with contextlib.suppress(ValueError, RuntimeError):
                loop.add_signal_handler(number, _nobody_asked, number)
                handled.append((number, before))
        try:
            yield
        finally:
            for number, before in handled:
                loop.remove_signal_handler(number)
                signal.signal(number, before)


def _nobody_asked(number: int) -> None:
    """A timer's signal, which would end the process: the server sets no timers, so a policy has."""
    LOG.warning("%s came and is ignored: the server sets no timers, and a policy may not", signal.Signals(number).name)
