"""ExecutorSpec: how a scenario runs on the real executor; the simulator does not look at it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from loratory.scenarios.schema_types import Count, NameOrFile, Positive, Section


class ExecutorSpec(Section):
    """What ``--on executor`` needs beyond the rest of the scenario."""

    checkpoint: NameOrFile | None = Field(
        None, description="folder of a Hugging Face checkpoint; by default random weights of the scenario's model"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("bfloat16", description="of weights, adapters, KV cache")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is one")
    threads: Count | None = Field(None, description="CPU threads; by default PyTorch's choice")
    time_scale: Positive = Field(1.0, description="send requests this many times as fast as the workload does")
