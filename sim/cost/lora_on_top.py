"""LoraOnTop: what adapters add to a step whose base model is priced elsewhere, as the roofline prices them."""

from __future__ import annotations

from typing import Any

from loratory.serving.config import EngineConfig
from loratory.serving.lora import Adapter
from loratory.sim.catalogue import GPU, ModelSpec
from loratory.sim.cost.options import TransferOptions
from loratory.sim.cost.roofline import RooflineCost
from loratory.sim.cost.roofline_options import RooflineOptions


class LoraOnTop:
    """The roofline's LoRA terms and adapter loads for a model on a GPU, without its base model.

    ``options``: those of `RooflineOptions` to be set; the others have their defaults. ``below``: the hops that end in
    host memory.
    """

    def __init__(
        self, model: ModelSpec, gpu: GPU, tp: int, engine: EngineConfig | None, options: dict[str, Any]
    ) -> None:
        parsed = RooflineOptions.model_validate(options)
        self._roofline = RooflineCost(model, gpu, tensor_parallel_size=tp, options=parsed, engine=engine)
        self.below: TransferOptions = self._roofline.below
        self.seconds = self._roofline.lora_seconds
        """What the adapters of a `BatchShape` add: 0 without any; never falls in any field."""

    def load_seconds(self, adapter: Adapter, tier: str) -> float:
        """See `loratory.sim.cost.CostModel.load_seconds`."""
        return self._roofline.load_seconds(adapter, tier)
