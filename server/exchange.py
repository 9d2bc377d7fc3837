"""Exchange: one HTTP request on its way through the engine: it comes in, its outputs are read, it leaves.

begin     the limits let it in, its outputs are submitted
pieces    what the engine has made since, until all outputs have ended, the client has gone, or one has failed
end       what is left is aborted, and its places are free; in every case, exactly once
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from loratory.executor.executor import Executor
from loratory.server.catalogue import ServedAdapter
from loratory.server.engine_loop import EngineLoop
from loratory.server.headers import Caller
from loratory.server.limits import RequestLimits
from loratory.server.output import DEADLINE_PASSED, Output, Piece, joined
from loratory.server.sampling_fields import Sampling
from loratory.server.stream import TokenStream
from loratory.server.tokenizer import ServerTokenizer
from loratory.serving.request import Request

Receive = Callable[[], Awaitable[Any]]


class ClientGoneError(Exception):
    """The client has closed the connection: nobody reads an answer."""


class Exchange:
    """The outputs of one request. All methods belong to one event loop's thread.

    ``request_id``: of the answer; the engine's requests are called so, with the output's number if there are several.
    """

    def __init__(
        self,
        loop: EngineLoop,
        limits: RequestLimits,
        tokenizer: ServerTokenizer,
        caller: Caller,
        adapter: ServedAdapter | None,
        tenant: str,
        request_id: str,
    ) -> None:
        self.caller = caller
        self.adapter = adapter
        self.tenant = tenant
        self.request_id = request_id
        self.outputs: list[Output] = []
        self.gone = False
        self._loop = loop
        self._limits = limits
        self._tokenizer = tokenizer
        self._ready = asyncio.Event()
        self._entered = 0
        self._watch: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin(
        self,
        prompts: Sequence[list[int]],
        max_tokens: Sequence[int],
        outputs: int,
        sampling: Sampling,
        priority: int,
        receive: Receive,
        whole: bool,
    ) -> None:
        """Submit ``outputs`` outputs for each prompt. ``whole``: nobody reads them before their ends.

        Raises `ApiError` where the limits do not let them in; nothing is submitted then.
        """
        total = len(prompts) * outputs
        self._limits.enter(self.tenant, total)
        self._entered = total
        event_loop = asyncio.get_running_loop()
        self._watch = event_loop.create_task(self._watch_client(receive))
        name = None if self.adapter is None else self.adapter.lora.lora_name
        for index in range(total):
            prompt = prompts[index // outputs]
            request_id = self.request_id if total == 1 else f"{self.request_id}-{index}"
            request = Request(
                request_id,
                name,
                0.0,
                len(prompt),
                max_tokens[index // outputs],
                self.tenant,
                priority=priority,
                deadline=self.caller.deadline_s,
            )
            stream = TokenStream(event_loop, self._ready, whole=whole, on_finish=self._leave)
            self.outputs.append(Output(index, request_id, stream, sampling, self._tokenizer))
            generation = sampling.generation(prompt, index % outputs, self._tokenizer)
            self._loop.submit(request, generation, stream)
        if self.caller.deadline_s is not None:
            self._timer = event_loop.call_later(self.caller.deadline_s, self._deadline)

    async def pieces(self) -> list[tuple[Output, Piece]]:
        """What has come since the last call, waiting for something; empty when all outputs have ended.

        Raises `ApiError` when an output did not complete, `ClientGoneError` when the client has gone.
        """
        while True:
            found = []
            for output in self.outputs:
                if not output.done and (piece := output.read()) is not None:
                    found.append((output, piece))
            if found or all(output.done for output in self.outputs):
                return found
            await self._ready.wait()
            self._ready.clear()
            if self.gone:
                raise ClientGoneError

    async def whole(self) -> list[tuple[Output, Piece]]:
        """One piece for each output, in order, when all have ended. Raises as `pieces`."""
        parts: dict[int, list[Piece]] = {output.index: [] for output in self.outputs}
        while pieces := await self.pieces():
            for output, piece in pieces:
                parts[output.index].append(piece)
        return [(output, joined(parts[output.index])) for output in self.outputs]

    def end(self) -> None:
        """Abort what has not ended, and give up its places. Further calls do nothing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        for output in self.outputs:
            if output.finish is None:
                self._loop.abort(output.request_id, "the client has gone" if self.gone else "the answer was given up")
        while self._entered:
            self._leave()

    def _leave(self) -> None:
        """An output has ended: its place is free, though others go on, and though its reader may be slow."""
        if self._entered:
            self._entered -= 1
            self._limits.leave(self.tenant)

    async def _watch_client(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self._ready.set()

    def _deadline(self) -> None:
        """End the outputs that have no token and do not run: not admitted yet, or preempted. Those that run go on."""
        names = [output.request_id for output in self.outputs if output.first_at is None]

        def expire(executor: Executor, at: float) -> None:
            for name in names:
                sequence = executor.engine.ledger.sequences.get(name)  # None: arrived just now, or ended
                if sequence is None or (sequence.state == "waiting" and sequence.first_token_at is None):
                    executor.abort(name, DEADLINE_PASSED, at)

        self._loop.call(expire)
