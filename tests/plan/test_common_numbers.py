"""Common random numbers: every candidate has the same requests in the same seed, so that differences are theirs."""

from __future__ import annotations

import numpy as np
from small_plan import small

from loratory.plan.evaluate import Evaluation, built_of, evaluate, workload_of
from loratory.plan.lab import Lab
from loratory.plan.pools import ThisProcess
from loratory.plan.space import Base
from loratory.plan.store import Store

SEEDS = range(16)


def values(base: Base, slots: int, seeds: range) -> np.ndarray:
    """Mean TTFT of a number of slots under each seed, s."""
    scenario = base.candidate({"engine.max_loras": slots}).scenario
    runs = [evaluate(Evaluation(scenario, "fifo", seed, stop_early=False)) for seed in seeds]
    return np.array([run.values["ttft_mean_s"] for run in runs])


def test_equal_settings_under_two_labels_give_equal_values_from_one_run() -> None:
    """A fleet of one replica has no router: the two candidates are the same, though their labels may differ."""
    base = small()
    settings = [{"engine.max_loras": 2, "policy": "fifo"}, {"policy": "fifo", "engine.max_loras": 2}, {}]
    candidates = [base.candidate(each) for each in settings]
    assert len({candidate.label for candidate in candidates}) == 3
    with Store.at(None) as store:
        lab = Lab(ThisProcess(), store, [], [0, 1, 2], 3, 3)
        judged = lab.judge_all("test", candidates)
    assert lab.runs == 3
    assert [run.values for run in judged[0].runs] == [run.values for run in judged[1].runs]
    assert judged[0].metrics == judged[1].metrics == judged[2].metrics


def test_candidates_have_the_same_requests() -> None:
    base = small()
    one, other = (base.candidate({"engine.max_loras": slots}).scenario for slots in (1, 4))
    first, second = (workload_of(each, 3, built_of(each)) for each in (one, other))
    assert np.array_equal(first.arrival, second.arrival) and np.array_equal(first.adapter, second.adapter)
    assert not np.array_equal(first.arrival, workload_of(one, 4, built_of(one)).arrival)


def test_the_difference_of_two_candidates_is_surer_with_common_seeds_than_with_independent_ones() -> None:
    base = small(workload={"requests": 100})
    one, other = values(base, 2, SEEDS), values(base, 3, SEEDS)
    independent = values(base, 3, range(100, 100 + len(SEEDS)))
    paired_error = float(np.std(other - one, ddof=1)) / len(SEEDS) ** 0.5
    unpaired_error = float(np.sqrt((np.var(independent, ddof=1) + np.var(one, ddof=1)) / len(SEEDS)))
    print(f"standard error of the difference: {paired_error:.4f} s, with independent seeds {unpaired_error:.4f} s")
    assert paired_error < 0.8 * unpaired_error
