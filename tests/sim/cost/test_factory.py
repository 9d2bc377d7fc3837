"""cost_model: every kind from a scenario's mapping, and one sentence for whatever is wrong with it."""

from __future__ import annotations

import pytest

from loratory.errors import InputError
from loratory.serving.config import EngineConfig
from loratory.sim.catalogue import gpu, model
from loratory.sim.cost import CostModel, cost_model


def build(kind: str, options: dict[str, object] | None = None) -> CostModel:
    return cost_model(kind, model("llama-3.1-8b"), gpu("h100-80gb"), EngineConfig.model_validate({}), options)


def test_kinds() -> None:
    assert build("roofline").name == "roofline"
    assert build("linear", {"decode_base_s": 0.01}).name == "linear"


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("rofline", {}, "unknown cost kind 'rofline': did you mean roofline"),
        ("linear", {"decode_bse_s": 1}, "unknown key cost: 'decode_bse_s': did you mean decode_base_s"),
        ("linear", {"decode_base_s": -1}, r"cost\.decode_base_s is -1: input should be greater than or equal to 0"),
        ("roofline", {"memory_efficiency": 1.2}, r"cost\.memory_efficiency is 1\.2"),
        ("roofline", {"dtype": "fp9"}, "unknown dtype 'fp9'"),
        (
            "roofline",
            {"transfers": {"disk_fixd_s": 1}},
            r"unknown key cost\.transfers: 'disk_fixd_s': did you mean disk_f",
        ),
        ("profile", {}, r"cost\.profile"),
        ("profile", {"profile": "no-such"}, "unknown profile 'no-such'"),
    ],
)
def test_mistakes_get_a_remedy(kind: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(kind, options)
