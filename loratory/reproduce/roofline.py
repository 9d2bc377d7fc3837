"""Roofline: kernel and step times of A100, H100 and H200, from datasheets and stated efficiencies."""

from __future__ import annotations

from loratory.reproduce.cases import Case, run_case
from loratory.reproduce.comparison import Check, Reproduction, Row
from loratory.reproduce.fit.roofline import fit, used
from loratory.reproduce.kernel_times import PublishedTime, figures
from loratory.sim.cost.known_errors import known_error

LINEAR = "linear layers, ms"
DECODE = "time per output token, ms"
PREFILL = "prefill of the batch, ms"
UNSEEN = "time per output token, GPU left out of the fit, ms"

LIMIT = 0.15
"""Largest relative error of any row."""

_ALL = ("h100-64gb", "vllm-0.8.5")
"""The setting in which all that was compared is told of."""

_UNSEEN_GPUS = ("h200", "h100-80gb")
"""GPUs whose constants come from the figures of others; the A100 is the only GPU of its architecture."""


def reproduce() -> Reproduction:
    """Linear layers from the cost model alone; decode steps and prefills from runs of published/aiconfigurator."""
    published = figures()
    runs = {(f.gpu, f.size): _run(f) for f in published if f.kind == "decode"}
    rows = [_row(f, LINEAR, f.predicted_s(), f"{f.gpu}, {f.size} tokens") for f in published if f.kind == "linear"]
    for figure in published:
        case = f"{figure.gpu}, batch {figure.size}"
        if figure.kind == "decode":
            rows.append(_row(figure, DECODE, runs[figure.gpu, figure.size][1], case))
        elif figure.kind == "prefill":
            rows.append(_row(figure, PREFILL, runs[figure.gpu, figure.size][0], case))
    for card in _UNSEEN_GPUS:
        options = fit(without=card).options(card)
        for figure in published:
            if figure.kind == "decode" and figure.gpu == card:
                milliseconds = 1e3 * figure.predicted_s(options)
                rows.append(Row(f"{card}, batch {figure.size}", UNSEEN, 1e3 * figure.measured_s, milliseconds))
    return Reproduction(
        name="roofline",
        title="Kernel and step times of A100, H100 and H200",
        source="AIConfigurator 0.12 (Llama-3.1-8B, vLLM 0.24) and measured kernel times (Llama-2-7B, fp16)",
        scenarios=("published/aiconfigurator",),
        fitted=(
            "Five constants, which loratory/reproduce/fit/roofline.py computes from the rows marked as fitted: the "
            "share of memory bandwidth (0.76) from linear layers at 1 token, the share of FLOP/s (0.74) from those at "
            "4096, the share of bandwidth in decode attention (0.64) from batch 1 to 32 on A100 and H100, and the "
            "overhead per layer (A100 60 us, H100 and H200 8 us) from batch 1. The form, a root of the sum of "
            "squares, was chosen by the rows at 512 tokens. The share of FLOP/s in prefill attention, 0.5, is an "
            "assumption. In the last table no constant comes from the GPU's own figures."
        ),
        rows=tuple(rows),
        checks=tuple(_checks(rows)),
        not_modelled=(
            f"With adapters, steps are compared in whole runs (`agullo`). Together: {known_error(*_ALL)}.",
            "Tile and wave quantisation of GEMMs, padding of CUDA-graph batches, power capping.",
            "Errors are largest for small batches on the H200 when its own figures are left out (the H100's step at "
            "batch 1 leaves almost no overhead, but the H200's leaves half a millisecond), and for the prefill of one "
            "1024-token prompt.",
        ),
    )


def _run(figure: PublishedTime) -> tuple[float, float]:
    """Seconds of (prefill of the batch, decode step), simulated."""
    (run,) = run_case(Case("published/aiconfigurator", (f"gpu={figure.gpu}", f"workload.requests={figure.size}")))
    return run["ttft_s"]["mean"], run["tpot_s"]["mean"]


def _row(figure: PublishedTime, metric: str, simulated_s: float, case: str) -> Row:
    return Row(case, metric, 1e3 * figure.measured_s, 1e3 * simulated_s, "fit" if used(figure) else "test")


def _checks(rows: list[Row]) -> list[Check]:
    checks = []
    for metric in (LINEAR, DECODE, PREFILL, UNSEEN):
        for use in ("fit", "test"):
            errors = [abs(row.error or 0.0) for row in rows if row.metric == metric and row.use == use]
            if errors:
                what = f"{metric.removesuffix(', ms')}: largest error of the {len(errors)} rows marked {use}"
                checks.append(Check(what, max(errors), LIMIT, metric=metric))
    return checks
