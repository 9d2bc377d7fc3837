"""admin_world: a server's parts around an executor whose model is a stand-in, and its admin routes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient
from live_run import stand_in_executor

from loratory.executor.clock import RealClock
from loratory.executor.generation import Generation
from loratory.experiment.policy_spec import policy_factory
from loratory.server import admin_routes
from loratory.server.cost import ASSUMED
from loratory.server.engine_loop import EngineLoop
from loratory.server.live import Live
from loratory.server.openai_errors import ApiError, install_handlers
from loratory.server.recorded_scenario import ServedSetup
from loratory.server.settings import ServerSettings
from loratory.server.stream import TokenStream
from loratory.serving.config import EngineConfig
from loratory.serving.request import Request
from loratory.sim.cost.profile import ProfileCost
from loratory.testing.world import World, adapter, workload

TOKEN = "a-token-of-the-operator"
ADAPTERS = tuple(adapter(number) for number in (1, 2, 3))
CONFIG = EngineConfig(
    max_loras=2, max_num_seqs=4, max_num_batched_tokens=64, num_gpu_blocks=400, block_size=4, max_model_len=1000
)
COST = ProfileCost(ASSUMED)
WORLD = World(workload([], ADAPTERS), ADAPTERS, CONFIG, COST)


class FewAdapters:
    """In place of a catalogue: the adapters of the world, by name."""

    async def find(self, name: str) -> Any:
        """See `AdapterCatalogue.find`."""
        if name == "base":
            return None
        if name not in {each.name for each in ADAPTERS}:
            raise ApiError(404, f"The model `{name}` does not exist", param="model")
        return SimpleNamespace(lora=SimpleNamespace(lora_name=name))


@dataclass
class AdminWorld:
    """A running server without its HTTP routes for clients."""

    settings: ServerSettings
    live: Live
    loop: EngineLoop
    client: TestClient
    streams: dict[str, TokenStream] = field(default_factory=dict)
    events: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    @property
    def executor(self) -> Any:
        """The executor."""
        return self.loop.executor

    def send(self, name: str, tokens: int = 5, adapter: str | None = "a1", tenant: str = "t") -> None:
        """A request arrives."""
        stream = self.streams[name] = TokenStream(self.events)
        self.loop.submit(Request(name, adapter, 0.0, 4, tokens, tenant=tenant), Generation([0] * 4), stream)

    def ends(self) -> dict[str, str]:
        """Wait for the end of each request; its status by id."""

        async def read(stream: TokenStream) -> str:
            while True:
                _, finish = await asyncio.wait_for(stream.take(), 30)
                if finish is not None:
                    return finish.status

        async def read_all() -> dict[str, str]:
            return {name: await read(stream) for name, stream in self.streams.items()}

        return self.events.run_until_complete(read_all())

    def post(self, path: str, body: Any = None, token: str = TOKEN) -> Any:
        """POST /admin/..., with a token."""
        return self.client.post(f"/admin/{path}", json=body, headers={"authorization": f"Bearer {token}"})

    def get(self, path: str) -> Any:
        """GET /admin/..., with a token."""
        return self.client.get(f"/admin/{path}", headers={"authorization": f"Bearer {TOKEN}"})

    def wait_until(self, done: Any) -> None:
        """Wait for a condition, a minute at most."""
        until = time.monotonic() + 60
        while not done():
            assert time.monotonic() < until, "nothing happened for a minute"
            time.sleep(0.01)


@contextmanager
def admin_world(policy: str = "fifo", model: Path | None = None, **settings: Any) -> Iterator[AdminWorld]:
    """A server that runs, until the block ends. ``model``: its checkpoint, for a recording's scenario."""
    given = ServerSettings(str(model or "model"), policy, **{"admin_token": TOKEN, **settings})
    served = ServedSetup(given.checkpoint, CONFIG, policy, "float32", "cpu")
    live = Live(given, served, COST, ADAPTERS, lambda name: None, time.time())
    clock = RealClock()
    executor = stand_in_executor(
        WORLD, policy_factory(policy), clock, given.policy_timeout_s, live.record, sink=live.sink
    )
    loop = EngineLoop(executor, stall_s=0.2)
    live.attach(loop)
    server = SimpleNamespace(
        settings=given, executor=executor, catalogue=FewAdapters(), limits=SimpleNamespace(draining_s=None),
        metrics=SimpleNamespace(swap_refused=lambda: None, max_num_seqs=lambda limit: None), admin=live.admin,
        recording=live.recording, draining=False, stopping=False,
    )  # fmt: skip
    app = FastAPI()
    install_handlers(app)
    app.include_router(admin_routes.router(server))
    app.state.server = server
    loop.start()
    with TestClient(app) as client:
        assert client.portal is not None
        try:
            client.portal.call(live.start)
            world = AdminWorld(given, live, loop, client)
            yield world
            world.events.close()
        finally:
            assert loop.stop(10)
            live.close()
            executor.close()


def tiny_model(folder: Path, **more: Any) -> Path:
    """A config.json of a tiny Llama, which is all that a simulation reads of a checkpoint."""
    import json

    config: Mapping[str, Any] = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
        "max_position_embeddings": 1024, "torch_dtype": "float32", "tie_word_embeddings": True, **more,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder
