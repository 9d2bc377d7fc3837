"""connection_class: a connection of uvicorn's that is closed when a client begins a request and does not go on."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class _Connection(H11Protocol):
    """Waits at most `receive_s` seconds for the headers of a request, the first or the next.

    uvicorn closes connections on which nothing comes after an answer. One that has sent half a request, or nothing
    since it was opened, it would keep for ever. The time for a body is `loratory.server.edge.Edge`'s.
    """

    receive_s: float
    _timer: asyncio.TimerHandle | None = None
    _has_begun = False
    """Whether any byte has come since the last answer."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._look()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._has_begun = True
        super().data_received(data)
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        super().connection_lost(exc)
        self._forget()

    def _look(self) -> None:
        """Begin to count the time where a request is waited for, and end it where one is here."""
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering or self.transport.is_closing():
            self._forget()
            self._has_begun = False
        elif self._timer is None:
            self._timer = self.loop.call_later(self.receive_s, self._late)

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self._has_begun and self.conn.our_state is h11.IDLE:
            self.transport.write(_LATE)
        self.transport.close()


def connection_class(seconds: float) -> type[asyncio.Protocol]:
    """For ``uvicorn.Config(http=)``: connections that wait so many seconds for the headers of a request."""
    return type("Connection", (_Connection,), {"receive_s": seconds})
