"""TokenStream: the tokens of one request on their way from the engine's thread to a coroutine."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
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
    (`loratory.server.engine_loop`); a coroutine of ``loop`` calls `take`, or waits for ``ready`` and calls `pop`.
    Several streams may share ``ready``. With ``whole`` the reader is woken at the end alone. ``on_finish()`` is called
    in the thread of ``loop`` when the request has ended, whether or not anybody reads.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        ready: asyncio.Event | None = None,
        *,
        whole: bool = False,
        on_finish: Callable[[], None] | None = None,
    ) -> None:
        self.loop = loop
        self.ready = asyncio.Event() if ready is None else ready
        self.whole = whole
        self._on_finish = on_finish
        self._tokens: deque[SampledToken] = deque()  # appended at one end by one thread, taken at the other by another
        self._finish: Finish | None = None

    def put(self, token: SampledToken) -> None:
        """A token was sampled. In the engine's thread."""
        self._tokens.append(token)

    def finish(self, finish: Finish) -> None:
        """The request has ended; no token follows. In the engine's thread."""
        self._finish = finish

    def wake(self) -> None:
        """There may be something to take. In the thread of ``loop``."""
        self.ready.set()
        if self._finish is not None and self._on_finish is not None:
            on_finish, self._on_finish = self._on_finish, None
            on_finish()

    def pop(self) -> tuple[list[SampledToken], Finish | None]:
        """All that has come since the last call; with the finish, nothing follows."""
        finish = self._finish  # before the tokens: what comes between the two lines is taken by the next call
        tokens = self._tokens
        return [tokens.popleft() for _ in range(len(tokens))], finish

    async def take(self) -> tuple[list[SampledToken], Finish | None]:
        """The same, waiting for something."""
        await self.ready.wait()
        self.ready.clear()
        return self.pop()
