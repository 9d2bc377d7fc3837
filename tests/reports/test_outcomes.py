"""Outcomes: who was rejected, cut short or never served, why, and what the policy probably does wrong."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import run

from loratory.policy import Admit, Load, Schedule, View, want
from loratory.reports.outcomes import grouped, outcome_notes, unserved_runs
from loratory.reports.recorder import Recorder
from loratory.reports.run_info import RunInfo
from loratory.reports.summary import summarise
from loratory.reports.verdicts import verdicts
from loratory.serving.config import EngineConfig
from loratory.serving.events import Decided
from loratory.sim.cluster import simulate
from loratory.testing import ToyCost, World, adapter, workload


class AdmitsOnly:
    """Never loads."""

    def schedule(self, view: View) -> Schedule:
        for request in list(view.waiting):
            yield Admit(request)


class LoadsOnly:
    """Never evicts."""

    def schedule(self, view: View) -> Schedule:
        for request in list(view.waiting):
            if request.adapter is not None:
                yield Load(request.adapter)
            yield Admit(request)


class Idle:
    """Does nothing."""

    def schedule(self, view: View) -> Schedule:
        return
        yield


class Serves:
    """First come, first served."""

    def schedule(self, view: View) -> Schedule:
        for request in view.unblocked():
            yield from want(view, request)


def measured(policy: type, prompts: list[int], **settings: Any) -> dict[str, Any]:
    """The ``run`` object of a small world: three adapters, one GPU slot."""
    adapters = tuple(adapter(number) for number in (1, 2, 3))
    rows = [{"at": 0.01 * i, "adapter": i % 3 + 1, "prompt": p, "out": 8} for i, p in enumerate(prompts)]
    config = EngineConfig(
        **{"max_loras": 1, "num_gpu_blocks": 60, "block_size": 2, "max_num_batched_tokens": 64, "max_num_seqs": 8}
        | settings
    )
    work = workload(rows, adapters)
    with Recorder() as recorder:
        outcome = simulate(work, adapters=adapters, config=config, policy=policy, cost=ToyCost(), sink=recorder.sink)
    info = RunInfo(
        "w",
        policy.__name__,
        submitted=outcome.submitted,
        max_model_len=config.max_model_len,
        refusals=outcome.refusals,
    )
    return summarise(recorder.close(), info).run


def test_rejections_that_differ_in_a_number_are_one_reason() -> None:
    made = measured(Serves, [4, 40, 50, 60], max_model_len=30)
    assert made["rejected"]["count"] == made["requests"]["rejected"] == 3
    assert made["rejected"]["why"] == {"prompt of 40 to 60 tokens and an output do not fit max_model_len 30": 3}
    assert made["rejected"]["first"] == ["1", "2", "3"]
    ((kind, text, share),) = outcome_notes([made])
    assert kind == "rejected" and share == 0.75 and text.startswith("Serves: 3 of 4 requests were rejected: prompt of")
    assert [v.mood for v in verdicts([made]) if v.topic == "Rejected"] == ["bad"]
    others = [made, {**made, "policy": "other"}, {**made, "policy": "third"}]
    assert [text for _, text, _ in outcome_notes(others)] == [text.replace("Serves", "Serves, other and third")]


def test_what_ended_an_output_is_named() -> None:
    """4 + 8 tokens are above 10; the KV cache of 12 blocks of 2 holds 24, and the 25th token needs no place."""
    made = measured(Serves, [4, 1], max_model_len=10)
    assert made["truncated"]["count"] == 1 and made["truncated"]["why"] == {"max_model_len 10 ended the output": 1}
    made = measured(Serves, [20], num_gpu_blocks=13)
    why = "the KV cache, which holds 24 tokens of one request, ended the output"
    assert made["truncated"]["why"] == {why: 1} and made["truncated"]["first"] == ["0"]


@pytest.mark.parametrize(
    ("policy", "refused", "cause"),
    [
        (AdmitsOnly, ("admit", "adapter"), "admits without loading: yield Load first, or use want"),
        (LoadsOnly, ("load", "slots"), "(no GPU slot is free): yield Evict first, or use want"),
        (Idle, None, "admitted no request"),
    ],
)
def test_the_likely_cause_of_never_serving_is_told(policy: type, refused: tuple[str, str] | None, cause: str) -> None:
    made = measured(policy, [4] * 9)
    assert made["never_served"]["count"] > 0 and cause in made["never_served"]["cause"]
    assert refused is None or made["refusals"][refused[0]][refused[1]] > 0
    (note,) = [text for kind, text, _ in outcome_notes([made]) if kind == "never_served"]
    assert cause in note and len(note) <= 400
    empty = unserved_runs([made])
    assert (empty is None) == bool(made["requests"]["completed"])
    assert empty is None or (cause in empty and len(empty) <= 400)


def test_the_refusals_are_those_of_the_decisions() -> None:
    """The count agrees with the outcomes the policy was given, one by one."""
    adapters = (adapter(1), adapter(2))
    rows = [{"adapter": i % 2 + 1, "prompt": 5, "out": 5, "at": 0.01 * i} for i in range(8)]
    config = EngineConfig(max_loras=1, num_gpu_blocks=9, block_size=2, max_num_batched_tokens=16, max_num_seqs=4)
    result = run(World(workload(rows, adapters), adapters, config, ToyCost()), Serves)
    told = [event.outcome.ok for events in result.events for event in events if isinstance(event, Decided)]
    counted = sum(sum(words.values()) for words in result.outcome.refusals.values())
    assert counted == told.count(False) > 0


@given(st.dictionaries(st.text(max_size=30), st.integers(1, 50), max_size=8))
def test_grouping_loses_no_request(why: dict[str, int]) -> None:
    assert sum(grouped(why).values()) == sum(why.values())
    counts = list(grouped(why).values())
    assert counts == sorted(counts, reverse=True)


def test_names_in_quotes_are_grouped_too() -> None:
    assert grouped({"adapter 'a' is not registered": 1, "adapter 'b' is not registered": 2, "other": 9}) == {
        "other": 9,
        "adapter 'a' and 1 more is not registered": 3,
    }
