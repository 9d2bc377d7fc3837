"""EngineTimes: the host time of a step, and how the LoRA kernels are laid out, by engine and version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from loratory.serving.compiling import mypyc_attr
from loratory.serving.config import EngineConfig
from loratory.serving.plan import BatchShape

EngineName = Literal["vllm-0.32", "vllm-0.8.5", "lightllm", "none"]


@mypyc_attr(native_class=False)
@dataclass(frozen=True, slots=True)
class EngineTimes:
    """What the roofline adds to kernels that read and compute, for one engine.

    ``host_step_s``, ``host_seq_s``, ``host_blocked_s``: host seconds of a step, of each sequence in it, and of each
    waiting request that the scheduler passes over because its adapter finds no slot. ``host_hidden``: whether the
    engine plans ahead (`host_is_hidden`) where no `EngineConfig` says so.
    ``slot_kernels``: LoRA kernels whose grid spans all slots, padded to max_lora_rank; else kernels that read each
    adapter of the batch once, at its own rank. ``ground``: what the numbers rest on, for reports.
    """

    title: str
    host_step_s: float
    host_seq_s: float
    host_blocked_s: float
    host_hidden: bool
    slot_kernels: bool
    ground: str


HOST_STEP_S, HOST_SEQ_S, HOST_BLOCKED_S = 2.1e-3, 54.2e-6, 0.194e-6
"""Host time of vLLM 0.8.5 with adapters: python -m loratory.reproduce.fit.lora prints them."""

HIDDEN_SHARE = 0.5
"""Host time of vLLM 0.32 over that of 0.8.5: an assumption."""

ENGINE_TIMES: Mapping[EngineName, EngineTimes] = MappingProxyType(
    {
        "vllm-0.8.5": EngineTimes(
            "vLLM 0.8.5", HOST_STEP_S, HOST_SEQ_S, HOST_BLOCKED_S, False, True, "fitted to runs on an H100"
        ),
        "vllm-0.32": EngineTimes(
            "vLLM 0.32",
            HIDDEN_SHARE * HOST_STEP_S,
            HIDDEN_SHARE * HOST_SEQ_S,
            HIDDEN_SHARE * HOST_BLOCKED_S,
            True,
            True,
            "LoRA kernels as in vLLM 0.8.5, and half of its host time: assumptions",
        ),
        "lightllm": EngineTimes("LightLLM", 0.0, 0.0, 0.0, False, False, "not measured with this cost model"),
        "none": EngineTimes("no engine", 0.0, 0.0, 0.0, False, False, "kernels only"),
    }
)


def engine_name(name: EngineName | None, engine: EngineConfig | None) -> EngineName:
    """The engine that an option names, or the engine's preset; "none" without either."""
    return name or ("none" if engine is None else engine.preset)


def times_of(name: EngineName | None, engine: EngineConfig | None) -> EngineTimes:
    """The times of `engine_name`."""
    return ENGINE_TIMES[engine_name(name, engine)]


def host_is_hidden(times: EngineTimes, engine: EngineConfig | None) -> bool:
    """Whether the host works on a step while the GPU runs the one before: where the engine plans ahead."""
    return times.host_hidden if engine is None else engine.plans_ahead


@mypyc_attr(serializable=True, allow_interpreted_subclasses=True)
class HostTime:
    """Seconds of the host in a step: ``step_s``, ``seq_s`` by sequence and ``blocked_s`` by request passed over, on top
    of the GPU's; or, ``hidden`` behind the GPU, at least `least` seconds a step, which takes the longer of the two.

    On top of the GPU's, a decoding sequence takes the longer of the host's and of its attention, which the measured
    runs show to overlap: their time by sequence is the same for Llama-3.1-8B and Qwen-2.5-7B, whose KV caches differ
    2.3 times.

    ``given``: seconds of a step, a sequence and a request passed over; None for the engine's. ``launches_s``: a step
    takes at least that.
    """

    def __init__(
        self,
        times: EngineTimes,
        hidden: bool,
        given: tuple[float | None, float | None, float | None],
        launches_s: float,
    ) -> None:
        own = (times.host_step_s, times.host_seq_s, times.host_blocked_s)
        step, seq, blocked = (mine if theirs is None else theirs for mine, theirs in zip(own, given, strict=True))
        nothing = (0.0, 0.0, 0.0)
        self._hidden = (step, seq, blocked) if hidden else nothing
        self.step_s, self.seq_s, self.blocked_s = nothing if hidden else (step, seq, blocked)
        self._launches_s = launches_s
        self.any = any((step, seq, blocked, launches_s))

    def least(self, seqs: int, blocked: int) -> float:
        """Seconds that a step of ``seqs`` sequences takes at least."""
        step, seq, each = self._hidden
        hidden = step + seq * seqs + each * blocked
        return hidden if hidden > self._launches_s else self._launches_s

    def part(self, shape: BatchShape, attention_s: float, others_s: float) -> float:
        """What the host adds to a step whose decode attention takes ``attention_s`` and other parts ``others_s``."""
        decodes, prefills, blocked = shape.decode_seqs, shape.prefill_seqs, shape.blocked_seqs
        own = self.step_s + self.seq_s * prefills + self.blocked_s * blocked
        own += max(0.0, self.seq_s * decodes - attention_s)
        return max(own, self.least(decodes + prefills, blocked) - attention_s - others_s)
