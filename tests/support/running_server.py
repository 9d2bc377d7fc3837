"""RunningServer: a server under uvicorn in a thread, on a tiny random model, whose steps a test can hold back."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from loratory.executor.random_checkpoint import model_config, random_adapter, random_checkpoint
from loratory.server.lifetime import Lifetime
from loratory.server.run import bind
from loratory.server.server import Server, build_server
from loratory.server.settings import ServerSettings

T = TypeVar("T")

PATIENCE_S = 30.0
"""Seconds after which what a test waits for counts as never coming."""


class TinyFiles:
    """A tiny checkpoint called ``tiny``, and adapters of it called ``a0``, ``a1`` ..., which answer differently."""

    def __init__(self, folder: Path, adapters: int = 3) -> None:
        self.folder = folder
        self.config = model_config("tiny-llama")
        self.checkpoint = random_checkpoint(folder / "tiny", self.config)
        self.adapters = {f"a{index}": self.adapter(f"a{index}", rank=4, seed=index) for index in range(adapters)}

    def adapter(self, name: str, **options: Any) -> Path:
        """One adapter more, in a folder of its own."""
        return random_adapter(self.folder / name, self.config, **({"rank": 4} | options))

    def settings(self, **changes: Any) -> ServerSettings:
        """Settings for a quick server with these adapters."""
        modules = tuple(f"{name}={path}" for name, path in self.adapters.items())
        plain = ServerSettings(
            str(self.checkpoint),
            port=0,
            dtype="float32",
            threads=1,
            engine={"num_gpu_blocks": 1000, "max_num_seqs": 32, "max_loras": 2},
            lora_modules=modules,
            drain_s=PATIENCE_S,
            measure_s=0,
        )
        return replace(plain, **changes)


class RunningServer:
    """A context: requests are answered within it, and everything has ended after it."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.url = ""
        self.failure: BaseException | None = None
        self._ready = threading.Event()
        self._holding = False
        self._steps = threading.Semaphore(0)
        self.computed = 0
        """Steps that the model has computed."""

    def __enter__(self) -> Self:
        self._listening = bind(self.settings.host, self.settings.port)
        self.server: Server = build_server(self.settings)
        self._hold_back()
        self._thread = threading.Thread(target=self._run, name="test-server")
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        if self.failure is not None:
            self._thread.join()
            raise self.failure
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()
        self._holding = False
        self.stop()
        if kind is not None:
            self.stop()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        if self.failure is not None:
            raise self.failure

    def stop(self) -> None:
        """As SIGTERM does."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self.lifetime.stop)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within, the model computes a step only where `step` or `meanwhile` let it."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False

    def step(self, number: int = 1) -> None:
        """While steps are held back: let the model compute ``number`` of them, and wait until it has."""
        wanted = self.computed + number
        for _ in range(number):
            self._steps.release()
        self.until(lambda: self.computed >= wanted)

    def meanwhile(self, ask: Callable[[], T]) -> T:
        """While steps are held back: the answer to what the engine takes in between two steps; few steps are made."""
        with ThreadPoolExecutor(1) as thread:
            asked = thread.submit(ask)
            looks = count()

            def answered() -> bool:
                # a message is taken in before the next step; what follows from it is told after one more
                if self.server.loop._mailbox or next(looks) % 10 == 9:
                    self._steps.release()
                return asked.done()

            self.until(answered)
            return asked.result()

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        """POST JSON."""
        return self.http.post(path, json=body, headers=headers)

    def complete(self, prompt: Any = "hello", **fields: Any) -> dict[str, Any]:
        """A completion, greedy and of eight tokens unless ``fields`` say otherwise."""
        answer = self.post("/v1/completions", GREEDY | {"prompt": prompt} | fields)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def text(self, model: str | None = None, **fields: Any) -> str:
        """The text of one."""
        found: str = self.complete(model=model, **fields)["choices"][0]["text"]
        return found

    def events(self, path: str, body: dict[str, Any], **headers: str) -> list[dict[str, Any]]:
        """The events of a stream, which ends with [DONE]."""
        with self.http.stream("POST", path, json=body | {"stream": True}, headers=headers) as answer:
            assert answer.status_code == 200, answer.read()
            lines = [line for line in answer.iter_lines() if line]
        assert lines[-1] == "data: [DONE]" and all(line.startswith("data: ") for line in lines)
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until something is true, as it becomes in another thread."""
        pause = threading.Event()
        for _ in range(int(PATIENCE_S / 0.005)):
            if condition():
                return
            pause.wait(0.005)
        raise AssertionError("what the test waits for did not come")

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        url = httpx.URL(self.url)
        assert url.port is not None
        return url.host, url.port

    def idle(self) -> bool:
        """Whether no request is in progress, here and in the engine."""
        ledger = self.server.executor.engine.ledger
        return not (self.server.limits.in_progress or ledger.sequences or ledger.kv.used)

    def _hold_back(self) -> None:
        runner = self.server.executor.runner
        run = runner.run

        def waits(*arguments: Any) -> Any:
            while self._holding and not self._steps.acquire(timeout=0.01):
                pass
            computed = run(*arguments)
            self.computed += 1
            return computed

        runner.run = waits  # type: ignore[method-assign]

    def _run(self) -> None:
        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            self.lifetime = Lifetime(self.server, self._listening)
            await self.lifetime.run(self._begin)

        try:
            asyncio.run(serve())
        except BaseException as error:
            self.failure = error
        finally:
            self.server.close()
            self._listening.close()
            self._ready.set()

    def _begin(self, url: str) -> None:
        self.url = url
        self._ready.set()


GREEDY = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}


def raw_completion(body: dict[str, Any], key: str = "none") -> bytes:
    """A POST of a completion as it goes over the wire."""
    content = json.dumps(body).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {key}\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content
