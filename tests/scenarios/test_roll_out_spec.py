"""Roll-outs in a scenario: which adapters they mean, and what cannot be, in one sentence with exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from loratory.errors import InputError
from loratory.experiment.resolve import build
from loratory.experiment.slo_targets import slo_targets
from loratory.scenarios.load import load_scenario
from loratory.sim.fleet_options import RollOut

BASE = """
name: base
model: llama-3.1-8b
gpu: h100-80gb
engine: {max_loras: 2}
adapters: {count: 4, ranks: 16}
workload: {arrivals: {poisson: 9}, input_tokens: 9, output_tokens: 9, duration_s: 9}
"""


def _file(tmp_path: Path, roll_out: str, more: str = "") -> Path:
    path = tmp_path / "scenario.yaml"
    path.write_text(f"{BASE}cluster: {{events: [{roll_out}]}}\n{more}\n", encoding="utf-8")
    return path


def _orders(tmp_path: Path, roll_out: str, more: str = "") -> tuple[RollOut, ...]:
    return build(load_scenario(_file(tmp_path, roll_out, more))).roll_outs


def test_a_new_version_is_an_artefact_of_its_own(tmp_path: Path) -> None:
    how = "steps: [0.2, 1], every_s: 2, preload: true, rank: 8"
    orders = _orders(tmp_path, f"{{at_s: 5, roll_out: {{adapters: adapter-001, {how}}}}}, {{at_s: 8, roll_out: 1}}")
    first, second = orders
    assert (first.at_s, first.adapter, first.shares, first.every_s, first.preload) == (
        5.0, "adapter-001", (0.2, 1.0), 2.0, True,
    )  # fmt: skip
    assert (first.new.name, first.new.version, first.new.rank) == ("adapter-001@2", 2, 8)
    assert first.new.bytes * 2 == first.old.bytes
    assert [each.new.lora.lora_int_id for each in orders] == [5, 6], "four adapters have the ids 1 to 4"
    assert second.adapter == "adapter-000" and second.new.rank == 16


def test_several_adapters_start_apart_and_versions_count_on(tmp_path: Path) -> None:
    orders = _orders(tmp_path, "{at_s: 1, roll_out: {adapters: all, apart_s: 0.5}}, {at_s: 6, roll_out: [adapter-003]}")
    assert [each.at_s for each in orders] == [1.0, 1.5, 2.0, 2.5, 6.0]
    assert [each.new.name for each in orders][3:] == ["adapter-003@2", "adapter-003@3"]
    assert orders[-1].old == orders[3].new


@pytest.mark.parametrize(
    ("roll_out", "key", "why"),
    [
        ("{at_s: 1, roll_out: adapter-1}", "events.0.roll_out", "names the adapter 'adapter-1', which does not exist"),
        ("{at_s: 1, roll_out: 5}", "events.0.roll_out", "is 5, but there are 4 adapters"),
        ("{at_s: 1, roll_out: [adapter-000, adapter-000]}", "events.0.roll_out", "repeats 'adapter-000'"),
        ("{at_s: 1, roll_out: true}", "events.0.roll_out", "a number of adapters, or all"),
        ("{at_s: 1, roll_out: {adapter: 1}}", "events.0.roll_out.adapter", "did you mean 'adapters'"),
        ("{at_s: 1, roll_out: {adapters: 1, steps: [0.5, 0.4, 1], every_s: 1}}", "roll_out.steps", "that increase"),
        ("{at_s: 1, roll_out: {adapters: 1, steps: [0.5], every_s: 1}}", "roll_out.steps", "let the last share be 1"),
        ("{at_s: 1, roll_out: {adapters: 1, steps: [0.5, 2], every_s: 1}}", "roll_out.steps", "shares are from 0 to 1"),
        ("{at_s: 1, roll_out: {adapters: 1, steps: [0.5, 1]}}", "roll_out.steps", "every_s is missing"),
        ("{at_s: 1, roll_out: {adapters: 1, every_s: 1}}", "roll_out.every_s", "no effect without two steps"),
        ("{at_s: 1, roll_out: {adapters: 1, steps: [0.5, 1], every_s: 1, over_s: 1}}", "roll_out.over_s", "combined"),
        ("{at_s: 1, roll_out: {adapters: 1, apart_s: 1}}", "roll_out.apart_s", "one adapter is rolled out"),
        ("{at_s: 1, roll_out: {adapters: [adapter-001], apart_s: 1}}", "roll_out.apart_s", "one adapter is rolled out"),
        ("{at_s: 1, roll_out: adapter-2}", "events.0.roll_out", "did you mean 'adapter-002'?"),
        ("{at_s: 1, roll_out: {adapters: 1, rank: 64}}", "roll_out.rank", "engine.max_lora_rank is 16"),
        ("{at_s: 9, roll_out: 1}", "events.0.at_s", "the last request arrives before 9 s"),
        ("{at_s: 1, roll_out: 1}, {at_s: 1, roll_out: all}", "events.1.roll_out", "let this one begin later"),
        ("{at_s: 3, roll_out: 1}, {at_s: 1, roll_out: {adapters: all, over_s: 5}}", "events.0", "ends at 6 s"),
        ("{at_s: 1, roll_out: 1, fail: 0}", "events.0", "exactly one of fail, recover, drain, roll_out"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, roll_out: str, key: str, why: str) -> None:
    with pytest.raises(InputError) as error:
        load_scenario(_file(tmp_path, roll_out))
    assert key in str(error.value) and why in str(error.value)
    assert error.value.exit_code == 2 and "\n" not in str(error.value)


def test_unified_memory_takes_no_new_adapter(tmp_path: Path) -> None:
    path = _file(tmp_path, "{at_s: 1, roll_out: 1}")
    with pytest.raises(InputError, match=r"needs engine\.memory: slots"):
        load_scenario(path, overrides=["engine.memory=unified"])


def test_what_the_slo_demands_of_an_adapter_holds_for_its_new_version(tmp_path: Path) -> None:
    target = "slo: {targets: [{adapters: [adapter-001], metric: ttft, mark: p99, at_most_s: 1}]}"
    scenario = load_scenario(_file(tmp_path, "{at_s: 1, roll_out: all}", target))
    built = build(scenario)
    (found,) = slo_targets(scenario.slo, built.adapters, built.roll_outs)
    assert found.group.adapters is not None
    assert found.group.adapters.names == {"adapter-001", "adapter-001@2"}


def test_all_adapters_that_are_one_do_not_start_apart(tmp_path: Path) -> None:
    path = _file(tmp_path, "{at_s: 1, roll_out: {adapters: all, apart_s: 1}}")
    with pytest.raises(InputError, match="roll_out has apart_s, which has no effect, because one adapter"):
        load_scenario(path, ["adapters.count=1"])
