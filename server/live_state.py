"""LiveState: the engine's state for the live page, read at most a few times a second however many pages look."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol

from loratory.errors import LoratoryError
from loratory.server.engine_loop import EngineLoop
from loratory.server.leaders import OTHER
from loratory.server.metrics import ServerMetrics
from loratory.server.state import read_state

FRESH_S = 0.25
"""Pages that ask within this time after each other get one answer."""

WAIT_S = 1.0
"""A step may take longer than this; then the page gets the last state, and its age."""


class Watched(Protocol):
    """What the page needs of a server."""

    @property
    def loop(self) -> EngineLoop:
        """The engine's thread."""

    @property
    def metrics(self) -> ServerMetrics:
        """The counts."""


class LiveState:
    """The state of a server as JSON values. It belongs to one event loop."""

    def __init__(self, server: Watched, wait_s: float = WAIT_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._server = server
        self._wait_s = wait_s
        self._clock = clock
        self._engine: dict[str, Any] | None = None
        self._read_at = 0.0
        self._reading: asyncio.Task[None] | None = None

    async def read(self) -> dict[str, Any]:
        """The engine's state (`loratory.server.state`), at most ``wait_s`` after it was asked for; ``age_s`` says how
        old it is, and ``old`` whether the engine did not answer in time. ``engine`` is None before the first answer."""
        if self._engine is None or self._clock() - self._read_at >= FRESH_S:
            reading = self._reading
            if reading is None:
                reading = self._reading = asyncio.create_task(self._read())
            await asyncio.wait([reading], timeout=self._wait_s)
        return self._shown()

    async def _read(self) -> None:
        """Ask the engine's thread. A step that takes long is waited for, so that no second call queues behind it."""
        metrics = self._server.metrics
        tenants = {shown: mine.name for shown, mine in metrics.counts.tenants.items() if shown != OTHER}
        try:
            answer = self._server.loop.call(lambda executor, at: read_state(executor, metrics.public_name, at, tenants))
            self._engine = await asyncio.wrap_future(answer)
            self._read_at = self._clock()
        except LoratoryError:
            pass  # the engine has stopped; `failure` says why
        finally:
            self._reading = None

    def _shown(self) -> dict[str, Any]:
        server, metrics = self._server, self._server.metrics
        counts = metrics.counts
        age_s = self._clock() - self._read_at if self._engine is not None else None
        gaps = counts.backlog.gaps()
        first_tokens, ttft_s = counts.ttft.read()
        return {
            "model": counts.model_name,
            "uptime_s": metrics.uptime_s,
            "alive": server.loop.alive,
            "failure": server.loop.failure,
            "age_s": age_s,
            "old": self._reading is not None,
            "queue_limit": counts.queue_limit,
            "engine": self._engine,
            "gaps": {name: gaps[mine] for name, mine in counts.tenants.items() if mine in gaps},
            "totals": {
                "output_tokens": counts.output_tokens,
                "prompt_tokens": counts.prompt_tokens,
                "first_tokens": first_tokens[-1],
                "ttft_s": ttft_s,
                "ended": _by_status(counts.ended.copy()),
                "hits": counts.hits,
                "misses": counts.misses,
            },
            "swaps": [swap._asdict() for swap in reversed(counts.swapped.copy())],
        }


def _by_status(ended: dict[tuple[str, str], int]) -> dict[str, int]:
    found = dict.fromkeys(("completed", "rejected", "aborted", "failed"), 0)
    for (status, _), number in ended.items():
        found[status] += number
    return found
