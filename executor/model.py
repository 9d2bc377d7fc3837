"""Model: a Llama, Mistral, Qwen2 or Qwen3 decoder over a paged KV cache, with fused projections."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from loratory.errors import InputError
from loratory.executor.attention.cpu import Attention, CPUAttention
from loratory.executor.batch import Batch, LoRA
from loratory.executor.checkpoint import Checkpoint, TensorSource, resolve_dtype
from loratory.executor.device_memory import is_out_of_memory, require
from loratory.executor.kv_cache import KVCache
from loratory.executor.linear import Linear, linear
from loratory.executor.model_config import ModelConfig
from loratory.executor.onednn_rows import round_up
from loratory.executor.ops import Ops, TorchOps
from loratory.executor.rope import inverse_frequencies, tables
from loratory.models.linear_layers import BLOCKS, FUSED


@dataclass(frozen=True, slots=True)
class _Layer:
    """The weights of one layer, projections fused as in `loratory.models.linear_layers.FUSED`.

    ``next_norm`` is the one that follows the layer: the next layer's first, or the model's last.
    """

    qkv: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Linear
    post_norm: Tensor
    gate_up: Linear
    down: Linear
    next_norm: Tensor


class Model:
    """Weights on one device in one dtype, and the forward pass over a `Batch`.

    The architecture is transformers' ``LlamaForCausalLM`` with the families' differences: biases, norms of queries
    and keys, head sizes, tied embeddings, RoPE scaling.
    """

    def __init__(self, config: ModelConfig, source: TensorSource, dtype: torch.dtype, device: torch.device) -> None:
        """Read all weights from ``source``. Raises `InputError` for a missing or misshapen tensor or no memory."""
        self.config = config
        self.shape = shape = config.shape
        self.dtype = dtype
        self.device = device
        what = f"a model of {shape.parameter_count / 1e9:.2f} billion parameters in {str(dtype).removeprefix('torch.')}"
        remedy = "use a smaller model or a device with more memory"
        if dtype.itemsize > 2:
            remedy = "use a 16-bit dtype, a smaller model or a device with more memory"
        require(shape.parameter_count * dtype.itemsize, device, what, remedy)
        try:
            with torch.inference_mode():
                self._read(source)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(f"out of memory on {device}: {what} does not fit: {remedy}") from None
        frequencies, self._rope_scale = inverse_frequencies(config.rope, shape.head_dim)
        self._frequencies = frequencies.to(device)
        self.attention: Attention
        self.ops: Ops
        if device.type == "cuda":
            from loratory.executor.attention.cuda import CUDAAttention  # Triton is there only where CUDA is
            from loratory.executor.ops_cuda import TritonOps

            self.attention, self.ops = CUDAAttention(shape.heads, shape.kv_heads, shape.head_dim), TritonOps()
        else:
            self.attention = CPUAttention(shape.heads, shape.kv_heads, shape.head_dim, dtype)
            self.ops = TorchOps()

    @classmethod
    def load(cls, folder: str | Path, dtype: str = "auto", device: str = "cpu") -> Model:
        """The model of a Hugging Face checkpoint folder. ``dtype`` ``auto`` is the checkpoint's own."""
        checkpoint = Checkpoint.open(folder)
        return cls(checkpoint.config, checkpoint, resolve_dtype(dtype, checkpoint.config), resolve_device(device))

    @torch.inference_mode()
    def forward(self, batch: Batch, kv: KVCache, lora: LoRA | None = None) -> Tensor:
        """Logits (S, vocab), float32, of ``batch.sample_rows``; writes the batch's keys and values into ``kv``.

        ``lora`` adds each row's adapter to every projection; without it all rows are the base model's.
        """
        shape, attention, ops, eps = self.shape, self.attention, self.ops, self.config.norm_eps
        keys, values = shape.q_width, shape.q_width + shape.kv_width
        if lora is not None:
            lora.begin(batch.slots)
        attention.begin(batch, kv)
        rows, count, wanted = kv.rows(batch), batch.rows, batch.sample_rows.shape[0]
        cos, sin = tables(batch.positions, self._frequencies, self._rope_scale, self.dtype)
        padding = round_up(count, self.dtype, self.device) - count
        tokens = functional.pad(batch.token_ids, (0, padding)) if padding else batch.token_ids
        x = self._embedding.index_select(0, tokens)
        h = ops.norm(x, self._first_norm, eps)
        for index, layer in enumerate(self._layers):
            qkv = layer.qkv(h)
            if lora is not None:
                lora.add(qkv, h, index, "qkv")
            if layer.q_norm is not None:
                self._norm_heads(qkv, layer)
            ops.rotate_and_store(qkv[:count], cos, sin, rows, kv.keys[index], kv.values[index])
            h = attention.run(index, qkv[:, :keys], qkv[:, keys:values], qkv[:, values:], kv)
            if index == shape.layers - 1 and wanted < count:
                # Keys and values are written: from here on compute only the rows that are sampled.
                if not wanted:
                    return h.new_empty((0, shape.vocab), dtype=torch.float32)
                spare = round_up(wanted, self.dtype, self.device) - wanted
                going_on = functional.pad(batch.sample_rows, (0, spare)) if spare else batch.sample_rows
                x, h = x.index_select(0, going_on), h.index_select(0, going_on)
                if lora is not None:
                    lora.begin(batch.slots.index_select(0, batch.sample_rows))
            elif padding:
                h[count:].zero_()
            o = layer.o(h)
            if lora is not None:
                lora.add(o, h, index, "o")
            h = ops.add_norm(x, o, layer.post_norm, eps)
            gate_up = layer.gate_up(h)
            if lora is not None:
                lora.add(gate_up, h, index, "gate_up")
            h = ops.gate(gate_up)
            down = layer.down(h)
            if lora is not None:
                lora.add(down, h, index, "down")
            h = ops.add_norm(x, down, layer.next_norm, eps)
        logits = self._head(h)
        if lora is not None:
            lora.add(logits, h, 0, "head")
        return logits[:wanted].float()

    def new_cache(self, num_blocks: int, block_size: int) -> KVCache:
        """A KV cache for this model. Raises `InputError` if the memory is not there."""
        shape = self.shape
        return KVCache(num_blocks, block_size, shape.layers, shape.kv_heads, shape.head_dim, self.dtype, self.device)

    def _norm_heads(self, qkv: Tensor, layer: _Layer) -> None:
        """Normalise queries and keys head by head, in place."""
        shape, eps = self.shape, self.config.norm_eps
        assert layer.q_norm is not None and layer.k_norm is not None
        q = qkv[:, : shape.q_width].view(qkv.shape[0], -1, shape.head_dim)
        k = qkv[:, shape.q_width : shape.q_width + shape.kv_width].view(qkv.shape[0], -1, shape.head_dim)
        q.copy_(torch.rms_norm(q, (shape.head_dim,), layer.q_norm, eps))
        k.copy_(torch.rms_norm(k, (shape.head_dim,), layer.k_norm, eps))

    def _read(self, source: TensorSource) -> None:
        def get(name: str, shape: tuple[int, ...]) -> Tensor:
            return source.get(name, shape).to(self.device, self.dtype)

        def fused(prefix: str, group: str, shapes: dict[str, tuple[int, ...]]) -> Linear:
            modules = [f"{BLOCKS[module]}.{module}" for module in FUSED[group]]
            weights = [get(f"{prefix}{name}.weight", shapes[f"{prefix}{name}.weight"]) for name in modules]
            biases = [
                get(f"{prefix}{name}.bias", shapes[f"{prefix}{name}.bias"])
                for name in modules
                if f"{prefix}{name}.bias" in shapes
            ]
            weight = weights[0] if len(weights) == 1 else torch.cat(weights)
            return linear(weight, torch.cat(biases) if biases else None)

        outer = self.config.outer_tensors()
        every = [self.config.layer_tensors(index) for index in range(self.shape.layers)]
        self._first_norm = get("model.layers.0.input_layernorm.weight", (self.shape.hidden,))
        layers = []
        for index, shapes in enumerate(every):
            prefix = f"model.layers.{index}."
            head_norms = [f"{prefix}self_attn.{name}.weight" for name in ("q_norm", "k_norm")]
            q_norm, k_norm = (get(name, shapes[name]) if name in shapes else None for name in head_norms)
            last = index + 1 == len(every)
            following = "model.norm.weight" if last else f"model.layers.{index + 1}.input_layernorm.weight"
            layers.append(
                _Layer(
                    qkv=fused(prefix, "qkv", shapes),
                    q_norm=q_norm,
                    k_norm=k_norm,
                    o=fused(prefix, "o", shapes),
                    post_norm=get(f"{prefix}post_attention_layernorm.weight", (self.shape.hidden,)),
                    gate_up=fused(prefix, "gate_up", shapes),
                    down=fused(prefix, "down", shapes),
                    next_norm=get(following, (self.shape.hidden,)),
                )
            )
        self._layers = tuple(layers)
        embedding, head = "model.embed_tokens.weight", "lm_head.weight"
        self._embedding = get(embedding, outer[embedding])
        self._head = linear(self._embedding if self.shape.tied else get(head, outer[head]))


def resolve_device(device: str) -> torch.device:
    """The device called ``cpu`` or ``cuda``. Raises `InputError` for another, or where there is no CUDA device."""
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise InputError(f"device {device!r} is not supported: use cpu or cuda")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError("device cuda: torch finds no CUDA device here: use --device cpu")
    return torch.device(device)
