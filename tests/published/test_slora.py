"""S-LoRA's published runs (MLSys 2024): how near the simulation comes, and what its router does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loratory.errors import InputError
from loratory.reproduce.cases import Case, run_case
from loratory.reproduce.comparison import Reproduction
from loratory.reproduce.fit import slora as fit
from loratory.reproduce.slora import FITTED, SCENARIOS, figures, published, reproduce
from loratory.scenarios.build import build_adapters
from loratory.scenarios.library_index import published_folder
from loratory.scenarios.load import load_scenario

LIMITS = {
    "S1, unified and separate memory: mean error of throughput": 0.01,
    "S1: mean error of mean latency": 0.05,
    "S1: mean difference of attainment": 0.03,
    "S1 at low load, 1.5 req/s: error of mean latency": 0.05,
    "S2: mean error of throughput": 0.02,
    "S2 but for one adapter at 2 req/s: mean error of mean latency": 0.06,
    "S2, one adapter of rank 64 at 2.5 req/s: error of throughput": 0.02,
    "S2, one adapter of rank 64 at 2.5 req/s: error of mean latency": 0.06,
    "S4 on the A100: mean error of throughput": 0.03,
    "S4 on the A100: mean error of mean latency": 0.08,
    **{f"early abort, cv {cv}: difference of attainment": 0.05 for cv in (1, 2, 4, 6, 8)},
}


@pytest.fixture(scope="module")
def reproduction() -> Reproduction:
    return reproduce()


@pytest.mark.parametrize("what", LIMITS)
def test_the_simulation_is_near_what_was_measured(reproduction: Reproduction, what: str) -> None:
    check = next(check for check in reproduction.checks if check.what == what)
    assert check.limit == LIMITS[what] and not check.at_least
    assert check.as_expected, check


def test_no_check_is_missing(reproduction: Reproduction) -> None:
    assert [check.what for check in reproduction.checks] == list(LIMITS)


def test_nine_rows_are_fitted(reproduction: Reproduction) -> None:
    fitted = {row.case for row in reproduction.rows if row.use == "fit"}
    assert fitted == FITTED
    assert [sum(f"_{setting}_" in case for case in fitted) for setting in ("S1", "S2", "S4")] == [3, 2, 4]


def test_rows_of_a_file_are_compared_and_bad_files_refused(tmp_path: Path) -> None:
    whole = published_folder() / "measured" / "slora_mlsys24_more.csv"
    head, first, *_ = whole.read_text(encoding="utf-8").splitlines()
    path = tmp_path / "rows.csv"
    path.write_text(f"{head}\n{first}\n")
    found = reproduce(path)
    assert {row.case for row in found.rows} == {"ablation_mem_a10g_S2_dm: 1 adapters, 2.5 req/s, cv 1"}
    assert found.holds and [check.limit for check in found.checks] == [0.02, 0.06]
    slow = reproduce(path, ["cost.lora_step_s=0.02"])
    assert not slow.holds, "--set reaches the simulation"
    for line, says in (
        (first.replace("S2,1,", "S9,1,", 1), "setting 'S9' is unknown"),
        (first.replace("S2,1,", "S2,one,", 1), "num_adapters is 'one'"),
        (first.replace("_dm", "_xx"), "suite 'ablation_mem_a10g_S2_xx' is unknown"),
        (first.rpartition(",")[0], "fewer columns"),
        ("", "has no rows"),
    ):
        path.write_text(f"{head}\n{line}\n")
        with pytest.raises(InputError, match=says):
            reproduce(path)
    path.write_text("suite,gpu\nx,y\n")
    with pytest.raises(InputError, match="has no column setting"):
        reproduce(path)


def _constants(name: str) -> dict[str, float]:
    cost = load_scenario(name).cost.model_dump(exclude_none=True, exclude_defaults=True)
    return {key: value for key, value in cost.items() if key not in ("kind", "source")}


def test_steps_without_lora_are_the_profile_s() -> None:
    of_profile = fit.profile()
    small = _constants("published/slora-a10g")
    for key, value in of_profile.items():
        if key != "decode_per_kv_token_s":
            assert small[key] == pytest.approx(value, rel=1e-3), key


@pytest.mark.slow
def test_the_scenarios_have_the_constants_the_data_give() -> None:
    small = fit.a10g(fit.profile())
    for name, found in (("published/slora-a10g", small), ("published/slora-a100", fit.a100(small))):
        ours = _constants(name)
        assert {key: ours.get(key, 0.0) for key in ours | found} == pytest.approx(found, rel=1e-3)


def test_all_scenarios_of_the_a10g_have_the_same_constants() -> None:
    one, *others = (_constants(name) for name in SCENARIOS.values() if "a10g" in name)
    assert all(other == one for other in others)


def test_setting_s2_is_a_change_of_keys() -> None:
    """Ranks 64, 32, 16, 8 repeating on the same GPU and pool, and burstier arrivals."""
    changes = (
        "adapters.ranks=[64,32,16,8]",
        "workload.arrivals.gamma.cv=4",
        "adapters.count=6",
        "workload.duration_s=60",
    )
    scenario = load_scenario("published/slora-a10g", changes)
    adapters = build_adapters(scenario, lambda rank: rank)
    assert [adapter.rank for adapter in adapters] == [64, 32, 16, 8, 64, 32]
    (run,) = run_case(Case("published/slora-a10g", changes))
    assert run["requests"]["completed"] == 120 and run["engine"]["preemptions"] == 0


def test_an_adapter_takes_four_tokens_of_the_pool_for_a_unit_of_rank() -> None:
    """q, k, v and o, as in S-LoRA's router; the KV tokens of the pool are what is left."""
    from loratory.experiment.resolve import build

    built = build(load_scenario("published/slora-a100"))
    for adapter in built.adapters[:3]:
        assert adapter.bytes / built.kv_bytes_per_token == 4 * adapter.rank


def test_no_adapter_is_kept_without_a_request() -> None:
    """With one request at a time every adapter is loaded again for the next."""
    changes = ("adapters.count=1", "workload.arrivals.gamma.rate=0.05", "workload.arrivals.gamma.cv=0.01")
    (run,) = run_case(Case("published/slora-a10g", changes))
    assert run["adapters"]["loads"] == run["requests"]["completed"] == 15


def test_attainment_counts_aborted_requests_as_missed() -> None:
    """The measured rows too: attainment is never above the share that was not aborted."""
    for measured in published():
        if measured.suite.endswith("abort"):
            assert measured.measured.attainment <= 1 - measured.measured.aborted / 600 + 1e-4
    (run,) = run_case(Case("published/slora-a10g-abort", ("workload.arrivals.gamma.cv=8",)))
    found = figures(run)
    assert found.aborted > 100 and found.attainment <= 1 - found.aborted / 600 + 1e-9


def test_gauss_newton_finds_the_least_squares() -> None:
    search = fit.Search({"a": 1.0, "b": 1.0}, {"a": 0.1, "b": 0.1})
    x = np.arange(5.0)
    found = fit.solve(search, lambda c: 100 * (c["a"] * x + c["b"] ** 2 - (3.0 * x + 4.0)), rounds=20)
    assert found == pytest.approx({"a": 3.0, "b": 2.0}, rel=1e-3)
