"""quick_profile: what steps and loads take on this machine, from a handful of them when a server starts."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from loratory.adapters.sources.cache import AdapterCache
from loratory.executor.clock import RealClock
from loratory.executor.generation import Generation
from loratory.executor.machine import Machine
from loratory.experiment.machine import SYNTHETIC, adapter_files
from loratory.experiment.policy_spec import policy_factory
from loratory.serving.events import EventHandlers, Stepped
from loratory.serving.lora import Adapter, LoRARequest
from loratory.serving.plan import CostView
from loratory.serving.request import Request
from loratory.sim.cost.profile import LoadTime, Profile

_PROMPT, _OUTPUT, _REQUESTS, _RANK = 128, 5, 3, 16
_LEAST_S = 1e-9


def quick_profile(machine: Machine, targets: Sequence[str], assumed: CostView, seconds: float) -> Profile | None:
    """A profile with two coefficients, of a step and of a token, and the time of a load; None where ``seconds`` did not
    suffice for one prefill and one decode step, or the context is too short.

    Three requests run one after the other, the second with a random adapter. The shortest step of each kind counts:
    others were held up by something. It ends with the step during which the time is over.
    """
    config = machine.config
    longest = config.max_model_len or config.require_blocks() * config.block_size
    prompt = min(_PROMPT, config.max_num_batched_tokens, longest - _OUTPUT)
    if prompt < 2:
        return None
    until = time.perf_counter() + seconds
    name = "measured"
    with tempfile.TemporaryDirectory(prefix="loratory-measure-") as scratch:
        rank = min(_RANK, config.max_lora_rank)
        adapter = Adapter(LoRARequest(name, 1, f"{SYNTHETIC}{name}"), rank, 1)
        files = adapter_files(
            (adapter,), machine.model, Path(scratch), targets, AdapterCache(Path(scratch) / "cache"),
            config.max_lora_rank,
        )  # fmt: skip
        machine.files.update(files)
        try:
            disk, load = _load_times(machine, name)
            steps = _steps(machine, adapter, assumed, prompt, until)
        finally:
            del machine.files[name]
    prefills = [_of(step) for step in steps if step.shape.prefill_tokens == prompt and not step.shape.decode_seqs]
    decodes = [_of(step) for step in steps if step.shape.decode_seqs and not step.shape.prefill_tokens]
    if not prefills or not decodes:
        return None
    a_token = max((min(prefills) - min(decodes)) / (prompt - 1), _LEAST_S)
    return Profile(
        name="measured at start",
        machine=machine.about(),
        samples=len(prefills) + len(decodes),
        coefficients={"step": max(min(decodes) - a_token, _LEAST_S), "tokens": a_token},
        load=load,
        disk=disk,
        usable=False,
    )


def _load_times(machine: Machine, name: str) -> tuple[LoadTime, LoadTime]:
    """From disk to host memory, and from there to a slot, each the shorter of two."""
    disk, slot = [], []
    for _ in range(2):
        begun = time.perf_counter()
        held = machine.read(name)
        read = time.perf_counter()
        machine.write(0, held)
        disk.append(read - begun)
        slot.append(time.perf_counter() - read)
    return LoadTime(per_byte_s=min(disk) / held.bytes), LoadTime(per_byte_s=min(slot) / held.bytes)


def _steps(machine: Machine, adapter: Adapter, assumed: CostView, prompt: int, until: float) -> list[Stepped]:
    """The steps of the requests, as far as the time reaches."""
    steps: list[Stepped] = []
    executor = machine.executor(
        (adapter,), policy_factory("fifo")(), assumed, RealClock(), sink=EventHandlers({Stepped: steps.append})
    )
    try:
        for number in range(_REQUESTS):
            wanted = adapter.name if number == 1 else None
            request = Request(str(number), wanted, executor.now(), prompt, _OUTPUT)
            executor.submit(request, Generation([1] * prompt, output_tokens=_OUTPUT))
            while executor.step(executor.now()):
                if time.perf_counter() > until:
                    return steps
    finally:
        executor.close()
    return steps


def _of(step: Stepped) -> float:
    return step.end - step.start - step.load_s
