"""loratory.executor.lora: adapters in preallocated slots, and what they add to a mixed batch.

`LoRAShapes` names the layers that adapters may target, `HostAdapter` holds an adapter in host memory, `LoRASlots` the
adapters that a batch can use, and `CPULoRA` and `CUDALoRA` are `loratory.executor.batch.LoRA` over such slots.
"""

from __future__ import annotations

from loratory.executor.lora.choice import FormCosts
from loratory.executor.lora.cpu import CPULoRA
from loratory.executor.lora.shapes import LoRAShapes
from loratory.executor.lora.slots import LoRASlots
from loratory.executor.lora.weights import HostAdapter

__all__ = ["CPULoRA", "FormCosts", "HostAdapter", "LoRAShapes", "LoRASlots"]
