"""PEFT fields: the fields of PEFT's LoraConfig (0.21): those that are read, ignored, or refused, with the reason."""

from __future__ import annotations

from collections.abc import Mapping

HANDLED = frozenset(
    {
        "alpha_pattern",
        "base_model_name_or_path",
        "bias",
        "exclude_modules",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "peft_type",
        "r",
        "rank_pattern",
        "target_modules",
        "task_type",
        "use_rslora",
    }
)
"""Fields whose value is read (`loratory.adapters.files.peft_config`)."""

IGNORED: Mapping[str, tuple[type, ...]] = {
    "auto_mapping": (dict,),
    "corda_config": (dict,),
    "ensure_weight_tying": (bool,),
    "eva_config": (dict,),
    "inference_mode": (bool,),
    "loftq_config": (dict,),
    "lora_dropout": (int, float),
    "lora_ga_config": (dict,),
    "megatron_core": (str,),
    "peft_version": (str,),
    "qalora_group_size": (int,),
    "revision": (str,),
    "runtime_config": (dict,),
}
"""Fields that change no output of a saved adapter, and the types they have when they are not null.

They configure training or a field that is refused; those of initialisations count by ``init_lora_weights``.
"""

REFUSED: Mapping[str, str] = {
    "alora_invocation_tokens": "aLoRA switches the adapter on inside a prompt; retrain without it",
    "arrow_config": "Arrow routes between adapters; register the adapters it was built from",
    "fan_in_fan_out": "it is for Conv1D layers, which no served model has; retrain on the served base model",
    "kasa_config": "KaSA truncates the base weights and adds lora_diag; retrain without it",
    "layer_replication": "it builds another base model; apply it to the base model and retrain",
    "lora_bias": "biases of LoRA layers are not served; retrain with lora_bias=False",
    "megatron_config": "Megatron's parallel layers are saved in another layout; convert the adapter to plain layers",
    "modules_to_save": "whole modules are not served; retrain without modules_to_save, or merge the adapter",
    "monteclora_config": "MonteCLoRA saves a sampler; retrain without it",
    "target_parameters": "LoRA on bare parameters is not served; retrain on linear layers with target_modules",
    "trainable_token_indices": "trained token embeddings are not served; retrain without them",
    "use_bdlora": "block-diagonal matrices have other shapes; retrain without it",
    "use_dora": "DoRA's magnitudes are not served; retrain without it, or merge the adapter",
    "use_qalora": "QA-LoRA pools the layers' inputs; retrain without it",
    "velora_config": "VeLoRA saves a projection that only training needs; retrain without it",
}
"""Fields that are refused unless they are off, and why, with the remedy."""

EMPTY_IS_OFF = frozenset({"layer_replication", "megatron_config", "modules_to_save", "target_parameters"})
"""Refused fields that count as off for PEFT also when they are empty, not only when null or false."""

PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica"})
"""Initialisations that leave the base weights unchanged, so that the saved matrices are the whole adapter."""

MUTATING_INITS = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""Initialisations that change the base weights: the saved matrices are right only on the changed ones."""

_EMBEDDING = "LoRA on an embedding is not served; retrain without embed_tokens as a target, or merge the adapter"
_WHOLE = (
    "whole modules are not served; save it with save_embedding_layers=False if it was not trained, or merge the adapter"
)

EXTRA_TENSORS: Mapping[str, str] = {
    ".lm_head.weight": f"it is the whole output head, and {_WHOLE}",
    ".embed_tokens.weight": f"it is the whole embedding, and {_WHOLE}",
    ".lora_embedding_A": _EMBEDDING,
    ".lora_embedding_B": _EMBEDDING,
    ".lora_magnitude_vector": "it is DoRA's; retrain with use_dora=False, or merge the adapter",
    ".lora_B.bias": "biases of LoRA layers are not served; retrain with lora_bias=False",
    ".lora_diag": "it is KaSA's; retrain without kasa_config",
    ".lora_monteclora": "it is MonteCLoRA's; retrain without monteclora_config",
    ".lora_velora": "it is VeLoRA's; retrain without velora_config",
    ".lora_arrow": "it is Arrow's; register the adapters it was built from",
    ".trainable_tokens_": "trained token embeddings are not served; retrain without trainable_token_indices",
    ".embed_tokens.": _EMBEDDING,
    ".modules_to_save": "whole modules are not served; retrain without modules_to_save, or merge the adapter",
    ".original_module": "whole modules are not served; retrain without modules_to_save, or merge the adapter",
    ".bias": "trained biases are not served; retrain with bias='none'",
}
"""Parts of tensors' keys that are refused, in the order in which they are tried, and why."""
