"""Machine: a model on a device with its KV pool and adapter slots, on which one run follows another."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Event as Flag
from typing import Any

import torch

from loratory.adapters.verified import VerifiedAdapter
from loratory.errors import InputError
from loratory.executor.batch import LoRA
from loratory.executor.block_tables import BlockTables
from loratory.executor.clock import Clock
from loratory.executor.executor import Executor, OnEnd, OnToken
from loratory.executor.graphs import DecodeGraphs
from loratory.executor.lora import CPULoRA, LoRAShapes, LoRASlots
from loratory.executor.lora.weights import HostAdapter
from loratory.executor.model import Model
from loratory.executor.runner import ModelRunner
from loratory.executor.tiers import AdapterTiers
from loratory.models.linear_layers import LINEAR_MODULES, TARGETS
from loratory.serving.adapter_limits import rank_problem
from loratory.serving.config import EngineConfig
from loratory.serving.engine import Remake
from loratory.serving.events import Handler, Sink
from loratory.serving.lora import Adapter
from loratory.serving.plan import CostView
from loratory.serving.policy import PolicyLike
from loratory.serving.policy_watch import POLICY_TIMEOUT_S
from loratory.serving.run_recording import Tape


class Machine:
    """Holds a model, a KV cache and adapter slots.

    Raises `InputError` where memory runs out, and for sequences that could grow beyond the model's positions.

    ``files`` are the adapters on disk, by name; without any there are no slots, unless ``lora`` is true, because
    adapters will come later (`Executor.add_adapter`). ``target_modules``: the modules that
    slots have room for, by default all of the layers, and the output head if an adapter changes it. ``config`` must
    name ``num_gpu_blocks``. ``graphs``: pad decode batches and capture them in CUDA graphs (on a CPU only pad them); by
    default on CUDA.
    """

    def __init__(
        self,
        model: Model,
        config: EngineConfig,
        files: Mapping[str, VerifiedAdapter],
        target_modules: Iterable[str] | None = None,
        graphs: bool | None = None,
        lora: bool | None = None,
    ) -> None:
        longest, most = config.max_model_len or config.require_blocks() * config.block_size, model.config.max_positions
        if longest > most:
            given = "is not set" if config.max_model_len is None else f"is {longest}"
            raise InputError(
                f"engine.max_model_len {given}, but the model has {most} positions: set it to at most {most}"
            )
        self.model = model
        self.graphs = graphs
        self.config = config
        self.files = dict(files)
        self._scratch = config.require_blocks()  # one block more, for the padded rows of CUDA graphs
        self._kv = model.new_cache(self._scratch + 1, config.block_size)
        self._loads: torch.cuda.Stream | None = None
        if model.device.type == "cuda":
            self._loads = torch.cuda.Stream(model.device)  # type: ignore[no-untyped-call]
        self._slots: LoRASlots | None = None
        if target_modules is None:
            held = {name for file in files.values() for name in file.description.target_modules}
            target_modules = [name for name in TARGETS if name in held or name in LINEAR_MODULES]
        self._shapes = LoRAShapes(model.shape, tuple(target_modules))
        if files if lora is None else lora:
            self._slots = LoRASlots(self._shapes, config.max_loras, config.max_lora_rank, model.dtype, model.device)

    @property
    def slot_bytes(self) -> int:
        """Memory of all adapter slots."""
        return 0 if self._slots is None else self._slots.bytes

    def executor(
        self,
        adapters: Iterable[Adapter],
        policy: PolicyLike,
        cost: CostView,
        clock: Clock,
        *,
        sink: Sink | Handler | None = None,
        on_token: OnToken | None = None,
        on_end: OnEnd | None = None,
        record: bool | Tape = False,
        policy_timeout_s: float | None = POLICY_TIMEOUT_S,
        remake: Remake | None = None,
    ) -> Executor:
        """A fresh engine over this machine. Close it before the next: they share cache and slots.

        Raises `RefusedAdapter` for an adapter whose digest is not that of its files.
        """
        adapters = tuple(adapters)
        for adapter in adapters:
            if adapter.digest is not None and adapter.name in self.files:
                self.files[adapter.name].check(adapter.digest)
        woken, config = Flag(), self.config
        tiers: AdapterTiers[HostAdapter] = AdapterTiers(self.read, self, config.max_loras, woken.set, self.files)
        lora = None if self._slots is None else self._applier()
        tables = BlockTables(config.require_blocks(), config.block_size, config.max_num_seqs)
        graphs = None
        if self.model.device.type == "cuda" if self.graphs is None else self.graphs:
            longest = config.max_model_len or self.model.config.max_positions
            pages = min(-(-longest // config.block_size), self._scratch)
            graphs = DecodeGraphs(self.model, self._kv, lora, config.max_num_seqs, pages, self._scratch)
        runner = ModelRunner(self.model, self._kv, tables, lora, tiers.slot, graphs)
        return Executor(
            config, adapters, policy, cost, runner, tiers, clock, woken,
            sink=sink, on_token=on_token, on_end=on_end, record=record,
            policy_timeout_s=policy_timeout_s, remake=remake,
        )  # fmt: skip

    def _applier(self) -> LoRA:
        """What adds adapters' deltas on this device."""
        assert self._slots is not None
        if self.model.device.type == "cpu":
            return CPULoRA(self._slots)
        from loratory.executor.lora.cuda import CUDALoRA  # Triton is there only where CUDA is

        return CUDALoRA(self._slots)

    def read(self, name: str) -> HostAdapter:
        """An adapter's weights, from disk to host memory. Raises `InputError` for files gone, broken or changed."""
        file = self.files.get(name)
        if file is None:
            raise InputError(f"adapter {name!r} has no files: register it with a folder")
        return HostAdapter.load(file, self._shapes, self.model.dtype, self.model.device)

    def write(self, slot: int, adapter: HostAdapter) -> None:
        """An adapter's weights, from host memory to a slot; on return they are there.

        On CUDA the copy has a stream of its own, beside which the model computes on: no batch uses a slot that is being
        written.
        """
        assert self._slots is not None
        if self._loads is None:
            self._slots.write(slot, adapter)
            return
        with torch.cuda.stream(self._loads):
            self._slots.write(slot, adapter)
        self._loads.synchronize()

    def require_room(self, files: VerifiedAdapter) -> None:
        """Raises `InputError` for an adapter that no slot has room for."""
        described, room = files.description, self._shapes.target_modules
        if self._slots is None:
            raise InputError(
                f"adapter {files.ref!r} cannot be served: this machine was made without adapter slots (lora=True)"
            )
        if problem := rank_problem(f"adapter {files.ref!r} has rank", described.rank, self.config.max_lora_rank):
            raise InputError(problem)
        if without := sorted(set(described.target_modules) - set(room)):
            raise InputError(
                f"adapter {files.ref!r} changes {without[0]}, but the slots have room for {', '.join(room)} only: "
                "start with an adapter that changes it, or train one without"
            )

    def about(self) -> dict[str, Any]:
        """What a report shows of it: device, dtype, threads, versions."""
        device = self.model.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
        return {
            "device": device.type,
            "device_name": name,
            "cores": os.cpu_count() or 1,
            "threads": torch.get_num_threads(),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "torch": torch.__version__,
            "lora_slot_bytes": self.slot_bytes,
        }


def cpu_name() -> str:
    """The CPU's name, from Linux's /proc/cpuinfo; elsewhere its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
