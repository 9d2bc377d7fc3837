"""What reports say of the roofline's error is the generated summary, and names what was not measured."""

from __future__ import annotations

import re

from loratory.serving.config import EngineConfig
from loratory.sim.catalogue import gpu, model
from loratory.sim.cost import RooflineCost, RooflineOptions
from loratory.sim.cost.known_errors import known_error, measured


def test_the_sentence_has_the_numbers_of_the_summary() -> None:
    said = known_error("h100-64gb", "vllm-0.8.5")
    for kind in measured():
        assert (
            f"{kind['mean_error']:.0%} off on average, {kind['worst_error']:.0%} at most, over {kind['figures']} "
            in said
        )
        assert all(name in said for name in kind["gpus"])
    assert said.startswith("roofline with adapters: ITL ") and "not measured" not in said
    with_adapters, base = measured()
    assert with_adapters["adapters"] and with_adapters["figures"] == 176 and not base["adapters"]
    assert with_adapters["mean_error"] < 0.20 and with_adapters["worst_error"] < 0.60 and base["worst_error"] < 0.15


def test_what_was_not_measured_is_named() -> None:
    def unmeasured(*setting: object) -> str:
        return known_error(*setting).partition("; not measured: ")[2]  # type: ignore[arg-type]

    assert unmeasured("l4", "vllm-0.8.5") == "l4"
    assert unmeasured("l4", "vllm-0.32") == "l4, adapters under vLLM 0.32"
    assert unmeasured("a100-80gb", "vllm-0.8.5") == "adapters on a100-80gb"
    assert unmeasured("h100-80gb", "none", ["fp8"]) == "fp8"


def test_a_cost_model_says_it_for_its_own_setting() -> None:
    cost = RooflineCost(model("llama-3.1-8b"), gpu("l4"), engine=EngineConfig(), options=RooflineOptions(dtype="fp8"))
    assert re.search(r"not measured: l4, adapters under vLLM 0.32, fp8$", cost.known_error)
