"""slo.targets: what it takes, what it refuses, and names of a trace that are known only when it is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from loratory.errors import InputError
from loratory.experiment.resolve import build
from loratory.experiment.slo_targets import slo_targets
from loratory.scenarios.build import build_workload
from loratory.scenarios.load import dump, load_text
from loratory.scenarios.schema import Scenario

TEXT = """
name: targets
model: llama-3.1-8b
gpu: h100-80gb
engine: {max_loras: 4, max_lora_rank: 64}
adapters: {count: 12, ranks: [8, 64], base_share: 0.1}
tenants: {map: {groups: 3}}
workload: {arrivals: {poisson: 20}, input_tokens: 300, output_tokens: {uniform: [1, 100]}, requests: 60}
"""
TIME = "metric: ttft, mark: p95, at_most_s: 2"


def loaded(*targets: str, overrides: tuple[str, ...] = (), text: str = TEXT, folder: Path | None = None) -> Scenario:
    return load_text(text, "t.yaml", folder, (*overrides, f"slo.targets=[{', '.join(targets)}]"))


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (f"{{{TIME}}}", "TTFT p95 at most 2 s"),
        ("{metric: itl, mark: p99.90, at_most_s: 0.1}", "ITL p99.9 at most 100 ms"),
        (f"{{{TIME}, tenant: tenant-1}}", "TTFT p95 of tenant tenant-1 at most 2 s"),
        (f"{{{TIME}, tenant: each}}", "TTFT p95 of each tenant at most 2 s"),
        (f"{{{TIME}, tenant: default, adapters: base}}", "TTFT p95 of tenant default and the base model at most 2 s"),
        (f"{{{TIME}, adapters: {{ranks: [64]}}}}", "TTFT p95 of adapters of rank 64 at most 2 s"),
        (f"{{{TIME}, adapters: {{ranks: [64, 8]}}}}", "TTFT p95 of adapters of ranks 8 and 64 at most 2 s"),
        (f"{{{TIME}, adapters: [adapter-003]}}", "TTFT p95 of adapter adapter-003 at most 2 s"),
        (
            f"{{{TIME}, adapters: {{start: 1, count: 3}}}}",
            "TTFT p95 of adapters adapter-001 to adapter-003 at most 2 s",
        ),
        (f"{{{TIME}, over_adapters: p95}}", "p95 over adapters of their TTFT p95 at most 2 s"),
        (f"{{{TIME}, over_tenants: max}}", "max over tenants of their TTFT p95 at most 2 s"),
        ("{attainment: 0.99, ttft_s: 2, tpot_s: 0.05}", "99 % of requests within TTFT 2 s and TPOT 50 ms"),
        ("{attainment: 1, queue_s: 3, adapters: each}", "100 % of requests of each adapter within queue time 3 s"),
    ],
)
def test_a_target_in_words(target: str, words: str) -> None:
    scenario = loaded(target)
    assert [found.words for found in slo_targets(scenario.slo, build(scenario).adapters)] == [words]
    assert scenario.slo.given and load_text(dump(scenario)) == scenario


def test_a_class_of_adapters_has_those_of_its_ranks() -> None:
    scenario = loaded(f"{{{TIME}, adapters: {{ranks: [64]}}}}")
    adapters = build(scenario).adapters
    (target,) = slo_targets(scenario.slo, adapters)
    assert target.group.adapters is not None
    assert target.group.adapters.names == {adapter.name for adapter in adapters if adapter.rank == 64} != set()


def test_targets_whose_words_are_shortened_keep_their_own_names() -> None:
    lists = [[f"adapter-{i:03d}" for i in (0, 1, 2, last)] for last in (3, 4)]
    scenario = loaded(*(f"{{{TIME}, adapters: [{', '.join(names)}]}}" for names in lists))
    first, second = slo_targets(scenario.slo, build(scenario).adapters)
    assert first.words == second.words and second.name == f"{first.name} (2)"


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("{}", "targets.0 needs either metric with mark and at_most_s, or attainment"),
        (f"{{{TIME}, attainment: 0.9}}", "targets.0 needs either metric"),
        ("{metric: ttft, at_most_s: 2}", "targets.0.mark is missing: add it"),
        ("{metric: ttft, mark: p95}", "targets.0.at_most_s is missing: add it"),
        ("{metric: ttft, mark: p100, at_most_s: 2}", "targets.0.mark should be mean, max or a percentile such as p95"),
        ("{metric: ttft, mark: p0, at_most_s: 2}", "targets.0.mark should be mean, max or a percentile"),
        ("{metric: ttft, mark: 95, at_most_s: 2}", "targets.0.mark should be mean, max or a percentile"),
        ("{metric: tft, mark: p95, at_most_s: 2}", "did you mean 'ttft'"),
        (f"{{{TIME}, ttft_s: 2}}", "targets.0.ttft_s is for attainment, but the target has a metric: use at_most_s"),
        ("{attainment: 0.9}", "targets.0.attainment needs a limit that each request keeps"),
        ("{attainment: 0, ttft_s: 1}", "targets.0.attainment is 0, which every run reaches"),
        ("{attainment: 0.9, ttft_s: 1, mark: p95}", "targets.0.mark is for a metric"),
        ("{attainment: 0.9, ttft_s: 1, over_adapters: p95}", "over_adapters is for a metric.*use adapters: each"),
        ("{attainment: 0.9, ttft_s: 1, over_tenants: max}", "over_tenants is for a metric.*use tenant: each"),
        ("{metric: itl, mark: p99, at_most_s: 1, tenant: each}", "tenant cannot be combined with itl"),
        (f"{{{TIME}, tenant: tenant-11}}", "names the tenant 'tenant-11', which does not exist; did you mean 'tenant-"),
        (f"{{{TIME}, adapters: [adaptr-001]}}", "did you mean 'adapter-001'"),
        (f"{{{TIME}, adapters: {{ranks: [60]}}}}", "has rank 60, which no adapter has; the nearest is 64"),
        (f"{{{TIME}, adapters: {{start: 4, count: 9}}}}", "has adapters 4 to 12, but there are 12, counted from 0"),
        (f"{{{TIME}, adapters: sql}}", "should be a list of adapter names, {start, count}, {ranks: .*}, base or each"),
        (f"{{{TIME}, tenant: each, adapters: each}}", "adapters cannot be combined with tenant"),
        (f"{{{TIME}, tenant: each, over_adapters: max}}", "over_adapters cannot be combined with tenant"),
        (f"{{{TIME}, tenant: tenant-1, over_tenants: max}}", "over_tenants is over all tenants"),
        (f"{{{TIME}, adapters: base, over_adapters: max}}", "over_adapters is over adapters"),
        (f"{{{TIME}}}, {{metric: ttft, mark: p95.0, at_most_s: 3}}", "targets.1 repeats targets.0"),
        ("", "targets is empty: give at least one"),
    ],
)
def test_a_target_that_means_nothing_is_refused(target: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem) as error:
        loaded(target)
    assert "slo.targets" in str(error.value)


@pytest.mark.parametrize(
    ("target", "override", "problem"),
    [
        (TIME, "slo.ttft_p95_s=3", "slo.targets.0 repeats ttft_p95_s"),
        (f"{TIME}, adapters: base", "adapters.base_share=0", "no request is for the base model"),
        (
            f"{TIME}, over_adapters: max",
            "adapters={count: 0}",
            "targets.0.over_adapters is about adapters, but there are",
        ),
        (
            f"{TIME}, adapters: [a]",
            "adapters={count: 0}",
            "names the adapter 'a', which does not exist; there are none",
        ),
        (f"{TIME}, adapters: {{ranks: [8]}}", "adapters={count: 0}", "rank 8, which no adapter has; there are none"),
    ],
)
def test_a_target_that_contradicts_the_scenario_is_refused(target: str, override: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        loaded(f"{{{target}}}", overrides=(override,))


def test_attainment_alone_still_needs_a_limit_beside_it() -> None:
    with pytest.raises(InputError, match=r"slo.attainment is the share of requests within the limits of slo"):
        loaded(f"{{{TIME}}}", overrides=("slo.attainment=0.9",))


TRACE = """
name: traced
model: llama-3.1-8b
gpu: h100-80gb
adapters: {ranks: [8, 16]}
tenants: {map: trace}
workload: {trace: trace.csv}
"""


@pytest.fixture(name="folder")
def traced(tmp_path: Path) -> Path:
    rows = [f"{i},100,10,a{i % 2},{'acme' if i % 3 else 'umbrella'}" for i in range(12)]
    (tmp_path / "trace.csv").write_text(
        "timestamp,input_tokens,output_tokens,adapter,tenant\n" + "\n".join(rows) + "\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("adapters: [a9]", r"slo.targets.0.adapters names the adapter 'a9', which does not exist; did you mean 'a"),
        ("adapters: {ranks: [64]}", r"slo.targets.0.adapters has rank 64, which no adapter has; the nearest is 16"),
        ("adapters: {count: 3}", r"slo.targets.0.adapters has adapters 0 to 2, but there are 2"),
        ("tenant: acne", r"slo.targets.0.tenant names the tenant 'acne', which does not exist; did you mean 'acme'"),
    ],
)
def test_names_of_a_trace_are_refused_once_it_is_read(folder: Path, target: str, problem: str) -> None:
    scenario = loaded(f"{{{TIME}, {target}}}", text=TRACE, folder=folder)
    with pytest.raises(InputError, match=problem):
        build_workload(scenario, 0, build(scenario).adapters)


def test_names_of_a_trace_that_exist_are_taken(folder: Path) -> None:
    scenario = loaded(f"{{{TIME}, tenant: umbrella, adapters: [a0]}}", text=TRACE, folder=folder)
    adapters = build(scenario).adapters
    assert "umbrella" in build_workload(scenario, 0, adapters).tenants
    assert slo_targets(scenario.slo, adapters)[0].words == "TTFT p95 of tenant umbrella and adapter a0 at most 2 s"
