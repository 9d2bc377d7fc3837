"""loratory.executor.lora: adapters in preallocated slots, and what they add to a mixed batch.

`LoRAShapes` says how wide the model is, `HostAdapter` holds an adapter in host memory, `LoRASlots` the adapters that a
batch can use, and `CPULoRA` and `CUDALoRA` are `loratory.executor.batch.LoRA` over such slots.
"""

from __future__ import annotations

from loratory.executor.lora.choice import FormCosts
from loratory.executor.lora.cpu import CPULoRA
from loratory.executor.lora.shapes import LINEAR_MODULES, TARGETS, LoRAShapes
from loratory.executor.lora.slots import LoRASlots
from loratory.executor.lora.weights import HostAdapter

__all__ = ["LINEAR_MODULES", "TARGETS", "CPULoRA", "FormCosts", "HostAdapter", "LoRAShapes", "LoRASlots"]
