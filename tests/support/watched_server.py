"""Watched server: an engine's thread over an executor with a stand-in model, and the routes that show it, over HTTP."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event as Flag
from threading import Thread
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from live_run import NoSlots, StandIn

from loratory.errors import LoratoryError
from loratory.executor.clock import RealClock
from loratory.executor.executor import Executor
from loratory.executor.generation import Generation
from loratory.executor.tiers import AdapterTiers
from loratory.experiment.policy_spec import policy_factory
from loratory.server.engine_loop import EngineLoop
from loratory.server.metrics import ServerMetrics
from loratory.server.metrics_routes import router
from loratory.server.settings import ServerSettings
from loratory.server.stream import TokenStream
from loratory.serving.config import EngineConfig
from loratory.serving.lora import Adapter
from loratory.serving.plan import StepPlan
from loratory.serving.request import Request as EngineRequest
from loratory.testing import ToyCost

TOKEN = "a-secret"
HELD = EngineConfig(
    max_num_seqs=4, max_num_batched_tokens=512, num_gpu_blocks=2000, max_loras=2, max_cpu_loras=3, max_lora_rank=64
)


class Pace(StandIn):
    """A model that takes its time, and takes none while it is held."""

    def __init__(self, step_s: float) -> None:
        self.step_s = step_s
        self.go = Flag()
        self.go.set()

    def run(self, plan: StepPlan, generations: Mapping[str, Generation], skip: Any = ()) -> Any:
        """See `StandIn`."""
        assert self.go.wait(60)
        time.sleep(self.step_s)
        return super().run(plan, generations, skip)


@dataclass
class WatchedServer:
    """What the page and the metrics show."""

    settings: ServerSettings
    executor: Executor
    loop: EngineLoop
    metrics: ServerMetrics
    pace: Pace
    url: str = ""

    def submit(self, name: str, adapter: str | None, tenant: str, prompt: int = 16, output: int = 100_000) -> None:
        """A request arrives that nobody reads."""
        nobody = asyncio.new_event_loop()
        nobody.close()
        request = EngineRequest(name, adapter, 0.0, prompt, output, tenant)
        self.loop.submit(request, Generation([0] * prompt, output_tokens=output), TokenStream(nobody))


@contextmanager
def watched_server(
    adapters: tuple[Adapter, ...], config: EngineConfig = HELD, *, step_s: float = 0.004, admin: bool = True
) -> Iterator[WatchedServer]:
    """A running server on a free port of this machine. Names of adapters are shown without their version 1."""
    woken = Flag()
    pace = Pace(step_s)
    metrics = ServerMetrics(
        config, "base", lambda name: name.removesuffix("@1"), adapters=adapters, policy="fifo", queue_limit=64
    )
    tiers: AdapterTiers[str] = AdapterTiers(lambda name: name, NoSlots(), config.max_loras, woken.set)
    make = policy_factory("fifo")
    executor = Executor(
        config, adapters, make(), ToyCost(), pace, tiers, RealClock(), woken,  # type: ignore[arg-type]
        sink=metrics.sink, remake=make,
    )  # fmt: skip
    settings = ServerSettings("base", admin_token=TOKEN if admin else "")
    server = WatchedServer(settings, executor, EngineLoop(executor, metrics.token), metrics, pace)
    app = FastAPI()
    app.include_router(router(server))

    @app.post("/admin/policy")
    async def swap(request: Request) -> JSONResponse:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return _error(401, "the admin token is wrong")
        spec = (await request.json())["policy"]
        try:
            make = policy_factory(spec)
            await asyncio.wrap_future(server.loop.call(lambda executor, at: executor.swap(spec, make, at)))
        except LoratoryError as error:
            metrics.swap_refused()
            return _error(400, str(error))
        return JSONResponse({"policy": spec})

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)  # who connects before uvicorn accepts waits
    server.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    http = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = Thread(target=http.run, args=([listener],))
    server.loop.start()
    thread.start()
    try:
        yield server
    finally:
        pace.go.set()
        http.should_exit = True
        thread.join(20)
        listener.close()
        assert server.loop.stop(20) and not thread.is_alive()
        executor.close()


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "x", "param": None, "code": None}}, status)
