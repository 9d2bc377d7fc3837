"""1,000 streams open at once: all are served, those who do not read stall nobody, and SIGTERM lets all of them end."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from raw_http import Answer, read_answer, request_bytes
from running_server import GREEDY, RunningServer, TinyFiles

STREAMS = 1000
SILENT = 50
"""Of them, clients that read nothing until the others have their answers."""
SILENT_TOKENS = 450


@pytest.fixture(scope="module", autouse=True)
def _files() -> None:
    """Each stream is two open files here, where client and server are one process."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * STREAMS + 200:
        pytest.skip(f"this process may open {hard} files only, and {STREAMS} streams need two each: raise ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@pytest.fixture
def running(tiny: TinyFiles) -> Iterator[RunningServer]:
    engine = {"num_gpu_blocks": 8000, "max_num_seqs": 256, "max_loras": 2}
    with RunningServer(tiny.settings(engine=engine, max_queue=STREAMS)) as running:
        yield running


class Client:
    """A client of one stream, with a small buffer of its own."""

    def __init__(self, port: int, model: str, prompt: str, long: bool) -> None:
        self.key = (model, prompt)
        self._port = port
        self._body = GREEDY | {"model": model, "prompt": prompt, "stream": True}
        if long:  # more than the buffers between server and client hold
            self._body |= {"max_tokens": SILENT_TOKENS, "logprobs": 20}

    async def send(self) -> None:
        """Connect and ask."""
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        made.setblocking(False)
        await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", self._port))
        self._reader, self._writer = await asyncio.open_connection(sock=made, limit=1024)
        raw = json.dumps(self._body).encode()
        self._writer.write(request_bytes("POST", "/v1/completions", raw, {}))
        await self._writer.drain()

    async def read(self) -> Answer:
        """The whole answer."""
        try:
            return await read_answer(self._reader)
        finally:
            self._writer.transport.abort()


def said(answer: Answer) -> str:
    """The text of a stream that came to its end."""
    assert answer.status == 200 and answer.whole and answer.body.endswith(b"data: [DONE]\n\n"), answer
    choices = [event["choices"][0] for event in answer.events]
    assert choices[-1]["finish_reason"] == "length"
    return "".join(choice["text"] for choice in choices)


def ask_all(running: RunningServer, silent: int, then: Any = None) -> None:
    """Open all streams while the engine is held back; every one gets what a quiet server answers."""
    port = int(running.url.rpartition(":")[2])
    prompts = ("hello", "a longer prompt than the others are", "x")
    models = ("tiny", "a0", "a1", "a2")
    quiet = {(model, prompt): running.text(model, prompt=prompt) for model in models for prompt in prompts}

    async def run() -> None:
        clients = [Client(port, models[i % 4], prompts[i % 3], i < silent) for i in range(STREAMS)]
        with running.held():
            for start in range(0, STREAMS, 100):
                await asyncio.gather(*(client.send() for client in clients[start : start + 100]))
            await asyncio.to_thread(running.until, lambda: running.server.limits.in_progress == STREAMS)
            if then is not None:
                then()
        answers = await asyncio.gather(*(client.read() for client in clients[silent:]))
        texts = Counter(client.key for client, answer in zip(clients[silent:], answers, strict=True)
                        if said(answer) == quiet[client.key])  # fmt: skip
        assert texts.total() == STREAMS - silent
        for client in clients[:silent]:
            assert said(await client.read()).startswith(quiet[client.key].rstrip("\ufffd"))

    asyncio.run(run())
    running.until(running.idle)


@pytest.mark.slow
def test_a_thousand_streams_are_served_while_some_read_nothing(running: RunningServer) -> None:
    ask_all(running, SILENT)
    assert running.server.executor.engine.unfinished == 0


@pytest.mark.slow
def test_sigterm_lets_a_thousand_streams_end(running: RunningServer) -> None:
    def stop() -> None:
        running.stop()
        running.until(lambda: running.server.draining)

    ask_all(running, 0, stop)
