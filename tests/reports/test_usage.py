"""What limited a run: each waiting second counts for the limit that was full, and medians are over time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from loratory.reports import RunInfo, summarise
from loratory.serving.events import Ended, Event, Loaded, LoadStarted, Stepped
from loratory.serving.plan import BatchShape
from loratory.serving.request import Request

INFO = RunInfo(
    "made up",
    "fifo",
    max_loras=4,
    max_num_seqs=8,
    max_num_batched_tokens=100,
    num_gpu_blocks=50,
    duration_s=10.0,
    ceiling_tokens_per_s=100.0,
)


def _step(start: float, end: float, **use: int) -> Stepped:
    """A step; ``use``: distinct, prefill, decode, waiting, running, resident, loading, kv."""
    get = use.get
    shape = BatchShape(get("prefill", 0), 0.0, 0, get("decode", 1), 10, get("distinct", 1), 16, 16, 1, 16)
    state = (get("waiting", 0), get("running", 1), get("resident", 1), get("loading", 0), get("kv", 10))
    return Stepped(start, end, 1, shape, *state, 0.0)


@pytest.fixture
def measure(record: Any, sequence: Any) -> Any:
    """The run object of some events and of one request with a prompt of 32 tokens that completes at 9 s."""

    def run_of(*events: Event, info: RunInfo = INFO, output: int = 50) -> dict[str, Any]:
        seq = sequence(Request("1", "a", 0.0, 32, output, "a"), output)
        seq.admitted_at, seq.first_token_at, seq.ended_at, seq.hit = 0.0, 1.0, 9.0, True
        done = Ended(9.0, seq.view, "completed", "length")
        return summarise(record(iter((*events, done))), info).run

    return run_of


@pytest.mark.parametrize(
    ("limit", "full"),
    [
        ("seqs", {"running": 8}),
        ("kv_blocks", {"kv": 49}),
        ("slots", {"distinct": 3, "loading": 1}),
        ("tokens", {"prefill": 99, "decode": 1}),
        ("loads", {"loading": 1}),
        ("policy", {}),
    ],
)
def test_a_waiting_second_counts_for_what_was_full(measure: Any, limit: str, full: dict[str, int]) -> None:
    """Of 3 s of two waiting requests all count for it; the 10 s in which one runs and none waits do not."""
    run = measure(_step(0, 3, waiting=2, **full), _step(3, 10, running=1))
    assert run["waiting"]["request_s"] == 6.0
    assert run["waiting"]["by"] == {name: float(name == limit) for name in run["waiting"]["by"]}
    assert run["waiting"]["share"] == pytest.approx(6 / (6 + 3 * full.get("running", 1) + 7))
    assert run["bottleneck"] == limit


def test_blocks_that_the_watermark_keeps_are_not_room(measure: Any) -> None:
    """Of 50 blocks 10 are in use and 39 are kept free while a request runs: the prompt of two blocks finds one."""
    kept = replace(INFO, watermark_blocks=39)
    assert measure(_step(0, 3, waiting=2), info=kept)["bottleneck"] == "kv_blocks"
    assert measure(_step(0, 3, waiting=2, running=0), info=kept)["bottleneck"] == "policy"


def test_medians_are_over_time_and_held_counts_loads(measure: Any) -> None:
    run = measure(_step(0, 1, distinct=4, resident=1, loading=2), _step(1, 9, distinct=2, resident=2))
    assert run["usage"]["slots"] == {"limit": 4, "p50": 2, "max": 4, "held": 3}
    assert run["usage"]["kv_blocks"] == {"limit": 50, "p50": 10, "max": 10}
    assert run["usage"]["tokens"]["limit"] == 100 and run["usage"]["seqs"]["max"] == 1


def test_nothing_limits_a_run_that_never_waits(measure: Any) -> None:
    run = measure(_step(0, 9))
    assert run["bottleneck"] == "none" and run["waiting"]["share"] == 0.0
    assert measure()["usage"]["slots"] == {"limit": 4, "p50": 0, "max": 0, "held": 0}


@pytest.mark.parametrize(
    ("why", "limit"),
    [
        ("prompt of 90 tokens and an output do not fit max_model_len 64", "context"),
        ("prompt of 90 tokens and an output do not fit the KV cache of 64 tokens", "rejected"),
    ],
)
def test_rejections_are_the_limit_where_nobody_waits(record: Any, sequence: Any, why: str, limit: str) -> None:
    refused = sequence(Request("1", "a", 0.0, 90, 5, "a"), 0)
    refused.ended_at = 0.0
    run = summarise(record(iter([Ended(0.0, refused.view, "rejected", why)])), INFO).run
    assert run["rejected"]["why"] == {why: 1} and run["bottleneck"] == limit


def test_compute_limits_a_run_near_the_cost_model_ceiling(measure: Any) -> None:
    """900 tokens in 10 s on one GPU are 90 % of 100 tokens/s, 45 % of two GPUs."""
    waits = _step(0, 9, waiting=5, running=8)
    run = measure(waits, output=900)
    assert run["throughput"]["output_tokens_per_s_per_gpu"] == 90.0
    assert run["throughput"]["ceiling_share"] == pytest.approx(0.9) and run["bottleneck"] == "compute"
    two = RunInfo(**{name: getattr(INFO, name) for name in INFO.__slots__} | {"gpus": 2})
    assert measure(waits, info=two, output=900)["bottleneck"] == "seqs"


def test_loads_under_way_are_counted_once(measure: Any) -> None:
    """Two loads that overlap from 2 to 3 s and last from 1 to 4 s together: 3 of 10 s."""
    events: list[Event] = [
        LoadStarted(1.0, "a", "host", False),
        LoadStarted(2.0, "b", "disk", False),
        Loaded(3.0, "a", False),
        Loaded(4.0, "b", False),
    ]
    adapters = measure(_step(0, 9), *events)["adapters"]
    assert adapters["loading_share"] == pytest.approx(0.3) and adapters["loads_from_host"] == 1
