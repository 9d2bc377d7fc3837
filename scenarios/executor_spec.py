"""ExecutorSpec: how a scenario runs on the real executor; the simulator ignores this section."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from loratory.scenarios.schema_types import Count, NameOrFile, Positive, Section


class ExecutorSpec(Section):
    """What ``--on executor`` needs beyond the rest of the scenario."""

    checkpoint: NameOrFile | None = Field(
        None, description="folder of a Hugging Face checkpoint; by default random weights of the scenario's model"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "bfloat16", description="dtype of weights, adapters and KV cache"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="cpu, cuda, or auto: cuda if the machine has it")
    threads: Count | None = Field(None, description="number of CPU threads; by default PyTorch's choice")
    time_scale: Positive = Field(1.0, description="multiply the workload's request rate by this number")
