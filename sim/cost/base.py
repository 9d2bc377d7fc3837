"""CostModel: the interface of every cost model; DecodeLine: its promise for a batch that only decodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from loratory.serving.lora import Adapter
from loratory.serving.plan import BatchShape
from loratory.sim.cost.options import TransferOptions


@dataclass(slots=True)  # not frozen: every change of the batch makes one, and a frozen one takes longer to make
class DecodeLine:
    """Step seconds of an unchanging decode batch as a function of the KV tokens it reads.

    seconds = max(floor_s, intercept_s + slope_s_per_token * kv_tokens), the very expression ``step_seconds`` uses, so
    a simulator may sum or jump steps without calling the model again.
    """

    intercept_s: float
    slope_s_per_token: float
    floor_s: float = 0.0

    def seconds(self, kv_tokens: float) -> float:
        """Seconds of one step that reads ``kv_tokens``."""
        line = self.intercept_s + self.slope_s_per_token * kv_tokens
        return line if line > self.floor_s else self.floor_s


class CostModel(Protocol):
    """How long steps and loads take. Implementations are pure: equal shapes cost the same, and none reads a clock.

    ``known_error``: one sentence, shown in every report, on how far predictions are known to be off, and from what.
    ``warnings``: sentences on what the model does not cover, shown in every report. A model that was fitted within
    ranges also has ``fitted``: its name in notes, and the largest value of each `BatchShape` field it was fitted to.
    ``below``: the hops that end in host memory; a simulation computes from it which of them overlap.
    """

    name: str
    source: str
    known_error: str
    warnings: list[str]
    below: TransferOptions

    def step_seconds(self, shape: BatchShape) -> float:
        """Seconds of one engine step, adapter loads not counted. 0 for an empty shape; never falls in any field."""
        ...

    def decode_line(self, shape: BatchShape) -> DecodeLine | None:
        """The line through which ``step_seconds`` passes when only ``kv_tokens`` of a pure decode shape changes.

        None when the shape has a prefill or the model is not of that form.
        """
        ...

    def load_seconds(self, adapter: Adapter, tier: str) -> float:
        """Seconds of the one hop that starts at ``tier``: remote to disk, disk to host, or host to GPU.

        0 for ``gpu`` and ``loading``. `loratory.sim.cost.transfer.cold_load_seconds` adds the hops up.
        """
        ...

    def explain(self, shape: BatchShape) -> dict[str, float]:
        """Seconds by part; they sum to ``step_seconds``."""
        ...


def fitted_ranges(cost: CostModel) -> tuple[str, Mapping[str, float]] | None:
    """``cost.fitted``, see `CostModel`; None for a model without."""
    found: tuple[str, Mapping[str, float]] | None = getattr(cost, "fitted", None)
    return found
