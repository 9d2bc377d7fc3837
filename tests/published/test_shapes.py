"""Shapes of published results: starvation and its cure, eviction, a queue's exact schedule, flat throughput."""

from __future__ import annotations

from itertools import pairwise

import pytest

from loratory.reproduce import Reproduction, reproduce
from loratory.reproduce.fit.punica import fitted
from loratory.reproduce.shapes import first_scheduled, popularities
from loratory.scenarios.load import load_scenario
from loratory.serving.plan import BatchShape
from loratory.sim.catalogue import gpu, model
from loratory.sim.cost import RooflineCost, RooflineOptions


@pytest.fixture(scope="module")
def found() -> Reproduction:
    return reproduce("shapes")


LIMITS = {
    "SGLang 17913: P90 / P50 under greedy skip": 3.0,
    "SGLang 17913: P99 wait of drain / greedy skip": 0.6,
    "SGLang 17913: P99 wait of drain / greedy skip, from below": 0.4,
    "SGLang 17913: seconds the published mean lies outside the seeds' range": 0.0,
    "SGLang 17913: seconds the published p50 lies outside the seeds' range": 0.0,
    "SGLang 17913: seconds the published p90 lies outside the seeds' range": 0.0,
    "SGLang 13349: median TTFT grows from 8 to 16 adapters by": 100,
    "SGLang 13349: the same, and not by three orders of magnitude": 1000,
    "SGLang 13349: error of the median TTFT with 8 adapters": 0.25,
    "vLLM 15422, SKIP: requests scheduled wrongly": 0,
    "vLLM 15422, BREAK: requests scheduled wrongly": 0,
    "vLLM 11267: largest error of a throughput": 0.10,
    "vLLM 11267: error of throughput with LoRA over that without": 0.05,
    "Punica: throughput of the best popularity above the worst": 0.05,
    "Punica: largest error of a 7B throughput": 0.05,
}


@pytest.mark.parametrize("what", LIMITS)
def test_the_shape_is_there(found: Reproduction, what: str) -> None:
    (check,) = [check for check in found.checks if check.what == what]
    assert check.limit == LIMITS[what] and check.holds, check


def test_no_check_is_left_out(found: Reproduction) -> None:
    assert [check.what for check in found.checks] == list(LIMITS)


@pytest.mark.parametrize(
    ("policy", "scheduled"),
    [
        ("fifo", "R1 R2 R3 R4 R5 R6 R7 R12 R13 R14 R15 R16"),
        ("fifo:strict=true", "R1 R2 R3 R4 R5 R6 R7"),
        ("affinity", "R1 R2 R3 R4 R5 R6 R7 R12 R13 R14 R15 R16"),
    ],
)
def test_the_queue_of_vllm_15422(policy: str, scheduled: str) -> None:
    assert first_scheduled(policy) == scheduled


def test_the_skewed_popularity_is_punicas() -> None:
    """Each adapter is wanted 1.5 times as often as the next."""
    popularity = load_scenario("published/punica-a100", popularities()["skewed"]).adapters.popularity
    assert popularity is not None and isinstance(popularity.weights, list)
    weights = popularity.weights
    assert all(a / b == pytest.approx(1.5, rel=1e-4) for a, b in pairwise(weights))


def test_the_fit_gives_the_host_time_that_is_in_the_scenario() -> None:
    cost = load_scenario("published/punica-a100").cost
    assert cost.kind == "roofline" and cost.host_layer_s == fitted()


def test_a_step_takes_at_least_what_the_host_needs_to_launch_it() -> None:
    """GPU time below the host's is hidden, above it counts alone."""
    parts = model("llama-2-7b"), gpu("a100-80gb")
    free, bound = RooflineCost(*parts), RooflineCost(*parts, options=RooflineOptions(host_layer_s=1e-3))
    small, large = BatchShape(decode_seqs=1, kv_tokens=100), BatchShape(prefill_tokens=2000, prefill_seqs=1)
    assert bound.step_seconds(small) == 32e-3 > free.step_seconds(small)
    assert bound.step_seconds(large) == free.step_seconds(large) > 32e-3
    assert sum(bound.explain(small).values()) == pytest.approx(32e-3)
