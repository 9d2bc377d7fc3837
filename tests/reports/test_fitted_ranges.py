"""Fitted ranges: notes tell how far a run went beyond them, the largest value of all runs at the end."""

from __future__ import annotations

import re
from typing import Any

import pyarrow.parquet as pq
import pytest

from loratory.experiment.run import run_scenario
from loratory.reports.fitted_ranges import sentences, warnings_of
from loratory.reports.verdicts import verdicts
from loratory.scenarios.load import load_text

SCENARIO = """
name: beyond
model: llama-56m
gpu: l4
engine: {max_loras: 2, max_num_seqs: 64, num_gpu_blocks: 4000, max_model_len: 2048}
cost: {kind: profile, profile: vllm-0.32-cpu-56m-below}
adapters: {count: 6, ranks: 16}
workload: {arrivals: {poisson: 20}, input_tokens: {uniform: [10, 300]}, output_tokens: 40, requests: 60}
policies: [fifo, drain]
seeds: [0, 1]
"""


@pytest.fixture(scope="module", name="result")
def _result(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[tuple[str, int], dict[str, float]]]:
    """The summary of two policies with two seeds, and the largest shapes of each run's steps."""
    out = tmp_path_factory.mktemp("ranges") / "out"
    summary = run_scenario(load_text(SCENARIO), out)
    largest: dict[tuple[str, int], dict[str, float]] = {}
    for run in summary["runs"]:
        steps = pq.read_table(out / run["policy"] / str(run["seed"]) / "steps.parquet").to_pandas()
        steps["tokens"] = steps.prefill_tokens + steps.decode_seqs
        steps["kv_tokens"] += steps.decode_seqs * (steps.steps - 1)
        found = steps[["tokens", "prefill_attention", "decode_seqs", "kv_tokens", "distinct_adapters", "sum_ranks"]]
        largest[run["policy"], run["seed"]] = found.max().to_dict()
    return summary, largest


def test_a_run_tells_the_largest_value_of_its_own_steps(result: Any) -> None:
    summary, largest = result
    for run in summary["runs"]:
        ranges = run["beyond_fit"]["ranges"]
        assert {"tokens", "prefill_attention", "decode_seqs", "kv_tokens"} <= set(ranges)
        for field, ends in ranges.items():
            assert ends["reached"] == pytest.approx(largest[run["policy"], run["seed"]][field])
            assert ends["reached"] > ends["fitted"]
        notes = [text for text in run["warnings"] if "extrapolated" in text]
        assert notes == sentences(run["beyond_fit"]) and len(notes) == len(ranges)


def test_together_the_runs_tell_the_largest_value_of_all(result: Any) -> None:
    summary, largest = result
    most = max(found["decode_seqs"] for found in largest.values())
    assert len({found["decode_seqs"] for found in largest.values()}) > 1, (
        "the runs must differ for the test to mean much"
    )
    wanted = f"profile vllm-0.32-cpu-56m-below: decode_seqs reached {most:g}, beyond the 7 that were measured"
    for texts in warnings_of(summary["runs"]):
        assert [text for text in texts if "decode_seqs" in text] == [
            f"{wanted}; from there on step times are extrapolated"
        ]
    cautions = [v.text for v in verdicts(summary["runs"]) if re.search("decode_seqs reached", v.text)]
    assert len(cautions) == 1 and cautions[0].startswith(wanted)


def test_processes_and_the_order_of_runs_do_not_matter(result: Any) -> None:
    summary, _ = result
    assert run_scenario(load_text(SCENARIO), jobs=3) == summary
    alone = run_scenario(load_text(SCENARIO, overrides=["seeds=[1]"], policies=["drain"]))["runs"][0]
    together = next(run for run in summary["runs"] if (run["policy"], run["seed"]) == ("drain", 1))
    assert alone["warnings"] == together["warnings"]


def test_within_the_ranges_there_is_no_note() -> None:
    calm = ["workload.arrivals={poisson: 1}", "workload.input_tokens=20", "workload.output_tokens=8"]
    for run in run_scenario(load_text(SCENARIO, overrides=calm))["runs"]:
        assert run["beyond_fit"] is None and not [text for text in run["warnings"] if "extrapolated" in text]
