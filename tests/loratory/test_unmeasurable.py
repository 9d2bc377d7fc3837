"""What a scenario may ask of the simulator and not of the executor is one sentence with the key and the remedy."""

from __future__ import annotations

import pytest

from loratory.errors import InputError
from loratory.experiment.execute import refuse_unmeasurable
from loratory.scenarios.load import load_scenario


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["cluster.replicas=2"], "cluster.replicas is 2, but the executor runs one replica: set it to 1"),
        (["cluster.replicas=[{gpu: l4}]"], "cluster.replicas is a list of kinds"),
        (
            ["engine.tensor_parallel_size=2"],
            "engine.tensor_parallel_size is 2, but the executor computes on one device",
        ),
        (["cluster.events=[{at_s: 9, roll_out: 1}]"], "cluster.events is given"),
        (["cluster.autoscale={most: 2, target: 9}"], "cluster.autoscale is given"),
        (["cluster.placement=greedy"], "cluster.placement is given"),
        (["memory.kv_cache_dtype=fp8"], "memory.kv_cache_dtype is fp8"),
        (["engine.async_scheduling=true"], "engine.async_scheduling is true"),
    ],
)
def test_what_the_executor_does_not_do_is_refused(overrides: list[str], told: str) -> None:
    refuse_unmeasurable(load_scenario("quickstart", []))
    with pytest.raises(InputError) as refused:
        refuse_unmeasurable(load_scenario("quickstart", overrides))
    assert str(refused.value).startswith(told) and str(refused.value).endswith(("leave it out", "set it to 1"))
