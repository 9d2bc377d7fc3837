"""The roofline's constants from published times: ``python -m loratory.reproduce.fit.roofline``.

Each constant is solved from the figures that show it alone, GPU by GPU, and averaged over the GPUs:

    memory     linear layers at 1 token: all time is reading weights
    compute    linear layers at 4096 tokens, with memory time removed from the root of the sum of squares
    attention  slope of the decode step from batch 1 to 32, without the other kernels, A100 and H100
    overhead   the rest of the decode step at batch 1, by architecture

The efficiencies in `loratory.sim.cost.roofline` are these, rounded. The linear layers at 512 tokens were used to
choose the root of the sum of squares over the plain maximum. Everything else is a prediction.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from loratory.reproduce.kernel_times import PublishedTime, figures
from loratory.sim.catalogue import gpu, model
from loratory.sim.cost import RooflineCost, RooflineOptions

_ARCHITECTURE = {"a100-80gb": "Ampere", "h100-80gb": "Hopper", "h200": "Hopper"}
_SLOPE_TO = 32


@dataclass(frozen=True, slots=True)
class Constants:
    """Efficiencies as shares of the datasheet's numbers; ``layer_overhead_s`` by architecture, per layer."""

    memory: float
    compute: float
    attention: float
    layer_overhead_s: dict[str, float]

    def options(self, card: str) -> RooflineOptions:
        """The roofline's options for a GPU. Raises `KeyError` if no figure of its architecture was used."""
        return RooflineOptions(
            memory_efficiency=self.memory,
            compute_efficiency=self.compute,
            decode_attention_efficiency=self.attention,
            layer_overhead_s=self.layer_overhead_s[_ARCHITECTURE[card]],
        )


def used(figure: PublishedTime) -> bool:
    """Whether a figure was used to fit a constant or to choose the form of the model."""
    if figure.kind == "linear":
        return figure.size in (1, 512, 4096)
    return figure.kind == "decode" and (figure.size == 1 or (figure.size == _SLOPE_TO and figure.gpu != "h200"))


def fit(without: str | None = None) -> Constants:
    """The constants, from the figures of every GPU but one."""
    known = {(f.kind, f.gpu, f.size): f.measured_s for f in figures() if f.gpu != without and used(f)}
    linear = sorted({card for kind, card, _ in known if kind == "linear"})
    decode = sorted({card for kind, card, _ in known if kind == "decode"})
    memory = _mean(
        [_linear(card, 1, RooflineOptions(memory_efficiency=1)) / known["linear", card, 1] for card in linear]
    )
    compute = _mean([_compute(card, known["linear", card, 4096], memory) for card in linear])
    bare = RooflineOptions(memory_efficiency=memory, compute_efficiency=compute, layer_overhead_s=0.0)
    slopes = [
        _attention(card, known["decode", card, 1], known["decode", card, _SLOPE_TO], bare)
        for card in decode
        if ("decode", card, _SLOPE_TO) in known
    ]
    attention = _mean(slopes)
    bare = bare.model_copy(update={"decode_attention_efficiency": attention})
    left: dict[str, list[float]] = {}
    for card in decode:
        rest = known["decode", card, 1] - PublishedTime("decode", card, 1, 0.0).predicted_s(bare)
        left.setdefault(_ARCHITECTURE[card], []).append(rest / model("llama-3.1-8b").shape.layers)
    return Constants(memory, compute, attention, {name: _mean(rests) for name, rests in left.items()})


def _linear(card: str, tokens: int, options: RooflineOptions) -> float:
    return PublishedTime("linear", card, tokens, 0.0).predicted_s(options)


def _compute(card: str, measured_s: float, memory: float) -> float:
    """Share of FLOP/s at which the linear layers over 4096 tokens take as long as measured."""
    low, high = 0.01, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        options = RooflineOptions(memory_efficiency=memory, compute_efficiency=middle)
        low, high = (middle, high) if _linear(card, 4096, options) > measured_s else (low, middle)
    return low


def _attention(card: str, one_s: float, many_s: float, options: RooflineOptions) -> float:
    """Share of bandwidth at which the KV cache is read: extra bytes of the larger batch over its extra seconds."""
    spec = model("llama-3.1-8b")
    cost = RooflineCost(spec, gpu(card), options=options)
    rest = []
    for batch in (1, _SLOPE_TO):
        shape = PublishedTime("decode", card, batch, 0.0).shape
        rest.append(cost.step_seconds(shape) - cost.explain(shape)["decode_attention"])
    kv_bytes = [
        PublishedTime("decode", card, n, 0.0).shape.kv_tokens * spec.kv_bytes_per_token() for n in (1, _SLOPE_TO)
    ]
    seconds = (many_s - rest[1]) - (one_s - rest[0])
    return (kv_bytes[1] - kv_bytes[0]) / seconds / gpu(card).memory_bytes_per_s


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def main() -> str:
    """The constants from all figures used, and with each Hopper GPU left out."""
    lines = []
    for without in (None, "h100-80gb", "h200"):
        found = fit(without)
        overheads = ", ".join(f"{name} {1e6 * s:.1f} us" for name, s in sorted(found.layer_overhead_s.items()))
        lines.append(
            f"{'all figures used' if without is None else f'without {without}'}: memory {found.memory:.3f}, "
            f"compute {found.compute:.3f}, decode attention {found.attention:.3f}, a layer's overhead {overheads}"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(main())
