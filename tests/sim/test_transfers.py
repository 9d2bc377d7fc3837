"""Transfers: how many adapters come from remote storage at once, and what they do to one another on the way."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import examples, run

from loratory.experiment.run import run_scenario
from loratory.policies.fifo import Fifo
from loratory.policy import Event, Loaded, Schedule, View
from loratory.scenarios.load import load_scenario
from loratory.serving.config import EngineConfig
from loratory.serving.sequence import sequence_of
from loratory.sim.environment import ExactEnvironment
from loratory.sim.transfers import SharedLink
from loratory.testing import ToyCost, World, adapter, workload

CASE = Path(__file__).parents[1] / "cases" / "remote-loads-one-at-a-time" / "scenario.yaml"


def _fluid(flows: list[tuple[int, int]]) -> list[Fraction]:
    """When each (start, size) is through a link shared equally: the fluid model, step by step in exact numbers."""
    left = [Fraction(size) for _, size in flows]
    done: list[Fraction | None] = [None] * len(flows)
    now = Fraction(0)
    while None in done:
        flying = [i for i, (start, _) in enumerate(flows) if start <= now and done[i] is None]
        starts = [Fraction(start) for start, _ in flows if start > now]
        first = [now + min(left[i] for i in flying) * len(flying)] if flying else []
        then = min(first + starts)
        for i in flying:
            left[i] -= (then - now) / len(flying)
            if not left[i]:
                done[i] = then
        now = then
    return [at for at in done if at is not None]


@examples(60)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 9)), min_size=1, max_size=8))
def test_a_shared_link_gives_each_transfer_an_equal_share(flows: list[tuple[int, int]]) -> None:
    env = ExactEnvironment()
    link = SharedLink(env)
    done: dict[int, float] = {}

    def flow(place: int, start: int, size: int):  # type: ignore[no-untyped-def]
        yield env.at(float(start))
        yield link.carry(float(size))
        done[place] = env.now

    for place, (start, size) in enumerate(flows):
        env.process(flow(place, start, size))
    env.run()
    assert [done[i] for i in range(len(flows))] == pytest.approx([float(at) for at in _fluid(flows)])


def _admitted(count: int, fetches: int, loading: str = "async", tier: str = "remote") -> list[float]:
    """When each of so many requests, an adapter each, all there at second 0, is admitted."""
    adapters = tuple(adapter(n, tier=tier) for n in range(1, count + 1))
    rows = [{"prompt": 1, "out": 1, "adapter": n} for n in range(1, count + 1)]
    config = EngineConfig(max_loras=count, max_num_seqs=64, num_gpu_blocks=99, adapter_loading=loading)  # type: ignore[arg-type]
    cost = ToyCost(grid=True, fetches=fetches)
    result = run(World(workload(rows, adapters), adapters, config, cost), "fifo")
    return [sequence_of(result.ended[str(i)].request).admitted_at for i in range(count)]


def test_one_at_a_time_is_one_link_for_request_bytes_and_disk() -> None:
    """1.75 s from remote storage and 0.625 s from the disk, the next only then; the host link's 0.25 s overlap."""
    assert _admitted(3, 1) == [2.375 * n + 0.25 for n in (1, 2, 3)]
    assert _admitted(3, 1, "sync") == [2.375 * 3 + 0.25] * 3


def test_latencies_overlap_and_bytes_share_the_bandwidth() -> None:
    """0.5 s of latency at once, 3 * 1.25 s of bytes in equal shares, then 0.625 s of disk each in turn."""
    assert _admitted(3, 3) == pytest.approx([0.5 + 3.75 + 0.625 * n + 0.25 for n in (1, 2, 3)])
    # two places: the third asks when the first is in host memory, and has the network to itself when its bytes come
    assert _admitted(3, 2) == pytest.approx([3.875, 4.5, 3.625 + 0.5 + 1.25 + 0.625 + 0.25])


@pytest.mark.parametrize("tier", ["disk", "host"])
def test_without_downloads_their_number_does_not_matter(tier: str) -> None:
    assert _admitted(6, 1, tier=tier) == _admitted(6, 3, tier=tier) == _admitted(6, 99, tier=tier)


@examples(25)
@given(count=st.integers(1, 9), fetches=st.integers(1, 12))
def test_the_last_comes_no_sooner_than_the_bytes_and_no_later_than_in_turn(count: int, fetches: int) -> None:
    last = max(_admitted(count, fetches))
    assert 0.5 + max(1.25 * count + 0.625, 1.25 + 0.625 * count) + 0.25 <= last + 1e-9
    assert last <= 2.375 * count + 0.25 + 1e-9


def test_thirty_nine_cold_adapters_come_as_fast_as_their_bytes(tmp_path: Path) -> None:
    """39 * 83.9 MB at 1.25 GB/s are 2.6 s; one after the other with 0.2 s each they took 11.9 s."""
    last = {}
    for fetches in (15, 1):
        scenario = load_scenario(CASE, [f"tiers.remote_concurrency={fetches}"])
        run_scenario(scenario, tmp_path / str(fetches), decisions=False)
        requests = pq.read_table(tmp_path / str(fetches) / "fifo" / "0" / "requests.parquet")
        last[fetches] = pc.max(requests["first_token"]).as_py()
    assert 2.6 + 0.2 <= last[15] <= 4.0
    assert last[1] == pytest.approx(11.9, abs=0.05)


def _waits(first_read_s: float, fetches: int = 3, tier: str = "disk") -> list[float]:
    """How long requests for two adapters wait for loads, when each adapter leaves slot and host memory in between."""
    adapters = tuple(adapter(n, tier=tier) for n in (1, 2))
    rows = [{"at": 10.0 * n, "prompt": 1, "out": 1, "adapter": 1 + n % 2} for n in range(6)]
    config = EngineConfig(max_loras=1, max_cpu_loras=1, max_num_seqs=64, num_gpu_blocks=99, adapter_loading="async")
    cost = ToyCost(grid=True, fetches=fetches)
    cost.below = cost.below.model_copy(update={"disk_first_read_s": first_read_s})
    result = run(World(workload(rows, adapters), adapters, config, cost), "fifo")
    return [sequence_of(result.ended[str(i)].request).admitted_at - 10.0 * i for i in range(6)]


@pytest.mark.parametrize("fetches", [1, 3])
def test_the_first_read_from_a_cold_disk_takes_longer_once_for_each_adapter(fetches: int) -> None:
    """0.625 s from disk and 0.25 s to the GPU; 0.8 s more for each adapter's first read, and never again."""
    assert _waits(0.0, fetches) == [0.875] * 6
    assert _waits(0.8, fetches) == pytest.approx([1.675, 1.675, 0.875, 0.875, 0.875, 0.875])


def test_an_adapter_that_was_downloaded_is_not_read_from_a_cold_disk() -> None:
    assert _waits(0.8, tier="remote") == _waits(0.0, tier="remote")


def test_a_policy_is_told_of_a_cold_disk() -> None:
    """The expected end of a first load includes it, so it is exact where nothing else is in the way."""
    expected: list[float | None] = []
    ended: list[float] = []

    class Curious(Fifo):
        only_waiting = False
        observes = (Loaded,)

        def schedule(self, view: View) -> Schedule:
            expected.append(view.adapters["a1"].eta)
            yield from super().schedule(view)

        def observe(self, event: Event) -> None:
            ended.append(event.now)

    one = (adapter(1, tier="disk"),)
    config = EngineConfig(max_loras=1, max_num_seqs=4, num_gpu_blocks=99, adapter_loading="async")
    cost = ToyCost(grid=True)
    cost.below = cost.below.model_copy(update={"disk_first_read_s": 0.75})
    rows = [{"adapter": 1, "out": 2}, {"at": 0.125, "out": 30}]
    run(World(workload(rows, one), one, config, cost), Curious)
    assert ended == [1.625] and 1.625 in expected and {None, 1.625} == set(expected)
