"""Cluster events and autoscaling: what cannot be meant is refused by key, in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from loratory.errors import InputError
from loratory.experiment.notes.late_notes import late_notes
from loratory.experiment.notes.router_notes import fleet_notes
from loratory.experiment.resolve import build
from loratory.scenarios.build import build_workload
from loratory.scenarios.load import load_scenario
from loratory.scenarios.schema import Scenario

BASE = """
name: base
model: llama-3.1-8b
gpu: h100-80gb
engine: {max_loras: 2}
adapters: {count: 6, ranks: 16}
workload: {arrivals: {poisson: 9}, input_tokens: 9, output_tokens: 9, requests: 9}
"""


def _load(tmp_path: Path, cluster: str, *settings: str, unbounded: bool = False) -> Scenario:
    path = tmp_path / "scenario.yaml"
    path.write_text(f"{BASE}cluster: {cluster}\n", encoding="utf-8")
    return load_scenario(path, settings, unbounded=unbounded)


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
        ("{replicas: '2x'}", "cluster.replicas", "should be a number of replicas, or a list of kinds"),
        ("{replicas: [{engine: {max_lora: 3}}]}", "cluster.replicas.0.engine.max_lora", "did you mean 'max_loras'?"),
        ("{replicas: [{engine: {max_loras: 0}}]}", "replicas.0.engine.max_loras", "should be at least 1, not 0"),
        ("{replicas: [{engine: {max_cpu_loras: 1}}]}", "replicas.0.engine.max_cpu_loras", "is 1, below max_loras (2)"),
        ("{router: {name: rendezvous, load: 1.5}}", "cluster.router", 'write "rendezvous:load=1.5"'),
        ("{replicas: 2, placement: [greedy]}", "cluster.placement", "should be a name, such as greedy"),
        ("{replicas: 2, placement: 'greedy:homs=2'}", "cluster.placement", "did you mean 'homes'?"),
        ("{replicas: 2, placement: 'greedy:2'}", "cluster.placement", "write greedy:homes=2"),
        ("{replicas: 9, autoscale: {most: 8, target: 4}}", "cluster.replicas", "allows 1 to 8"),
        ("{autoscale: {most: 8, target: 1e-320}}", "cluster.autoscale.target", "should be at least 1e-06"),
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


INTERVALS = (
    ("cluster.metrics_interval_s", "{{replicas: 2, metrics_interval_s: {}}}"),
    ("cluster.autoscale.interval_s", "{{autoscale: {{most: 4, target: 9, interval_s: {}}}}}"),
    ("cluster.placement.every_s", "{{replicas: 2, placement: {{name: bin_pack, every_s: {}}}}}"),
)


@pytest.mark.parametrize(("key", "cluster"), INTERVALS)
def test_an_interval_advances_the_clock(tmp_path: Path, key: str, cluster: str) -> None:
    """Below a millisecond only where limits are lifted; so short that the clock would stand still, never."""
    with pytest.raises(InputError, match=rf"{key} is 0.0001, below 0.001, the smallest expected.*--unbounded"):
        _load(tmp_path, cluster.format("0.0001"))
    _load(tmp_path, cluster.format("0.0001"), unbounded=True)
    for tiny in ("1.0e-9", "1e-320"):
        with pytest.raises(InputError, match=f"{key} should be at least 1e-06"):
            _load(tmp_path, cluster.format(tiny), unbounded=True)


def test_decisions_are_counted_before_they_are_made(tmp_path: Path) -> None:
    settings = ("workload.requests=null", "workload.duration_s=5000")
    with pytest.raises(InputError, match=r"autoscale.interval_s makes 2,500,000 decisions, above 1,000,000"):
        _load(tmp_path, INTERVALS[1][1].format("0.002"), *settings)


@pytest.mark.parametrize(
    "cluster", ["{replicas: 2, placement: greedy}", "{autoscale: {most: 4, target: 9, warm_adapters: 1}}"]
)
def test_where_no_request_has_an_adapter_none_has_a_home(tmp_path: Path, cluster: str) -> None:
    for setting, why in (
        ("adapters={count: 0}", "there are no adapters"),
        ("adapters.base_share=1", "base_share is 1"),
    ):
        with pytest.raises(InputError, match=rf"has no effect, because .*{why}"):
            _load(tmp_path, cluster, setting)
    _load(tmp_path, "{replicas: 2, placement: replicate_all}", "adapters={count: 0}")


def test_what_a_setting_may_take_away_is_a_note(tmp_path: Path) -> None:
    def notes(cluster: str) -> list[str]:
        return fleet_notes(_load(tmp_path, cluster).cluster)

    assert notes("{replicas: 2, events: [], startup_s: 9, on_failure: fail}") == [
        "cluster.on_failure (fail) has no effect, as cluster.events has no fail",
        "cluster.startup_s (9.0) has no effect, as cluster.events has no recover",
    ]
    assert notes("{replicas: 3, placement: {name: greedy, homes: 50}}") == [
        "cluster.placement.homes (50) has no effect, as there are 3 replicas at most"
    ]
    same = "{replicas: 3, autoscale: {least: 3, most: 3, target: 9}"
    assert notes(f"{same}}}") == ["cluster.autoscale has no effect, as its least and its most are both 3"]
    assert notes(f"{same}, events: [{{at_s: 1, drain: 0}}]}}") == []


def test_what_comes_after_the_last_request_is_told_before_a_run(tmp_path: Path) -> None:
    events = "[{at_s: 100, fail: 1}, {at_s: 101, fail: 0}]"
    scenario = _load(tmp_path, f"{{replicas: 2, events: {events}, placement: 'greedy:homes=1,every_s=90'}}")
    built = build(scenario)
    first, second = late_notes(scenario.cluster, built.roll_outs, build_workload(scenario, 0, built.adapters))
    assert first.startswith("cluster.events: fail 1 at 100 s and 1 other may not happen, because the last request")
    assert second.startswith("cluster.placement.every_s is 90 s, but the last request arrives at")


def test_each_gpu_is_looked_up(tmp_path: Path) -> None:
    scenario = _load(tmp_path, "{replicas: [{gpu: h100-80gb, count: 2}]}", "gpu=nope")
    with pytest.raises(InputError, match="gpu: unknown gpu 'nope'"):
        build(scenario)


def test_a_number_in_quotes_is_a_number(tmp_path: Path) -> None:
    settings = ('workload.arrivals="1e2"', 'workload.input_tokens="9"', 'adapters.ranks="8"', 'warmup_s="0.5"')
    found = _load(tmp_path, "{replicas: '4', metrics_delay_s: '0.5'}", *settings)
    assert found.cluster.count == 4 and found.workload.arrivals is not None and found.workload.arrivals.poisson == 100.0


def test_a_word_that_needs_a_value_says_how_it_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"adapters.popularity is zipf without a value: write \{zipf: 1.0\}"):
        _load(tmp_path, "{replicas: 2}", "adapters.popularity=zipf")
