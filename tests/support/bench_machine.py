"""A tiny machine, its adapters, a clock that jumps, and transformers with PEFT as the oracle of its tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Event as Flag
from typing import Any

import numpy as np
import torch

from loratory.adapters.fetch import AdapterFetcher
from loratory.adapters.files.validation import FileLimits
from loratory.adapters.sources.cache import AdapterCache
from loratory.adapters.verified import VerifiedAdapter
from loratory.executor.drive import drive
from loratory.executor.executor import Executor
from loratory.executor.generation import Generation
from loratory.executor.machine import Machine
from loratory.executor.model import Model
from loratory.executor.model_config import ModelConfig
from loratory.executor.random_checkpoint import model_config, random_adapter, random_checkpoint
from loratory.serving.config import EngineConfig
from loratory.serving.events import Ended
from loratory.serving.lora import Adapter, LoRARequest
from loratory.serving.policy import Policy
from loratory.serving.request import Request
from loratory.serving.run_end import RunEnd
from loratory.serving.workload import Workload

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
VARIANTS: tuple[Mapping[str, Any], ...] = (
    {"rank": 4},
    {"rank": 8, "alpha": 4.0, "target_modules": ("q_proj", "v_proj")},
    {"rank": 3, "rslora": True, "target_modules": ("o_proj", "down_proj", "gate_proj")},
    {"rank": 4, "rank_pattern": {"layers.0.self_attn.q_proj": 7}, "alpha_pattern": {"up_proj": 3.0}},
    {"rank": 2, "layers": [1], "target_modules": ("k_proj", "up_proj")},
)
"""Adapters of every kind that is accepted: subsets of modules and layers, rsLoRA, patterns."""


class JumpingClock:
    """Advances by ``tick_s`` whenever it is asked, and jumps to the end of every wait but those for a load."""

    def __init__(self, tick_s: float = 0.01) -> None:
        self._now = 0.0
        self._tick_s = tick_s

    def now(self) -> float:
        """See `loratory.executor.clock.Clock.now`."""
        self._now += self._tick_s
        return self._now

    def wait(self, until: float, woken: Flag) -> None:
        """See `loratory.executor.clock.Clock.wait`."""
        if until == float("inf"):
            assert woken.wait(60), "nothing happened for a minute"
        else:
            self._now = max(self._now, until)


@dataclass(frozen=True)
class Zoo:
    """A checkpoint on disk and its adapters."""

    folder: Path
    config: ModelConfig
    adapters: tuple[Adapter, ...]
    files: Mapping[str, VerifiedAdapter]

    @classmethod
    def make(cls, folder: Path, family: str, variants: Sequence[Mapping[str, Any]] = VARIANTS) -> Zoo:
        """Write it. ``family`` is one of the tiny shapes."""
        config = model_config(f"tiny-{family}")
        random_checkpoint(folder / "model", config)
        limits = FileLimits(base=config.shape)
        fetcher = AdapterFetcher(AdapterCache(folder / "cache"), limits)
        adapters: list[Adapter] = []
        files: dict[str, VerifiedAdapter] = {}
        for index, variant in enumerate(variants, 1):
            name = f"a{index}"
            place = random_adapter(folder / name, config, seed=index, **variant)
            files[name] = fetcher.verified(name, str(place), None)
            rank = files[name].description.rank
            adapters.append(Adapter(LoRARequest(name, index, str(place)), rank, files[name].description.bytes))
        return cls(folder, config, tuple(adapters), files)

    def machine(self, config: EngineConfig, dtype: str = "float32", graphs: bool | None = None) -> Machine:
        """A machine over it."""
        return Machine(Model.load(self.folder / "model", dtype), config, self.files, graphs=graphs)


class Oracle:
    """Greedy tokens and logits by transformers and PEFT, one request at a time."""

    def __init__(self, zoo: Zoo, dtype: torch.dtype = torch.float32) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        folder = str(zoo.folder / "model")
        self._base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self._tuned: Any = None
        for name, file in zoo.files.items():
            if self._tuned is None:
                fresh = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
                given = {"adapter_name": name, "autocast_adapter_dtype": False}
                self._tuned = PeftModel.from_pretrained(fresh, str(file.folder), **given).eval()
            else:
                self._tuned.load_adapter(str(file.folder), adapter_name=name, autocast_adapter_dtype=False)
        self._tuned = self._tuned.to(dtype)
        self.tokens = cache(self._tokens)

    def logits(self, context: Sequence[int], adapter: str | None) -> torch.Tensor:
        """(T, vocab) logits of a context."""
        if adapter is None:
            model = self._base
        else:
            self._tuned.set_adapter(adapter)
            model = self._tuned
        with torch.inference_mode():
            logits: torch.Tensor = model(torch.tensor([list(context)])).logits[0]
        return logits.float()

    def _tokens(self, prompt: tuple[int, ...], adapter: str | None, count: int) -> tuple[int, ...]:
        context = list(prompt)
        for _ in range(count):
            context.append(int(self.logits(context, adapter)[-1].argmax()))
        return tuple(context[len(prompt) :])


@dataclass
class Ran:
    """A run's outputs and ends, by request id."""

    outcome: RunEnd
    executor: Executor
    tokens: dict[str, tuple[int, ...]] = field(default_factory=dict)
    ends: dict[str, tuple[str, str]] = field(default_factory=dict)


def prompt_of(index: int, length: int, vocab: int) -> tuple[int, ...]:
    """The prompt of request ``index``: the same whenever it is asked for."""
    return tuple(np.random.default_rng((17, index)).integers(0, vocab, length).tolist())


def run(
    machine: Machine,
    adapters: Sequence[Adapter],
    workload: Workload,
    policy: Policy,
    cost: Any,
    *,
    sink: Any = None,
    change: Callable[[Executor], None] | None = None,
    generation: Callable[[Request, int], Generation] | None = None,
    cutoff_s: float | None = None,
) -> Ran:
    """Drive a workload to its end; ``change`` may meddle with the executor before it starts."""
    tokens: dict[str, tuple[int, ...]] = {}
    ends: dict[str, tuple[str, str]] = {}

    def on_end(event: Ended, generation: Generation) -> None:
        request_id = event.request.request_id
        tokens[request_id] = tuple(generation.tokens)
        ends[request_id] = (event.status, event.why)

    def make(request: Request, output_tokens: int) -> Generation:
        prompt = prompt_of(int(request.request_id), request.prompt_tokens, machine.model.shape.vocab)
        return Generation(prompt, output_tokens=output_tokens)

    executor = machine.executor(adapters, policy, cost, JumpingClock(), sink=sink, on_end=on_end, record=True)
    try:
        if change is not None:
            change(executor)
        outcome = drive(workload, executor, generation or make, cutoff_s=cutoff_s)
    finally:
        executor.close()
    return Ran(outcome, executor, tokens, ends)


def assert_nothing_leaked(ran: Ran) -> None:
    """KV blocks, rows, slots and host memory are what the ledger says, and nothing is held by requests."""
    executor = ran.executor
    ledger, tables = executor.engine.ledger, executor.runner.tables
    assert not ledger.sequences and ledger.kv.used == 0
    assert tables.free_blocks == tables.num_blocks and tables.sequences == 0
    executor.tiers.follow(ledger)
    assert set(executor.tiers.resident) <= set(ledger.slots.on_gpu)
    assert executor.tiers.in_host <= set(ledger.host_cache.held)
