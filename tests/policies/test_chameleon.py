"""chameleon: it keeps every law, its quotas, its claims and its rule of lending, and evicts by score."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import examples

from loratory import load_scenario, run_scenario
from loratory.experiment.resolve import build
from loratory.policies.chameleon import Chameleon
from loratory.policy import AdapterView, Event, Evicted, RequestView, Schedule, View, cut_offs
from loratory.scenarios.build import build_workload
from loratory.testing import EngineConfig, Run, ToyCost, World, adapter, run, workload
from loratory.testing.check_policy import check_policy

PAGE = Path(__file__).parents[2] / "docs" / "policies.md"


class Watched(Chameleon):
    """Chameleon, with a look at its books in each call and at the scores of each eviction."""

    observes = (*Chameleon.observes, Evicted)

    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.scores: dict[str | None, tuple[float, int]] = {}
        self.evictions = 0
        self.most_queues = 0
        self.own = self.lent = 0

    def observe(self, event: Event) -> None:
        if isinstance(event, Evicted):
            assert self.scores[event.adapter] == min(self.scores.values())
            self.scores.clear()
            self.evictions += 1
        else:
            super().observe(event)

    def evict(self, adapter: AdapterView, view: View) -> float:
        score: float = super().evict(adapter, view)
        assert adapter.references == 0
        self.scores[adapter.name] = (score, adapter.lora_int_id)
        return score

    def schedule(self, view: View) -> Schedule:
        yield from super().schedule(view)
        held: dict[int, list[float]] = {}
        for request in view.running:
            held.setdefault(id(self._queue_of[request]), []).append(self._sizes[request].charge)
        for queue in self.queues:
            charges = held.get(id(queue), [])
            assert queue.running == len(charges) and queue.charged == pytest.approx(sum(charges))
        assert sum(queue.quota for queue in self.queues) == pytest.approx(view.kv_total_tokens)
        assert all(sum(request in queue.lanes for queue in self.queues) == 1 for request in view.waiting)
        self.most_queues = max(self.most_queues, len(self.queues))

    def _admit(self, view: View, request: RequestView, closed: set[str | None]) -> Any:
        queue = self._queue_of[request]
        own = not queue.running or queue.charged + self._sizes[request].charge <= queue.quota
        others = [found[0] for other in self.queues if (found := other.lanes.pick(view)) is not None]
        entitled = [other for other in others if self._within(other)]
        more = yield from super()._admit(view, request, closed)
        if request.running:
            assert own or not entitled, "it lends what another queue has a right to"
            self.own += own
            self.lent += not own
        return more


def library(name: str, *overrides: str) -> World:
    scenario = load_scenario(name, list(overrides))
    built = build(scenario)
    return World(build_workload(scenario, 0, built.adapters), built.adapters, built.engine, built.cost)


def watch(world: World, **parameters: Any) -> tuple[Watched, Run]:
    """Run it, and see every request completed."""
    made: list[Watched] = []

    def policy() -> Watched:
        made.append(Watched(**parameters))
        return made[-1]

    result = run(world, policy, check_books=False)
    (watched,) = made
    assert {end.status for end in result.ended.values()} == {"completed"} and len(result.ended) > 80
    return watched, result


@pytest.mark.parametrize("parameters", ["", ":samples=2,refresh_s=0.05,patience_s=0,lend=whole,shortage=shared"])
def test_it_passes_check_policy(parameters: str) -> None:
    """Also with parameters that bring cut-offs, quotas and claims into worlds of a few requests."""
    check = check_policy("chameleon" + parameters, examples=20)
    assert check.passed, check.findings


def test_in_a_library_scenario_its_books_are_right_and_its_scores_choose_what_is_evicted() -> None:
    world = library("rank-mix", "workload.duration_s=40", "engine.max_loras=8", "workload.predicted_tokens=exact")
    watched, result = watch(world, refresh_s=5.0, patience_s=None)
    assert watched.evictions == len(result.of("Evicted")) > 50
    assert watched.most_queues > 1


@pytest.mark.parametrize("lend", ["free", "whole"])
@pytest.mark.parametrize("shortage", ["small_first", "shared"])
def test_what_a_queue_has_a_right_to_is_never_lent(lend: str, shortage: str) -> None:
    """On a GPU whose KV memory is what runs out. Eight adapters have eight slots, so that no request is blocked."""
    world = library("kv-pressure", "workload.duration_s=200", "workload.predicted_tokens=exact")
    watched, _ = watch(world, refresh_s=10.0, lend=lend, shortage=shortage)
    assert watched.most_queues > 1 and watched.own > 20 and watched.lent > 5


@pytest.mark.parametrize(
    ("asked", "size", "parameters", "gone"),
    [
        ((1, 1, 2), 40, {}, "a2"),
        ((1, 1, 2), 40, {"frequency": 0.0}, "a1"),
        ((2, 2, 1), 40, {}, "a1"),
        ((2, 2, 1), 40, {"frequency": 0.0}, "a2"),
        ((1, 1, 2), 80, {}, "a1"),
        ((1, 1, 2), 80, {"size": 0.0}, "a2"),
    ],
)
def test_frequency_recency_and_size_choose_the_adapter_that_goes(
    asked: tuple[int, ...], size: int, parameters: dict[str, Any], gone: str
) -> None:
    """Of a1 with 40 bytes and a2 with ``size``, after a request a second for each of ``asked`` and one for a3."""
    adapters = (adapter(1), adapter(2, size=size), adapter(3))
    rows = [{"at": float(at), "adapter": number} for at, number in enumerate((*asked, 3))]
    config = EngineConfig(num_gpu_blocks=64, max_loras=2)
    world = World(workload(rows, adapters), adapters, config, ToyCost())
    result = run(world, lambda: Chameleon(**{"recency": 0.1, "frequency": 0.3, "size": 0.4, **parameters}))
    assert [event[2] for event in result.of("Evicted")] == [gone]


def seats(count: int, rows: list[dict[str, Any]], policy: Any = Chameleon, **parameters: Any) -> list[str]:
    """Ids in order of admission, with room for ``count`` requests at once and no adapters."""
    config = EngineConfig(num_gpu_blocks=64, max_loras=1, max_num_seqs=count, max_num_batched_tokens=512)
    result = run(World(workload(rows), (), config, ToyCost()), lambda: policy(**parameters))
    assert all(end.status == "completed" for end in result.ended.values())
    return [event[2] for event in result.of("Admitted")]


LARGE = [{"prompt": 40, "out": 40}] * 4
SMALL = [{"prompt": 2, "out": 2}] * 6


def test_small_and_large_requests_have_places_of_their_own() -> None:
    """One of two places is the large queue's. It is not lent to small requests while a large one waits."""
    ids = seats(2, [*LARGE, *SMALL], samples=1)
    assert ids[:3] == ["4", "0", "5"]
    assert ids.index("9") < ids.index("1"), "the small queue empties while the first large request runs"
    assert seats(2, [*LARGE, *SMALL], samples=1, queues=1) == [str(number) for number in range(10)]


def test_a_queue_that_is_empty_lends_its_places() -> None:
    ids = seats(4, [*LARGE, *({**row, "at": 0.001} for row in SMALL)], samples=1)
    assert ids[:4] == ["0", "1", "2", "3"]


def test_claims_end_the_wait_of_a_blocked_request() -> None:
    """Two adapters and one slot. Requests for the first keep it busy; the second is asked for once."""
    adapters = (adapter(1), adapter(2))
    rows = [{"at": 0.01 * number, "adapter": 1 if number != 1 else 2, "out": 9} for number in range(60)]
    config = EngineConfig(num_gpu_blocks=64, max_loras=1, max_num_seqs=8, max_num_batched_tokens=64)
    world = World(workload(rows, adapters), adapters, config, ToyCost())
    places = []
    for patience_s in (None, 0.1, 0.0):
        result = run(world, lambda patience_s=patience_s: Chameleon(patience_s=patience_s))  # type: ignore[misc]
        places.append([event[2] for event in result.of("Admitted")].index("1"))
    assert places[0] == 59 and places[2] == 1 < places[1] < 30


@pytest.mark.parametrize(
    ("values", "most", "cuts"),
    [
        ([1, 2, 3, 11, 12, 13], 4, [7.0]),
        ([1, 2, 3, 11, 12, 13], 1, []),
        ([5, 5, 5, 5], 4, []),
        ([1, 1, 1, 50, 50, 50, 99, 99, 99], 4, [25.5, 74.5]),
    ],
)
def test_cut_offs_are_between_the_groups(values: list[float], most: int, cuts: list[float]) -> None:
    assert cut_offs(values, most) == cuts


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=60), st.integers(1, 5))
@examples(100)
def test_cut_offs_are_ascending_and_leave_no_group_empty(values: list[int], most: int) -> None:
    values.sort()
    cuts = cut_offs(values, most)
    edges = [values[0] - 1, *cuts, values[-1]]
    assert len(cuts) < most
    assert all(any(low < value <= high for value in values) for low, high in pairwise(edges))


@pytest.mark.parametrize(
    ("cv", "changes"), [(2, {"mean": -55, "p90": -55, "p99": 31}), (0.6, {"mean": -53, "p99": 89})]
)
def test_the_figures_on_the_page(cv: float, changes: dict[str, int], tmp_path: Path) -> None:
    """Per cent of fifo's TTFT."""
    overrides = ["workload.predicted_tokens=exact", "seeds=[0,1,2]", f"workload.output_tokens.lognormal.cv={cv}"]
    found = run_scenario(load_scenario("kv-pressure", overrides, policies=["fifo", "chameleon"]), tmp_path / "out")
    fifo, mine = ({name: p["metrics"][f"ttft_s.{name}"]["mean"] for name in changes} for p in found["policies"])
    assert {name: round(100 * (mine[name] / fifo[name] - 1)) for name in changes} == changes
    page = PAGE.read_text().replace("\n", " ")
    assert all(f"{abs(change)} %" in page for change in changes.values())
