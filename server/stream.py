"""TokenStream: the tokens of one request on their way from the engine's thread to a coroutine."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from loratory.executor.generation import SampledToken
from loratory.serving.request import Status


@dataclass(frozen=True, slots=True)
class Finish:
    """How a request ended: its final status and the reason, as in `loratory.serving.events.Ended`."""

    status: Status
    why: str


class TokenStream:
    """What one request has produced and its reader has not taken yet.

    It never makes the engine wait: a reader that does not read leaves at most the request's ``max_tokens`` tokens here.
    The engine's thread calls `put` and `finish`, then `wake` once a step for all streams of an event loop
    (`loratory.server.engine_loop`); a coroutine of ``loop`` calls `take`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._tokens: deque[SampledToken] = deque()
        self._finish: Finish | None = None
        self._ready = asyncio.Event()

    def put(self, token: SampledToken) -> None:
        """A token was sampled. In the engine's thread."""
        self._tokens.append(token)

    def finish(self, finish: Finish) -> None:
        """The request has ended; no token follows. In the engine's thread."""
        self._finish = finish

    def wake(self) -> None:
        """There may be something to take. In the thread of ``loop``."""
        self._ready.set()

    async def take(self) -> tuple[list[SampledToken], Finish | None]:
        """All that has come since the last call, waiting for something; with the finish, nothing follows."""
        await self._ready.wait()
        self._ready.clear()
        finish = self._finish  # before the tokens: what comes between the two lines is taken by the next call
        waiting = self._tokens
        return [waiting.popleft() for _ in range(len(waiting))], finish
