"""AdapterDescription: an adapter as its files describe it, read without loading its tensors."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoRAModule:
    """The pair of LoRA matrices of one linear layer: A is (rank, in_features), B is (out_features, rank).

    ``path`` is the layer's name in the base model (``model.layers.0.self_attn.q_proj``), ``name`` its last part,
    ``layer`` the index among the decoder layers; the output head is ``lm_head``, of layer 0. ``scaling`` multiplies
    B·A·x: alpha / rank, or alpha / sqrt(rank) with rsLoRA. ``key_a`` and ``key_b`` are the tensors' keys in the weight
    file.
    """

    path: str
    name: str
    layer: int
    rank: int
    scaling: float
    in_features: int
    out_features: int
    key_a: str
    key_b: str


@dataclass(frozen=True, slots=True)
class AdapterDescription:
    """A validated PEFT LoRA adapter.

    ``rank``: the largest of its modules. ``alpha``: the configured ``lora_alpha`` (patterns show in the modules'
    scaling). ``target_modules``: names of linear layers, sorted. ``dtype``: of the stored tensors, as safetensors
    spells it (F32, BF16, F16). ``bytes``: of the stored LoRA tensors. ``digest``: ``sha256:`` and 64 hex digits over
    configuration and weights. ``base_model``: the one it names, or None. ``weights``: the weight
    file's name in the adapter's folder.
    """

    rank: int
    alpha: float
    use_rslora: bool
    target_modules: tuple[str, ...]
    base_model: str | None
    dtype: str
    bytes: int
    digest: str
    modules: tuple[LoRAModule, ...]
    weights: str = "adapter_model.safetensors"

    @property
    def parameters(self) -> int:
        """Numbers in all LoRA matrices: what an adapter of this kind costs in a dtype is this times its item size."""
        return sum(module.rank * (module.in_features + module.out_features) for module in self.modules)
