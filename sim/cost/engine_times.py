"""EngineTimes: the host time of a step, and how the LoRA kernels are laid out, by engine and version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from loratory.serving.config import EngineConfig

EngineName = Literal["vllm-0.32", "vllm-0.8.5", "lightllm", "none"]


@dataclass(frozen=True, slots=True)
class EngineTimes:
    """What the roofline adds to kernels that read and compute, for one engine.

    ``host_step_s``, ``host_seq_s``: host seconds of a step, and of each sequence in it. ``host_hidden``: the host works
    while the GPU runs the step before, so that a step takes the longer of the two; else their sum. ``slot_kernels``:
    LoRA kernels whose grid spans all slots, padded to max_lora_rank; else kernels that read each adapter of the batch
    once, at its own rank. ``ground``: what the numbers rest on, for reports.
    """

    title: str
    host_step_s: float
    host_seq_s: float
    host_hidden: bool
    slot_kernels: bool
    ground: str


HOST_STEP_S, HOST_SEQ_S = 0.0, 0.0
"""Host time of vLLM 0.8.5 with adapters: python -m loratory.reproduce.fit.lora prints both."""

HIDDEN_SHARE = 0.5
"""Host time of vLLM 0.32 over that of 0.8.5: an assumption."""

ENGINE_TIMES: Mapping[EngineName, EngineTimes] = MappingProxyType(
    {
        "vllm-0.8.5": EngineTimes("vLLM 0.8.5", HOST_STEP_S, HOST_SEQ_S, False, True, "fitted to runs on an H100"),
        "vllm-0.32": EngineTimes(
            "vLLM 0.32",
            HIDDEN_SHARE * HOST_STEP_S,
            HIDDEN_SHARE * HOST_SEQ_S,
            True,
            True,
            "LoRA kernels as in vLLM 0.8.5, and host time hidden by asynchronous scheduling: assumptions",
        ),
        "lightllm": EngineTimes("LightLLM", 0.0, 0.0, False, False, "not measured with this cost model"),
        "none": EngineTimes("no engine", 0.0, 0.0, False, False, "kernels only"),
    }
)


def times_of(name: EngineName | None, engine: EngineConfig | None) -> EngineTimes:
    """The times that an option names, or those of the engine's preset; without either, those of no engine."""
    return ENGINE_TIMES[name or ("none" if engine is None else engine.preset)]


class HostTime:
    """Seconds of the host in a step: ``step_s`` and ``seq_s`` (by sequence) on top of the GPU's, or `least` at least.

    ``step_s``, ``seq_s`` given as None are the engine's. ``launches_s``: a step takes at least that.
    """

    def __init__(self, times: EngineTimes, step_s: float | None, seq_s: float | None, launches_s: float) -> None:
        step = times.host_step_s if step_s is None else step_s
        seq = times.host_seq_s if seq_s is None else seq_s
        self._hidden = (step, seq) if times.host_hidden else (0.0, 0.0)
        self.step_s, self.seq_s = (0.0, 0.0) if times.host_hidden else (step, seq)
        self._launches_s = launches_s
        self.any = step > 0 or seq > 0 or launches_s > 0

    def least(self, seqs: int) -> float:
        """Seconds that a step of ``seqs`` sequences takes at least."""
        step, seq = self._hidden
        hidden = step + seq * seqs
        return hidden if hidden > self._launches_s else self._launches_s

    def part(self, seqs: int, others_s: float) -> float:
        """What the host adds to a step whose other parts take ``others_s``."""
        own = self.step_s + self.seq_s * seqs
        return max(own, self.least(seqs) - others_s)
