"""EngineLoop: requests in from coroutines, tokens out, orders between steps; nobody is left waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

import pytest
from live_run import stand_in_executor

from loratory.errors import LoratoryError
from loratory.executor.clock import RealClock
from loratory.executor.executor import Executor
from loratory.executor.generation import Generation
from loratory.policies.fifo import Fifo
from loratory.policy import Policy, want
from loratory.server.engine_loop import EngineLoop
from loratory.server.stream import Finish, TokenStream
from loratory.serving.config import EngineConfig
from loratory.serving.request import Request
from loratory.testing import ToyCost
from loratory.testing.world import World, adapter, workload

ADAPTERS = (adapter(1), adapter(2))
CONFIG = EngineConfig(max_loras=1, max_num_seqs=4, max_num_batched_tokens=64, num_gpu_blocks=200, block_size=4)
WORLD = World(workload([], ADAPTERS), ADAPTERS, CONFIG, ToyCost())


class Never(Policy):
    """Admits nothing."""

    spec = "never"

    def schedule(self, view: Any) -> Any:
        return
        yield


class Raises(Policy):
    """Raises once a request waits."""

    spec = "raises"

    def schedule(self, view: Any) -> Any:
        for request in view.unblocked():
            yield from want(view, request)
            raise ValueError("no")


@contextmanager
def loop_of(make: Callable[[], Any] = Fifo, stall_s: float = 0.05) -> Iterator[EngineLoop]:
    """A running loop over a stand-in model."""
    executor = stand_in_executor(WORLD, make, RealClock())
    loop = EngineLoop(executor, stall_s=stall_s)
    loop.start()
    try:
        yield loop
    finally:
        assert loop.stop(10)
        executor.close()


def send(loop: EngineLoop, name: str, tokens: int = 5, **more: Any) -> TokenStream:
    """Submit a request of four prompt tokens."""
    stream = TokenStream(asyncio.get_running_loop())
    loop.submit(Request(name, more.pop("adapter", "a1"), 0.0, 4, tokens, **more), Generation([0] * 4), stream)
    return stream


async def read(stream: TokenStream) -> tuple[list[int], Finish]:
    """All tokens of a stream, and its end."""
    tokens: list[int] = []
    while True:
        more, finish = await asyncio.wait_for(stream.take(), 20)
        tokens += [each.token for each in more]
        if finish is not None:
            return tokens, finish


def test_requests_of_many_coroutines_are_answered() -> None:
    async def main() -> None:
        with loop_of() as loop:
            streams = [send(loop, str(n), 1 + n % 7, adapter=("a1", "a2", None)[n % 3]) for n in range(60)]
            for n, (tokens, finish) in enumerate(await asyncio.gather(*map(read, streams))):
                assert tokens == list(range(1 + n % 7)) and finish.status == "completed"
            assert loop.alive

    asyncio.run(main())


def test_orders_come_between_steps_in_turn() -> None:
    async def main() -> None:
        with loop_of() as loop:
            stream, written = send(loop, "0", 700), Event()

            def count(executor: Executor, at: float) -> int:
                assert written.wait(20)  # the order to abort is there before the next step
                return executor.engine.unfinished

            seen = loop.call(count)
            loop.abort("0", "gone")
            written.set()
            assert await asyncio.wrap_future(seen) == 1
            tokens, finish = await read(stream)
            assert finish == Finish("aborted", "gone") and len(tokens) < 700
            with pytest.raises(ZeroDivisionError):
                await asyncio.wrap_future(loop.call(lambda executor, at: 1 // 0))
            refused = await read(send(loop, "1", adapter="nobody"))
            assert refused[1].status == "rejected" and "nobody" in refused[1].why

    asyncio.run(main())


def test_a_deadline_counts_from_the_arrival() -> None:
    async def main() -> None:
        with loop_of() as loop:
            await read(send(loop, "0", deadline=2.5))
            (request,) = loop.executor.recording().requests
            assert request.deadline == request.arrival + 2.5 and request.arrival > 0

    asyncio.run(main())


def test_a_policy_that_admits_nothing_gives_way() -> None:
    async def main() -> None:
        with loop_of() as loop:
            await asyncio.wrap_future(loop.call(lambda executor, at: executor.swap("never", Never, at)))
            _, finish = await read(send(loop, "0"))
            assert finish.status == "completed"
            assert loop.executor.policy_spec == "Fifo"
            (change, back) = loop.executor.recording().changes
            assert (change.kind, back.kind) == ("swap", "put_back") and "although nothing runs" in back.values[0]

    asyncio.run(main())


def test_without_another_policy_what_waits_ends_with_the_reason() -> None:
    async def main() -> None:
        with loop_of(Never) as loop:
            _, finish = await read(send(loop, "0"))
            assert finish.status == "failed" and "left 1 requests waiting" in finish.why
            assert loop.alive

    asyncio.run(main())


def test_a_policy_that_raises_with_none_before_it_ends_the_loop() -> None:
    async def main() -> None:
        with loop_of(Raises) as loop:
            _, finish = await read(send(loop, "0"))
            assert finish.status == "failed" and "ValueError: no" in finish.why
            _, finish = await read(send(loop, "1"))
            assert finish.status == "failed"
            assert not loop.alive and "ValueError: no" in loop.failure

    asyncio.run(main())


def test_what_is_in_flight_when_it_stops_is_told() -> None:
    async def main() -> None:
        executor = stand_in_executor(WORLD, Never, RealClock())
        loop = EngineLoop(executor, stall_s=60)
        loop.start()
        stream = send(loop, "0")
        await asyncio.wrap_future(loop.call(lambda executor, at: None))
        assert loop.stop(10)
        _, finish = await read(stream)
        assert finish == Finish("aborted", "the server is shutting down")
        _, finish = await read(send(loop, "1"))
        assert finish == Finish("failed", "the server is shutting down")
        with pytest.raises(LoratoryError):
            loop.call(lambda executor, at: None).result(1)
        executor.close()

    asyncio.run(main())
