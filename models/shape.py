"""ModelShape: the layers and widths of a base model, from which its weights, LoRA matrices and KV cache get theirs."""

from __future__ import annotations

from dataclasses import dataclass

from loratory.errors import InputError
from loratory.models.linear_layers import HEAD, LINEAR_MODULES

_SIZES = ("hidden", "layers", "heads", "kv_heads", "head_dim", "intermediate", "vocab")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A Llama-like decoder: grouped-query attention, gated MLP, RMS norms. Sizes are in elements.

    ``family`` is the ``model_type`` of its Hugging Face configuration; ``tied``: the output head is the embedding.
    Raises `InputError` for a size below 1 or KV heads that do not divide the attention heads.

    >>> ModelShape(4096, 32, 32, 8, 128, 14336, 128256).widths("k_proj")
    (4096, 1024)
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    family: str = "llama"
    tied: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False

    def __post_init__(self) -> None:
        for name in _SIZES:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"the base model's {name} is {value!r}: it must be a whole number of at least 1")
        if self.heads % self.kv_heads:
            raise InputError(
                f"the base model has {self.heads} attention heads and {self.kv_heads} KV heads: "
                "the first must be a multiple of the second"
            )

    @property
    def q_width(self) -> int:
        """Columns of the query projection, and of the attention output."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Columns of the key projection, and of the value projection."""
        return self.kv_heads * self.head_dim

    def widths(self, module: str) -> tuple[int, int]:
        """(in_features, out_features) of one of `loratory.models.linear_layers.TARGETS`."""
        return {
            "q_proj": (self.hidden, self.q_width),
            "k_proj": (self.hidden, self.kv_width),
            "v_proj": (self.hidden, self.kv_width),
            "o_proj": (self.q_width, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
            HEAD: (self.hidden, self.vocab),
        }[module]

    def count(self, module: str) -> int:
        """How many of one of `loratory.models.linear_layers.TARGETS` the model has."""
        return 1 if module == HEAD else self.layers

    def has_bias(self, module: str) -> bool:
        """Whether one of a layer's linear modules adds a bias."""
        if module in ("q_proj", "k_proj", "v_proj"):
            return self.qkv_bias
        return self.o_bias if module == "o_proj" else self.mlp_bias

    @property
    def linear_parameters(self) -> int:
        """Weights of the layers' linear modules: without embedding, output head, norms and biases."""
        return self.layers * sum(i * o for i, o in map(self.widths, LINEAR_MODULES))

    def parameters(self) -> dict[str, int]:
        """Parameter counts by part: embedding, attention, mlp, norms, lm_head (0 when tied to the embedding)."""
        qkv_out = self.q_width + 2 * self.kv_width
        attention = self.hidden * qkv_out + self.q_width * self.hidden
        attention += (qkv_out if self.qkv_bias else 0) + (self.hidden if self.o_bias else 0)
        mlp = 3 * self.hidden * self.intermediate + (2 * self.intermediate + self.hidden if self.mlp_bias else 0)
        norms = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        return {
            "embedding": self.vocab * self.hidden,
            "attention": self.layers * attention,
            "mlp": self.layers * mlp,
            "norms": self.layers * norms + self.hidden,
            "lm_head": 0 if self.tied else self.vocab * self.hidden,
        }

    @property
    def parameter_count(self) -> int:
        """All parameters."""
        return sum(self.parameters().values())
