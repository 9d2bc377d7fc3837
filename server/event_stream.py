"""EventStream: an answer as server-sent events, made as the client reads them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from loratory.server.exchange import ClientGoneError
from loratory.server.openai_errors import as_api_error

DONE = b"data: [DONE]\n\n"


class EventStream(Response):
    """Sends what ``events`` yields, then ``[DONE]``. An error on the way is an event with the error's shape.

    ``end(status)`` is called when nothing more is sent, for whatever reason: the word is ``done``, ``gone`` or
    ``failed``. A client that reads slowly makes nobody wait but its own answer.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], end: Callable[[str], None], headers: Mapping[str, str]) -> None:
        super().__init__(headers={**headers, "cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        word = "gone"
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async for event in self._events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
                word = "done"
            except ClientGoneError:
                return
            except Exception as error:
                word = "failed"
                told = f"data: {json.dumps(as_api_error(error).body)}\n\n".encode()
                await send({"type": "http.response.body", "body": told, "more_body": True})
            await send({"type": "http.response.body", "body": DONE, "more_body": False})
        finally:
            self._end(word)
