"""executor.lora: adapters in preallocated slots, and what they add to a mixed batch.

`LoRAShapes` says how wide the model is, `HostAdapter` holds an adapter in host memory, `LoRASlots` the adapters that a
batch can use, and `CPULoRA` and `CUDALoRA` are `executor.batch.LoRA` over such slots.
"""

from __future__ import annotations

from executor.lora.choice import FormCosts
from executor.lora.cpu import CPULoRA
from executor.lora.shapes import LINEAR_MODULES, TARGETS, LoRAShapes
from executor.lora.slots import LoRASlots
from executor.lora.weights import HostAdapter

__all__ = ["LINEAR_MODULES", "TARGETS", "CPULoRA", "FormCosts", "HostAdapter", "LoRAShapes", "LoRASlots"]
