"""ToyCost: a cost model of a few multiplications, for tests that need times and no hardware."""

from __future__ import annotations

from dataclasses import dataclass, field

from loratory.serving.lora import Adapter
from loratory.serving.plan import BatchShape
from loratory.sim.cost.base import DecodeLine
from loratory.sim.cost.options import TransferOptions


@dataclass
class ToyCost:
    """A cost model of a few multiplications.

    ``line``: it offers a decode line. ``floor_s``: least seconds of a decode step. ``grid``: every decode step
    takes 1/8 s, so that times coincide. ``scale`` multiplies all times. ``load_s``: seconds of a load from host memory,
    before its bytes. ``fetches``: adapters fetched at once from remote storage, a part of whose time is latency.
    """

    line: bool = True
    floor_s: float = 0.0
    grid: bool = False
    scale: float = 1.0
    load_s: float = 0.013
    fetches: int = 1
    name: str = "toy"
    source: str = "tests"
    known_error: str = ""
    warnings: list[str] = field(default_factory=list)
    below: TransferOptions = field(init=False)

    def __post_init__(self) -> None:
        latency_s = (0.5 if self.grid else 5 * self.load_s) * self.scale
        self.below = TransferOptions(remote_fixed_s=latency_s, remote_concurrency=self.fetches)

    def _line(self, shape: BatchShape) -> DecodeLine:
        scale = self.scale
        if self.grid:
            return DecodeLine(0.125 * scale, 0.0, 0.0)
        intercept = 0.0031 + 0.0007 * shape.decode_seqs + 0.0003 * shape.distinct_adapters + 0.00001 * shape.sum_ranks
        return DecodeLine(intercept * scale, 0.000037 * scale, self.floor_s * scale)

    def step_seconds(self, shape: BatchShape) -> float:
        """Seconds of a step."""
        if not shape.tokens:
            return 0.0
        seconds = self._line(shape).seconds(shape.kv_tokens)
        if not self.grid:
            seconds += (0.00041 * shape.prefill_tokens + 0.0000007 * shape.prefill_attention) * self.scale
        return seconds

    def decode_line(self, shape: BatchShape) -> DecodeLine | None:
        """The line that the times of following decode steps lie on, or None."""
        return self._line(shape) if self.line and not shape.prefill_tokens else None

    def load_seconds(self, adapter: Adapter, tier: str) -> float:
        """Seconds of the hop of an adapter that starts at ``tier``."""
        factor = {"host": 1.0, "disk": 2.5, "remote": 7.0}.get(tier, 0.0)
        if self.grid:
            return 0.25 * factor * self.scale
        return (self.load_s + 0.00011 * adapter.bytes) * factor * self.scale

    def explain(self, shape: BatchShape) -> dict[str, float]:
        """Seconds by part."""
        return {"step": self.step_seconds(shape)}
