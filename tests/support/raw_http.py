"""raw_http: HTTP over a plain socket, so that a test decides when a client stops sending, reading or being there."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. ``status`` 0: the connection ended before an answer; ``whole``: the answer came to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    whole: bool

    @property
    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The events of a stream, without [DONE]."""
        lines = [line for line in self.body.decode().split("\n\n") if line]
        return [json.loads(line.removeprefix("data: ")) for line in lines if line != "data: [DONE]"]


@dataclass(frozen=True, slots=True)
class Leave:
    """When a client goes: after so many bytes of the request, seconds after it is sent, or bytes of the answer."""

    sent: int | None = None
    seconds: float | None = None
    read: int | None = None


STAY = Leave()


def request_bytes(method: str, path: str, body: bytes | None, headers: Mapping[str, str], keep: bool = False) -> bytes:
    """A request, after which the connection ends unless it is to be kept."""
    lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1"]
    if not keep:
        lines.append("connection: close")
    if body is not None:
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b"")


async def ask(
    port: int,
    method: str,
    path: str,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    leave: Leave = STAY,
    pause_s: float = 0.0,
) -> Answer:
    """One request over a connection of its own; ``body``: JSON, or bytes as they are.

    ``pause_s``: a slow reader waits so long before each kilobyte.
    """
    raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    try:
        async with connection(port, 1024 if pause_s else 2**16) as (reader, writer):
            writer.write(request_bytes(method, path, raw, headers or {})[: leave.sent])
            if leave.sent is not None:
                return _GONE
            if leave.seconds is not None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(1), leave.seconds)
                return _GONE
            return await read_answer(reader, leave.read, pause_s)
    except (ConnectionError, asyncio.IncompleteReadError):
        return _GONE


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_GONE = Answer(0, {}, b"", False)


@contextlib.asynccontextmanager
async def connection(
    port: int, buffer: int = 2**16
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to this machine's ``port``, cut off at the end; ``buffer``: bytes that are read ahead."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=buffer)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def read_answer(reader: asyncio.StreamReader, most: int | None = None, pause_s: float = 0.0) -> Answer:
    """An answer to its end, or until ``most`` bytes of its body have been read."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    status = int(head[0].split()[1])
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    parts: list[bytes] = []
    chunked = headers.get("transfer-encoding") == "chunked"
    left = None if chunked else int(headers.get("content-length", 0))
    try:
        while most is None or sum(map(len, parts)) < most:
            if pause_s:
                await asyncio.sleep(pause_s)
            if chunked:
                size = int(await reader.readuntil(b"\r\n"), 16)
                part = (await reader.readexactly(size + 2))[:-2]
                if not size:
                    return Answer(status, headers, b"".join(parts), True)
            else:
                assert left is not None
                part = await reader.readexactly(left)
                return Answer(status, headers, part, True)
            parts.append(part)
    except (ConnectionError, asyncio.IncompleteReadError, ValueError):
        pass
    return Answer(status, headers, b"".join(parts), False)
