"""Sessions: a turn comes when the turn before it has ended and its delay is over, however that one ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import examples, run
from roster import POLICIES

from loratory.errors import InputError
from loratory.experiment.run import run_scenario
from loratory.policy import Reject, want
from loratory.scenarios.load import load_scenario
from loratory.serving.config import EngineConfig
from loratory.serving.request_maker import RequestMaker
from loratory.testing import ToyCost, World, assert_run, workload, worlds

CASES = Path(__file__).parents[1] / "cases"
CONFIG = EngineConfig(num_gpu_blocks=99, max_num_seqs=4)


def _world(rows: list[dict[str, Any]], **options: Any) -> World:
    return World(workload(rows, **options), (), CONFIG, ToyCost(grid=True))


def test_the_case_has_all_its_turns(tmp_path: Path) -> None:
    """Five sessions of ten turns, 5 s after one another: 50 requests, none before the last one's end and 5 s."""
    scenario = load_scenario(CASES / "trace-sessions-with-delay" / "scenario.yaml")
    summary = run_scenario(scenario, tmp_path / "out", decisions=False)
    table = pq.read_table(tmp_path / "out" / "fifo" / "0" / "requests.parquet").sort_by("arrival").to_pydict()
    assert len(table["arrival"]) == 50 and set(table["status"]) == {"completed"}
    starts = [at for at in table["arrival"] if at in (0.0, 1.0, 2.0, 3.0, 4.0)]
    later = sorted(at for at in table["arrival"] if at not in starts)
    ends = sorted(finish + 5.0 for finish in table["finish"])[: len(later)]
    assert starts == [0.0, 1.0, 2.0, 3.0, 4.0] and later == ends
    assert "sessions with turns that wait: 5; turns sent a delay after the turn before ended: 45" in str(summary)


def test_turns_at_the_very_second() -> None:
    """A step is 1/8 s: request 0 ends at 0.375, its turn comes at 0.875 and ends at 1.125, the last comes at once."""
    rows = [
        {"prompt": 1, "out": 3},
        {"prompt": 1, "out": 2, "after": 0, "delay": 0.5, "at": 0.5},
        {"prompt": 1, "out": 1, "after": 1, "delay": 0.0, "at": 0.5},
    ]
    for replicas in (1, 2):
        ended = run(_world(rows), "fifo", replicas=replicas).ended
        assert [ended[i].request.arrival for i in "012"] == [0.0, 0.875, 1.125]
        assert [ended[i].now for i in "012"] == [0.375, 1.125, 1.25]


class _Refuses:
    """Rejects every request of tenant t1 and leaves those of t2 waiting for ever."""

    def schedule(self, view: Any) -> Any:
        for request in list(view.waiting):
            if request.tenant == "t1":
                yield Reject(request, "not here")
            elif request.tenant == "t0":
                yield from want(view, request)


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("delay", [0.0, 0.4])
def test_a_turn_follows_whatever_became_of_the_one_before(replicas: int, delay: float) -> None:
    """Rejected, too long for the context, or never served: a client goes on with its session."""
    rows = [
        {"prompt": 1, "out": 2, "tenant": 1},
        {"prompt": 9999, "out": 1, "after": 0, "delay": delay, "at": delay},
        {"prompt": 1, "out": 2, "after": 1, "delay": delay, "at": 2 * delay},
        {"prompt": 1, "out": 2, "after": 2, "delay": delay, "at": 3 * delay, "tenant": 2},
        {"prompt": 1, "out": 2, "after": 3, "delay": delay, "at": 4 * delay},
    ]
    result = run(_world(rows), _Refuses, replicas=replicas)
    assert_run(result)
    assert [result.ended[i].status for i in "01234"] == ["rejected", "rejected", "completed", "failed", "failed"]
    assert result.outcome.never_served == 2 and result.outcome.submitted == 5


def test_turns_after_a_cutoff_are_never_sent() -> None:
    rows = [
        {"prompt": 1, "out": 3},
        {"prompt": 1, "out": 99, "after": 0, "delay": 0.5, "at": 0.5},
        {"prompt": 1, "out": 1, "after": 1, "delay": 0.0, "at": 0.5},
        {"prompt": 1, "out": 1, "at": 50.0},
    ]
    result = run(_world(rows), "fifo", cutoff_s=2.0)
    assert {i: e.status for i, e in result.ended.items()} == {"0": "completed", "1": "aborted"}
    assert result.outcome.submitted == 2 and result.outcome.cut_off


@pytest.mark.parametrize("clients", [1, 2, 5])
@pytest.mark.parametrize("replicas", [1, 2])
@examples(15)
@given(data=st.data(), policy=st.sampled_from(sorted(POLICIES)))
def test_a_closed_loop_of_sessions_jumps_as_it_steps(
    clients: int, replicas: int, data: st.DataObject, policy: str
) -> None:
    """Each client plays one session after the other: never more sessions under way than clients."""
    world = data.draw(worlds(concurrency=clients, turns=True))
    jumped = run(world, policy, replicas=replicas)
    assert_run(jumped)
    stepped = run(world, policy, replicas=replicas, jump=False, check_books=False)
    assert jumped.decisions == stepped.decisions and jumped.outcome == stepped.outcome
    assert sorted(jumped.of("Ended")) == sorted(stepped.of("Ended"))
    after = world.workload.after
    assert after is not None
    follows = {int(before) for before in after if before >= 0}
    changes = [(e.request.arrival, 1) for i, e in jumped.ended.items() if after[int(i)] < 0]
    changes += [(e.now, -1) for i, e in jumped.ended.items() if int(i) not in follows]
    playing = np.cumsum([change for _, change in sorted(changes)])
    assert playing.max() <= clients


@examples(25)
@given(world=worlds(turns=True), policy=st.sampled_from(sorted(POLICIES)), scale=st.sampled_from([2.0, 0.25]))
def test_turns_without_an_end_in_between_are_a_plain_workload(world: World, policy: str, scale: float) -> None:
    """Replayed at the times at which its turns came, a workload gives the same decisions."""
    seen = run(world, policy, check_books=False)
    arrival = np.array([seen.ended[str(i)].request.arrival for i in range(len(world.workload))])
    if len(set(arrival.tolist())) < len(arrival) or (np.diff(arrival) < 0).any():
        return
    late = {seen.ended[str(b)].now for i, b in enumerate(world.workload.after.tolist()) if b >= 0}  # type: ignore[union-attr]
    if late & set(arrival.tolist()):
        return  # a turn that comes at the very end of another is seen a boundary later than an arrival
    plain = replace(world.workload, arrival=arrival, after=None, delay_s=None)
    assert run(replace(world, workload=plain), policy, check_books=False).decisions == seen.decisions


def test_requests_are_made_right_in_any_order() -> None:
    rows = [{"at": float(i), "prompt": 1 + i % 7, "out": 1 + i % 5, "slack": 2.0} for i in range(5000)]
    work = workload(rows)
    order = np.random.default_rng(3).permutation(len(rows)).tolist()
    maker = RequestMaker(work)
    for index in order:
        request, output = maker.make(index, index + 0.5)
        assert (request.request_id, request.prompt_tokens, output) == (str(index), 1 + index % 7, 1 + index % 5)
        assert (request.arrival, request.deadline) == (index + 0.5, index + 2.5)
    assert not maker._kept


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"after": np.array([-1, 1])}, "follows a later request"),
        ({"delay_s": np.array([0.0, -1.0])}, "negative"),
        ({"delay_s": None}, "only one of after and delay_s"),
    ],
)
def test_turns_that_make_no_sense_are_refused(changes: dict[str, Any], says: str) -> None:
    work = workload([{"prompt": 1}, {"prompt": 1, "after": 0, "delay": 1.0}])
    with pytest.raises(InputError, match=says):
        replace(work, **changes)


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("most", [1, 3, 100])
def test_clients_have_at_most_so_many_requests_open(replicas: int, most: int) -> None:
    """One more waits at its client: it arrives at its own time, or when the request before it made room by ending."""
    rows = [{"prompt": 1, "out": 2 + index % 3, "at": 0.25 * (index // 3)} for index in range(12)]
    world = _world(rows)
    open_to_all = world.workload
    bounded = replace(open_to_all, max_outstanding=most, after=np.full(12, -1), delay_s=np.zeros(12))
    ended = run(replace(world, workload=bounded), "fifo", replicas=replicas).ended
    spans = [(ended[str(index)].request.arrival, ended[str(index)].now) for index in range(12)]
    assert all(sum(start <= at < end for start, end in spans) <= most for at, _ in spans)
    own = open_to_all.arrival.tolist()
    ends = {end for _, end in spans}
    assert all(at == planned or (at > planned and at in ends) for (at, _), planned in zip(spans, own, strict=True))
    assert [at for at, _ in spans] == sorted(at for at, _ in spans), "in the order of the workload"
    assert (most == 100) == ([at for at, _ in spans] == own)


def test_a_bound_on_open_requests_needs_open_arrivals_that_are_drawn() -> None:
    with pytest.raises(InputError, match="max_outstanding"):
        load_scenario("closed-loop", ["workload.max_outstanding=4"])
    with pytest.raises(InputError, match="at least 1"):
        replace(_world([{"prompt": 1, "out": 1}]).workload, max_outstanding=0)
