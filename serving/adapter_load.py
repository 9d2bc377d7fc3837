"""AdapterLoad: an adapter on its way to the GPU, or to host memory, and the seconds that takes."""

from __future__ import annotations

from typing import NamedTuple

from loratory.serving.batch_shape import CostView
from loratory.serving.lora import Adapter


class AdapterLoad(NamedTuple):
    """Bring ``adapter`` from ``tier`` to a GPU slot, or only as far as host memory when ``prefetch``."""

    adapter: Adapter
    tier: str
    prefetch: bool

    def fetch_seconds(self, cost: CostView) -> float:
        """Seconds to host memory by the cost model: from disk, or from farther by way of the disk."""
        if self.tier == "host":
            return 0.0
        seconds = cost.load_seconds(self.adapter, "disk")
        return seconds + cost.load_seconds(self.adapter, "remote") if self.tier == "remote" else seconds

    def seconds(self, cost: CostView) -> float:
        """Seconds of the whole load by the cost model, when no other is in its way."""
        seconds = self.fetch_seconds(cost)
        return seconds if self.prefetch else seconds + cost.load_seconds(self.adapter, "host")
