"""Cluster events and autoscaling: what cannot be meant is refused by key, in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from loratory.errors import InputError
from loratory.scenarios.load import load_scenario

BASE = """
name: base
model: llama-3.1-8b
gpu: h100-80gb
engine: {max_loras: 2}
adapters: {count: 6, ranks: 16}
workload: {arrivals: {poisson: 9}, input_tokens: 9, output_tokens: 9, requests: 9}
"""


def _load(tmp_path: Path, cluster: str, more: str = "") -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(f"{BASE}cluster: {cluster}\n{more}\n", encoding="utf-8")
    load_scenario(path)


@pytest.mark.parametrize(
    "cluster",
    [
        "{replicas: 2, events: [{at_s: 1, fail: 1}, {at_s: 2, recover: 1}, {at_s: 3, fail: 1}], startup_s: 3}",
        "{replicas: 2, events: [{at_s: 2, recover: 1}, {at_s: 1, fail: 1}]}",
        "{replicas: 1, events: [{at_s: 0, fail: 0}], on_failure: fail}",
        "{replicas: 2, autoscale: {most: 4, target: 9}, events: [{at_s: 1, drain: 3}, {at_s: 2, fail: 3}]}",
    ],
)
def test_what_can_happen_is_taken(tmp_path: Path, cluster: str) -> None:
    _load(tmp_path, cluster)


@pytest.mark.parametrize(
    ("cluster", "key", "why"),
    [
        ("{replicas: 2, events: [{at_s: -1, fail: 1}]}", "cluster.events.0.at_s", "should be at least 0"),
        ("{replicas: 2, events: [{at_s: 1, fail: 2}]}", "cluster.events.0.fail", "there are replicas 0 to 1"),
        ("{replicas: 1, events: [{at_s: 1, drain: 1}]}", "cluster.events.0.drain", "there are only replica 0"),
        ("{replicas: 2, events: [{at_s: 1, recover: 1}]}", "cluster.events.0.recover", "has not failed before"),
        ("{replicas: 2, events: [{at_s: 1, fail: 1, drain: 1}]}", "cluster.events.0", "exactly one of fail"),
        ("{replicas: 2, events: [{at_s: 1}]}", "cluster.events.0", "it has none"),
        ("{replicas: 2, events: [{at_s: 1, fail: 1}, {at_s: 2, fail: 1}]}", "cluster.events.1.fail", "has failed"),
        ("{replicas: 2, events: [{at_s: 2, fail: 1}, {at_s: 1, drain: 1}]}", "cluster.events.0.fail", "is drained"),
        ("{replicas: 2, events: [{at_s: 2, drain: 1}], on_failure: fail}", "cluster.on_failure", "has no fail"),
        ("{replicas: 2, events: [{at_s: 2, fail: 1}], startup_s: 9}", "cluster.startup_s", "has no recover"),
        ("{replicas: 2, startup_s: 9}", "cluster.startup_s", "has no recover"),
        ("{replicas: 9, autoscale: {most: 8, target: 4}}", "cluster.replicas", "allows 1 to 8"),
        ("{autoscale: {least: 9, most: 8, target: 4}}", "cluster.autoscale.least", "most is 8"),
        ("{autoscale: {most: 8, target: 4, by: attainment}}", "cluster.autoscale.target", "share below 1"),
        ("{autoscale: {most: 8, target: 0.9, by: attainment}}", "cluster.autoscale.by", "slo.ttft_p99_s"),
        ("{autoscale: {most: 8, target: 4, warm_adapters: 3}}", "cluster.autoscale.warm_adapters", "max_loras is 2"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, cluster: str, key: str, why: str) -> None:
    with pytest.raises(InputError) as error:
        _load(tmp_path, cluster)
    assert key in str(error.value) and why in str(error.value)
