"""LoraOnTop: what adapters add to a step whose base model is priced elsewhere, as the roofline prices them."""

from __future__ import annotations

from typing import Any

from loratory.serving.lora import Adapter
from loratory.serving.plan import BatchShape
from loratory.sim.catalogue import GPU, ModelSpec
from loratory.sim.cost.options import TransferOptions
from loratory.sim.cost.roofline import RooflineCost, RooflineOptions


class LoraOnTop:
    """The roofline's LoRA terms and adapter loads for a model on a GPU, without its base model.

    ``options``: those of `RooflineOptions` to be set; the others have their defaults. ``below``: the hops that end in
    host memory.
    """

    def __init__(self, model: ModelSpec, gpu: GPU, tensor_parallel_size: int, options: dict[str, Any]) -> None:
        self._roofline = RooflineCost(
            model, gpu, tensor_parallel_size=tensor_parallel_size, options=RooflineOptions.model_validate(options)
        )
        self.below: TransferOptions = self._roofline.below

    def seconds(self, shape: BatchShape) -> float:
        """What the adapters of a step add to it: 0 without any; never falls in any field."""
        if not shape.distinct_adapters and not shape.lora_tokens:
            return 0.0
        return self._roofline._lora_seconds(
            shape.distinct_adapters,
            shape.sum_ranks,
            shape.lora_tokens,
            shape.lora_token_ranks,
            shape.decode_seqs + shape.prefill_seqs,
        )

    def load_seconds(self, adapter: Adapter, tier: str) -> float:
        """See `loratory.sim.cost.CostModel.load_seconds`."""
        return self._roofline.load_seconds(adapter, tier)
