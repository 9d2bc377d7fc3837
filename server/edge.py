"""Edge: what every HTTP request passes on its way in and out: its id, the limit of its body, the access log.

An exception that nothing else has turned into an answer becomes a 500 in the shape of errors here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loratory.errors import shortened
from loratory.server.access_log import ACCESS, NOTE
from loratory.server.headers import REQUEST_ID, request_id_of
from loratory.server.openai_errors import ApiError, as_api_error

CLIENT_GONE = 499
"""The status that logs and metrics show where the client left before an answer began."""

LEAST_BYTES_PER_S = 65_536
"""A long body has a second more for so many bytes."""

LONGEST_PATH = 300
"""Characters of a path that the log has."""

MAX_HEADER_BYTES = 32_768
"""Bytes of a request's headers; longer ones get 431."""


class Edge:
    """ASGI middleware. A request's id and note are ``scope[REQUEST_ID]`` and ``scope[NOTE]``.

    A body may have ``max_body_bytes`` bytes, else it gets 413. It has ``receive_s`` seconds to come, and one more for
    each `LEAST_BYTES_PER_S` bytes, else it gets 408. ``answered(route, status)`` is told of every answer; a route is a
    template of the app's, or ``other``.
    """

    def __init__(
        self, app: ASGIApp, max_body_bytes: int, answered: Callable[[str, int], None], receive_s: float
    ) -> None:
        self.app = app
        self.receive_s = receive_s
        self.answered = answered
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = time.perf_counter()
        headers = Headers(scope=scope)
        status = 0
        note: dict[str, Any] = {}
        scope[NOTE] = note
        scope[REQUEST_ID] = ""
        body_bytes = 0
        complete = False

        async def receive_bounded() -> Message:
            nonlocal body_bytes, complete
            if complete:  # what follows is the end of the connection, which may come late
                return await receive()
            until = begun + self.receive_s + body_bytes / LEAST_BYTES_PER_S
            try:
                async with asyncio.timeout(max(0.0, until - time.perf_counter())):
                    message = await receive()
            except TimeoutError:
                told = f"the body has not come within {self.receive_s:g} s: send it faster"
                raise ApiError(408, told, code="body_too_slow") from None
            if message["type"] == "http.request":
                complete = not message.get("more_body", False)
                body_bytes += len(message.get("body", b""))
                if body_bytes > self.max_body_bytes:
                    raise self._too_long()
            return message

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                marked = MutableHeaders(scope=message)
                marked[REQUEST_ID] = scope[REQUEST_ID]
                if status == 408:  # the rest of the body would be taken for the next request
                    marked["connection"] = "close"
            await send(message)

        try:
            scope[REQUEST_ID] = request_id_of(headers)
            if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
                raise ApiError(431, f"the headers are longer than {MAX_HEADER_BYTES:,} bytes: shorten them",
                               code="headers_too_long")  # fmt: skip
            length = headers.get("content-length", "")
            if length.isdigit() and int(length) > self.max_body_bytes:
                raise self._too_long()
            await self.app(scope, receive_bounded, send_marked)
        except ClientDisconnect:
            note["error"] = "the client left before its body was complete"
        except Exception as error:
            told = as_api_error(error)
            answer = told.response()
            note |= told.facts | {"error": shortened(str(error))}
            if status:  # the answer has begun: all that can be done is to break it off
                raise
            await answer(scope, receive, send_marked)
        finally:
            path = shortened(scope["path"], LONGEST_PATH)
            facts = {"method": scope["method"], "path": path, "status": status}
            facts |= {"seconds": time.perf_counter() - begun, "request_id": scope[REQUEST_ID]} | note
            route = scope.get("route")
            self.answered(getattr(route, "path", "other"), status or CLIENT_GONE)
            ACCESS.info("%s %s", scope["method"], path, extra={"facts": facts})

    def _too_long(self) -> ApiError:
        told = f"the body is longer than {self.max_body_bytes:,} bytes: shorten it, or raise --max-body-bytes"
        return ApiError(413, told, code="body_too_long")
