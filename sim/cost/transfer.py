"""TransferModel: how long an adapter takes from one tier to the next."""

from __future__ import annotations

from dataclasses import dataclass

from loratory.serving.lora import Adapter
from loratory.sim.cost.base import CostModel
from loratory.sim.cost.options import TransferOptions

HOPS: tuple[str, ...] = ("remote", "disk", "host")
"""The tiers from which an adapter moves one step closer to the GPU, farthest first."""


@dataclass(frozen=True, slots=True)
class TransferModel:
    """Seconds per hop: fixed + bytes / bandwidth; from host to GPU with a term by rank where one was fitted.

    ``below`` holds the hops that end in host memory; a cost model knows the last one.
    """

    below: TransferOptions
    host_fixed_s: float = 0.0
    host_per_byte_s: float = 0.0
    host_per_rank_s: float = 0.0

    def seconds(self, adapter: Adapter, tier: str) -> float:
        """Seconds of the hop of ``adapter`` that starts at ``tier``; 0 where there is none (``gpu``, ``loading``)."""
        if tier == "host":
            return self.host_fixed_s + self.host_per_rank_s * adapter.rank + self.host_per_byte_s * adapter.bytes
        if tier == "disk":
            return self.below.disk_fixed_s + adapter.bytes / self.below.disk_bytes_per_s
        if tier == "remote":
            return self.below.remote_fixed_s + adapter.bytes / self.below.remote_bytes_per_s
        return 0.0


def cold_load_seconds(cost: CostModel, adapter: Adapter, tier: str) -> float:
    """Seconds from ``tier`` all the way to the GPU, hop after hop with nothing else in the way."""
    if tier not in HOPS:
        return 0.0
    return sum(cost.load_seconds(adapter, hop) for hop in HOPS[HOPS.index(tier) :])
