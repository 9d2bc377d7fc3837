"""Server: all parts of one server, and `build_server`, which makes them from the settings."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import OrderedDict
from contextlib import ExitStack
from pathlib import Path

import torch

from loratory.adapters.fetch import AdapterFetcher
from loratory.adapters.files.validation import FileLimits
from loratory.adapters.registry.registry import Registry
from loratory.adapters.registry.vllm_lora_modules import ModulePath, parse_lora_modules
from loratory.executor.checkpoint import Checkpoint
from loratory.executor.clock import Clock, RealClock
from loratory.executor.cpu_threads import use_threads
from loratory.executor.executor import Executor
from loratory.executor.machine import Machine
from loratory.executor.model import Model, resolve_device
from loratory.experiment.policy_spec import policy_factory
from loratory.models.released import known_as, resolve_checkpoint
from loratory.server.base_models import BaseModels
from loratory.server.catalogue import AdapterCatalogue, ServedAdapter
from loratory.server.cost import server_cost
from loratory.server.engine_loop import EngineLoop
from loratory.server.engine_settings import engine_config, target_modules
from loratory.server.exchange import Exchange
from loratory.server.headers import Caller
from loratory.server.limits import RequestLimits
from loratory.server.live import Live
from loratory.server.metrics import ServerMetrics
from loratory.server.policy_files import canonical_spec
from loratory.server.recorded_scenario import ServedSetup
from loratory.server.registry_names import RegistryNames
from loratory.server.sampling_fields import SamplingDefaults
from loratory.server.serving_dtype import serving_dtype
from loratory.server.settings import ServerSettings
from loratory.server.tokenizer import ServerTokenizer
from loratory.serving.events import AdapterRemoved, EventHandlers, Sink, combined
from loratory.serving.request import BASE_TENANT
from loratory.user_files import adapter_cache, user_models

LOG = logging.getLogger("loratory.server")

RECENT_IDS = 10_000
"""Request ids of clients that are remembered, so that one used again gets a suffix: the engine's ids are unique."""

STOP_S = 10.0
"""Seconds that the step in progress may take when the server stops."""


class Server:
    """One server. `build_server` makes it, `start` begins, `close` ends; between them it belongs to one event loop.

    ``recording`` is there where the settings ask for one.
    """

    def __init__(
        self,
        settings: ServerSettings,
        machine: Machine,
        executor: Executor,
        loop: EngineLoop,
        clock: Clock,
        tokenizer: ServerTokenizer,
        catalogue: AdapterCatalogue,
        metrics: ServerMetrics,
        live: Live,
        defaults: SamplingDefaults,
        modules: tuple[ModulePath, ...],
        resources: ExitStack,
    ) -> None:
        self.settings = settings
        self.machine = machine
        self.executor = executor
        self.loop = loop
        self.clock = clock
        self.tokenizer = tokenizer
        self.catalogue = catalogue
        self.defaults = defaults
        self.metrics = metrics
        self.live = live
        self.admin = live.admin
        self.recording = live.recording
        self.started_unix = time.time()
        self.draining = False
        """Whether new requests get 503."""
        self.stopping = False
        """Whether it drains because it ends."""
        self.context_limit = executor.engine.ledger.context_limit
        """Tokens that prompt and output of a request may have."""
        self.eos_token_ids = frozenset(machine.model.config.eos_token_ids) | tokenizer.eos_token_ids
        self.limits = RequestLimits(settings.max_queue, settings.tenant_requests, self._running, metrics.refused)
        self._modules = modules
        self._resources = resources
        self._recent: OrderedDict[str, None] = OrderedDict()
        self._event_loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    @property
    def policy_spec(self) -> str:
        """The policy in force."""
        return self.executor.policy_spec

    @property
    def name(self) -> str:
        """What the base model is called in answers."""
        return self.catalogue.base_names[0]

    async def start(self) -> None:
        """Begin to run steps, and give the engine the adapters of the command line. Raises `InputError` for them, and
        for a shadow that cannot be."""
        self._event_loop = asyncio.get_running_loop()
        self.loop.start()
        await self.live.start()
        for module in self._modules:
            await self.catalogue.load_module(module)

    def tenant(self, caller: Caller, adapter: ServedAdapter | None) -> str:
        """The tenant of a caller's request for an adapter, or for the base model."""
        # As in scenarios, an adapter whose tenant nobody names is its own tenant, whatever its version.
        own = BASE_TENANT if adapter is None else adapter.tenant or adapter.name
        return caller.tenant or own

    def exchange(self, prefix: str, caller: Caller, adapter: ServedAdapter | None) -> Exchange:
        """A request on its way; its id is made of ``prefix`` and the client's."""
        request_id = f"{prefix}-{caller.request_id}"
        if request_id in self._recent:
            request_id = f"{request_id}-{uuid.uuid4().hex[:8]}"
        self._recent[request_id] = None
        if len(self._recent) > RECENT_IDS:
            self._recent.popitem(last=False)
        tenant = self.tenant(caller, adapter)
        return Exchange(self.loop, self.limits, self.tokenizer, caller, adapter, tenant, request_id)

    async def drain(self, seconds: float) -> None:
        """Take no more requests; return when those in progress have ended, or when the seconds have passed."""
        self.draining = self.stopping = True
        until = asyncio.get_running_loop().time() + seconds
        self.limits.draining_s = seconds
        while self.limits.in_progress and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.05)

    def stop(self) -> bool:
        """End the engine's thread; what is in progress ends as aborted. False where its step takes too long."""
        self.draining = self.stopping = True
        self.limits.draining_s = 1.0
        return self.loop.stop(STOP_S)

    def close(self) -> None:
        """Stop, and give back threads, memory and files. Further calls do nothing."""
        if self._closed:
            return
        self._closed = True
        self.stop()
        self.live.close()
        self.catalogue.close()
        self._resources.close()

    def forget(self, name: str) -> None:
        """The engine has forgotten an adapter. In the engine's thread."""
        if self._event_loop is not None and not self._event_loop.is_closed():
            self._event_loop.call_soon_threadsafe(self.catalogue.removed, name)

    def _running(self) -> tuple[int, int]:
        ledger = self.executor.engine.ledger
        return len(ledger.running), ledger.seq_budget + len(ledger.running)


def build_server(settings: ServerSettings, clock: Clock | None = None) -> Server:
    """Load the checkpoint and make all parts. Raises `InputError` for what the settings get wrong.

    Slots, KV blocks and the policy are made here; adapters come when the server has started.
    """
    with ExitStack() as resources:
        return _build(settings, clock or RealClock(), resources)


def _build(settings: ServerSettings, clock: Clock, resources: ExitStack) -> Server:
    """What is opened is closed by ``resources``, unless the server has taken them over."""
    use_threads(settings.threads, "--threads")
    modules = parse_lora_modules(settings.lora_modules)
    spec = canonical_spec(settings.policy)
    policy = policy_factory(spec, settings.policy_timeout_s)
    names = None
    if settings.registry is not None:
        names = RegistryNames(Registry(settings.registry, create=False, hold=False))
        resources.callback(names.close)
        names.open()
    cache = resources.enter_context(adapter_cache())
    folder = resolve_checkpoint(settings.checkpoint, user_models())
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    checkpoint = Checkpoint.open(folder)
    dtype = serving_dtype(settings.dtype, checkpoint.config, device)
    model = Model(checkpoint.config, checkpoint, dtype, resolve_device(device))
    tokenizer = ServerTokenizer.load(folder)
    resources.callback(tokenizer.close)
    targets = target_modules(settings)
    config = engine_config(settings, model, targets)
    machine = Machine(model, config, {}, targets, lora=True)
    servers: list[Server] = []
    sinks: list[Sink] = [EventHandlers({AdapterRemoved: lambda event: servers[0].forget(event.adapter)})]
    metrics = ServerMetrics(
        config, served_names(settings)[0], lambda name: servers[0].catalogue.shown(name) if servers else name,
        policy=policy.spec, queue_limit=settings.max_queue,
    )  # fmt: skip
    sinks.append(metrics.sink)
    cost = server_cost(settings, machine)
    bases = BaseModels(
        served_names(settings),
        [settings.checkpoint, str(folder.resolve()), *settings.base_model_names, *known_as(folder)],
    )
    setup = ServedSetup(
        str(folder.resolve()), config, spec, str(model.dtype).removeprefix("torch."), device,
        str(machine.about()["device_name"]), settings.threads, bases,
    )  # fmt: skip
    live = Live(settings, setup, cost, (), machine.files.get, time.time())
    resources.callback(live.close)
    executor = machine.executor(
        (), policy(), cost, clock, sink=combined(*sinks, live.sink), record=live.record,
        policy_timeout_s=settings.policy_timeout_s, remake=policy,
    )  # fmt: skip
    resources.callback(executor.close)
    loop = EngineLoop(executor, metrics.token)
    live.attach(loop)
    limits = FileLimits(max_lora_rank=config.max_lora_rank, base=model.shape)
    catalogue = AdapterCatalogue(AdapterFetcher(cache, limits), loop, bases, model.dtype.itemsize, names)
    servers.append(
        Server(
            settings, machine, executor, loop, clock, tokenizer, catalogue, metrics, live,
            SamplingDefaults.read(folder), modules, resources.pop_all(),
        )
    )  # fmt: skip
    return servers[0]


def served_names(settings: ServerSettings) -> tuple[str, ...]:
    """What the base model is called, the name for answers first."""
    return settings.served_names or (Path(settings.checkpoint).resolve().name,)
