"""The host's time of a step is hidden exactly where the engine plans ahead, and added where it does not."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from loratory.experiment.resolve import build
from loratory.experiment.run import run_scenario
from loratory.scenarios.load import load_scenario
from loratory.serving.engine_presets import ENGINE_PRESETS
from loratory.serving.plan import BatchShape
from loratory.sim.catalogue import gpu, model
from loratory.sim.cost import RooflineCost
from loratory.sim.cost.engine_times import ENGINE_TIMES
from loratory.sim.cost.known_errors import known_error

BATCH = BatchShape(0, 0, 0, 8, 4000, 4, 64, 16, 8, 128)

MODES = [(preset, ahead) for preset in ("vllm-0.8.5", "vllm-0.32") for ahead in (True, False)]


def cost_of(preset: str, ahead: bool | None, cost: str = "{kind: roofline}") -> Any:
    changes = [f"engine.as={preset}", f"cost={cost}"]
    if ahead is not None:
        changes.append(f"engine.async_scheduling={str(ahead).lower()}")
    return build(load_scenario("quickstart", changes)).cost


@pytest.mark.parametrize(("preset", "ahead"), MODES)
@pytest.mark.parametrize("kind", ["roofline", "kernels"])
def test_the_host_s_time_is_hidden_exactly_where_the_engine_plans_ahead(kind: str, preset: str, ahead: bool) -> None:
    if kind == "kernels" and find_spec("aiconfigurator_core") is None:
        pytest.skip("AIConfigurator's tables are not installed, as on Python 3.14")
    cost = cost_of(preset, ahead, f"{{kind: {kind}}}")
    host = cost.explain(BATCH)["host"]
    assert (host == 0.0) == ahead
    if not ahead:
        times = ENGINE_TIMES[preset]  # type: ignore[index]
        assert times.host_step_s <= host <= times.host_step_s + times.host_seq_s * BATCH.decode_seqs


@pytest.mark.parametrize(("preset", "ahead"), MODES)
def test_a_longer_host_s_time_matters_in_both_modes(preset: str, ahead: bool) -> None:
    """Added, each second of it counts; hidden, it counts from where it is longer than the GPU's time."""
    none, long, longer = (
        cost_of(preset, ahead, f"{{kind: roofline, host_step_s: {host}, host_seq_s: 0}}").step_seconds(BATCH)
        for host in (0.0, 0.05, 0.06)
    )
    assert longer - long == pytest.approx(0.01)
    assert long == pytest.approx(0.05 if ahead else none + 0.05)


def test_the_default_of_each_preset_is_as_before() -> None:
    for preset in ENGINE_PRESETS:
        assert ENGINE_TIMES[preset].host_hidden is ENGINE_PRESETS[preset].async_scheduling  # type: ignore[index]
        default = cost_of(preset, None).step_seconds(BATCH)
        assert default == cost_of(preset, ENGINE_PRESETS[preset].async_scheduling).step_seconds(BATCH)
    alone = RooflineCost(model("llama-3.1-8b"), gpu("h100-80gb"))
    assert "host" not in alone.explain(BATCH), "without an engine there is no host"


@pytest.mark.parametrize("preset", ["vllm-0.8.5", "vllm-0.32"])
def test_planning_ahead_delays_a_request_by_a_step_at_most(preset: str) -> None:
    """At a load that no batch builds up at: the plan of a step is one step old, and no step gets longer."""
    changes = [f"engine.as={preset}", "workload.arrivals={constant: 0.5}", "workload.duration_s=60", "seeds=[0]"]
    changes += ["adapters.initial_tier=host", "engine.max_cpu_loras=64", "adapters.count=8"]
    ahead, behind = (
        run_scenario(load_scenario("quickstart", [*changes, f"engine.async_scheduling={word}"], ["fifo"]))["runs"][0]
        for word in ("true", "false")
    )
    assert ahead["e2e_s"]["mean"] <= behind["e2e_s"]["mean"] + behind["tpot_s"]["mean"]
    assert ahead["tpot_s"]["mean"] < behind["tpot_s"]["mean"], "and the host's time is hidden"


def test_a_mode_that_was_not_measured_is_named() -> None:
    assert "not measured" not in known_error("h100-64gb", "vllm-0.8.5", (), False)
    assert known_error("h100-64gb", "vllm-0.8.5", (), True).endswith(
        "not measured: adapters under vLLM 0.8.5 (V1) with async_scheduling true"
    )
    assert cost_of("vllm-0.32", None).known_error.endswith("adapters under vLLM 0.32")
    assert cost_of("vllm-0.32", False).known_error.endswith("adapters under vLLM 0.32 with async_scheduling false")
