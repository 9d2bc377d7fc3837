"""Small schedules computed by hand: every step takes 1/8 s, a hop from host memory 1/4 s, from disk 5/8 s more."""

from __future__ import annotations

from typing import Any

import pytest
from lab import run
from roster import POLICIES

from loratory.errors import InputError
from loratory.policies.fifo import Fifo
from loratory.serving.config import EngineConfig
from loratory.serving.engine import Engine
from loratory.serving.plan import StepResult
from loratory.serving.request import Request
from loratory.serving.sequence import sequence_of
from loratory.testing import Run, ToyCost, World, adapter, workload
from loratory.testing.integrity import check

STEP = 0.125


def world(
    rows: list[dict[str, Any]], adapters: tuple[Any, ...] = (), cost: ToyCost | None = None, **settings: Any
) -> World:
    base = {
        "num_gpu_blocks": 1000,
        "null_block": False,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "block_size": 1,
    }
    return World(workload(rows, adapters), adapters, EngineConfig(**{**base, **settings}), cost or ToyCost(grid=True))


def times(result: Run, request_id: str) -> tuple[float, float, float]:
    """Admission, first token and end."""
    sequence = sequence_of(result.ended[request_id].request)
    return sequence.admitted_at, sequence.first_token_at, sequence.ended_at


def prefills(result: Run) -> list[int]:
    """Prefill tokens of each step that had some."""
    return [event[4][1] for event in result.of("Stepped") if event[4][1]]


def test_a_long_prompt_is_prefilled_over_steps() -> None:
    rows = [{"prompt": 20, "out": 3}, {"prompt": 4, "out": 1}]
    result = run(world(rows, max_num_batched_tokens=8), "fifo")
    assert prefills(result) == [8, 8, 8]
    assert times(result, "0") == (0.0, 3 * STEP, 5 * STEP)
    assert times(result, "1") == (2 * STEP, 3 * STEP, 3 * STEP)


def test_the_long_prefill_threshold_leaves_room_for_others() -> None:
    rows = [{"prompt": 12, "out": 1}, {"prompt": 4, "out": 1}]
    result = run(world(rows, max_num_batched_tokens=8, long_prefill_token_threshold=5), "fifo")
    assert prefills(result) == [8, 6, 2]
    assert times(result, "0")[1] == 3 * STEP and times(result, "1")[:2] == (0.0, 2 * STEP)


@pytest.mark.parametrize(("chunked", "steps"), [(True, [8, 4]), (False, [6, 6])])
def test_without_chunking_a_prompt_waits_for_a_step_that_holds_it(chunked: bool, steps: list[int]) -> None:
    rows = [{"prompt": 6, "out": 1}, {"prompt": 6, "out": 1}]
    result = run(world(rows, max_num_batched_tokens=8, enable_chunked_prefill=chunked), "fifo")
    assert prefills(result) == steps


def test_decodes_come_before_prefill_in_the_budget() -> None:
    rows = [{"prompt": 4, "out": 9}, {"prompt": 4, "out": 9}, {"prompt": 8, "out": 1, "at": 0.1}]
    result = run(world(rows, max_num_batched_tokens=8), "fifo")
    assert prefills(result) == [8, 6, 2]


def test_separate_batching_gives_a_prefill_a_step_of_its_own() -> None:
    rows = [{"prompt": 4, "out": 4}, {"prompt": 4, "out": 2, "at": 0.2}]
    result = run(world(rows, batching="separate"), "fifo")
    assert times(result, "0") == (0.0, STEP, 5 * STEP)
    assert times(result, "1") == (2 * STEP, 3 * STEP, 4 * STEP)
    together = run(world(rows), "fifo")
    assert times(together, "0") == (0.0, STEP, 4 * STEP)
    assert times(together, "1") == (2 * STEP, 3 * STEP, 4 * STEP)


def test_preemption_takes_the_last_admitted_which_recomputes_prompt_and_output_in_front() -> None:
    """vllm/v1/core/sched/scheduler.py: `self.running.pop()`, then `self.waiting.prepend_request`."""
    rows = [{"prompt": 4, "out": 6}, {"prompt": 4, "out": 6}, {"prompt": 1, "out": 1, "at": 0.4}]
    result = run(world(rows, num_gpu_blocks=12), "fifo")
    assert result.of("Preempted") == [("Preempted", 3 * STEP, "1", "kv")]
    assert times(result, "0") == (0.0, STEP, 6 * STEP)
    assert times(result, "1") == (0.0, STEP, 9 * STEP)
    assert times(result, "2") == (6 * STEP, 7 * STEP, 7 * STEP)
    assert prefills(result) == [8, 7 + 1]
    second = sequence_of(result.ended["1"].request)
    assert second.preemptions == 1 and second.preempted_s == 4 * STEP and second.decode_s == 4 * STEP


def test_the_priority_policy_names_another_victim() -> None:
    rows = [{"prompt": 4, "out": 6, "priority": 5}, {"prompt": 4, "out": 6, "priority": 1}]
    result = run(world(rows, num_gpu_blocks=12), "priority")
    assert [event[2] for event in result.of("Preempted")] == ["0"]


def test_a_step_waits_for_a_synchronous_load() -> None:
    adapters = (adapter(1, tier="host"), adapter(2, tier="disk"))
    one = run(world([{"prompt": 4, "out": 2, "adapter": 1}], adapters), "fifo")
    assert times(one, "0") == (0.25, 0.25 + STEP, 0.25 + 2 * STEP)
    sequence = sequence_of(one.ended["0"].request)
    assert sequence.load_wait_s == 0.25 and sequence.queue_s == 0.0 and sequence.hit is False
    cold = run(world([{"prompt": 4, "out": 2, "adapter": 2}], adapters), "fifo")
    assert times(cold, "0")[0] == 0.625 + 0.25
    with_base = run(
        world([{"prompt": 4, "out": 5}, {"prompt": 1, "out": 1, "adapter": 1, "at": 0.2}], adapters), "fifo"
    )
    assert times(with_base, "0") == (0.0, STEP, 5 * STEP + 0.25)


def test_two_loads_share_the_link_to_the_gpu() -> None:
    adapters = (adapter(1, tier="host"), adapter(2, tier="host"))
    rows = [{"prompt": 1, "out": 1, "adapter": 1}, {"prompt": 1, "out": 1, "adapter": 2}]
    result = run(world(rows, adapters, max_loras=2), "fifo")
    assert times(result, "0")[0] == times(result, "1")[0] == 0.5
    assert [event[1] for event in result.of("Loaded")] == [0.5, 0.5]


def test_who_arrives_after_a_load_has_not_waited_for_it() -> None:
    adapters = (adapter(1, tier="host"),)
    rows = [{"prompt": 1, "out": 9, "adapter": 1}, {"prompt": 1, "out": 1, "adapter": 1, "at": 0.3}]
    late = sequence_of(run(world(rows, adapters), "fifo").ended["1"].request)
    assert late.admitted_at == 0.375 and late.load_wait_s == 0.0


def test_an_asynchronous_load_overlaps_with_decoding() -> None:
    adapters = (adapter(1, tier="host"),)
    rows = [{"prompt": 4, "out": 6}, {"prompt": 4, "out": 2, "adapter": 1, "at": 0.01}]
    result = run(world(rows, adapters, adapter_loading="async"), "fifo")
    assert times(result, "0") == (0.0, STEP, 6 * STEP)
    # seen at 1/8, loaded at 3/8, admitted at that boundary
    assert times(result, "1") == (3 * STEP, 4 * STEP, 5 * STEP)
    sequence = sequence_of(result.ended["1"].request)
    assert sequence.load_wait_s == 0.25 and sequence.queue_s == pytest.approx(STEP - 0.01)


def test_adapters_and_kv_share_a_unified_pool() -> None:
    """40 bytes at 10 a token are 4 tokens: 2 blocks of 2. The adapter leaves when the base model needs its blocks."""
    adapters = (adapter(1, size=40, tier="host"),)
    rows = [{"prompt": 4, "out": 1, "adapter": 1}, {"prompt": 15, "out": 1, "at": 5.0}]
    result = run(world(rows, adapters, memory="unified", num_gpu_blocks=10, block_size=2), "fifo")
    assert [event[9] for event in result.of("Stepped")] == [4, 10]
    assert not result.of("Evicted")
    rows[1]["prompt"] = 17
    refused = run(world(rows, adapters, memory="unified", num_gpu_blocks=10, block_size=2), "fifo")
    assert refused.ended["1"].status == "rejected"  # the limit leaves room for the largest adapter
    rows[1] |= {"prompt": 8, "out": 1}
    rows.append({"prompt": 10, "out": 1, "at": 5.0})
    both = run(world(rows, adapters, memory="unified", num_gpu_blocks=10, block_size=2), "fifo")
    assert both.of("Evicted") == [("Evicted", 5.0, "a1")]
    assert both.of("Stepped")[-1][9] == 9


@pytest.mark.parametrize(
    ("eviction", "uses", "goes"),
    [
        ("lru", [1, 2, 1, 3], "a2"),
        ("lru", [1, 1, 2, 3], "a1"),
        ("lfu", [1, 1, 2, 3], "a2"),
        ("lfu", [1, 2, 2, 3], "a1"),
        ("fifo", [1, 2, 1, 3], "a1"),
        ("fifo", [2, 1, 2, 3], "a2"),
    ],
)
def test_which_adapter_an_eviction_takes(eviction: str, uses: list[int], goes: str) -> None:
    adapters = tuple(adapter(n, tier="host") for n in (1, 2, 3))
    rows = [{"at": 2.0 * i, "prompt": 2, "out": 2, "adapter": n} for i, n in enumerate(uses)]
    result = run(world(rows, adapters, max_loras=2, max_cpu_loras=3, eviction=eviction), "fifo")
    assert [event[2] for event in result.of("Evicted")] == [goes]


def test_cost_aware_eviction_keeps_what_is_dear_to_reload() -> None:
    adapters = (adapter(1, size=4000, tier="host"), adapter(2, size=10, tier="host"), adapter(3, tier="host"))
    rows = [{"at": 0.6 * i, "prompt": 2, "out": 2, "adapter": n} for i, n in enumerate([1, 2, 3])]
    settings = {"max_loras": 2, "max_cpu_loras": 3}
    for eviction, goes in (("lru", "a1"), ("cost_aware", "a2")):
        result = run(world(rows, adapters, ToyCost(), eviction=eviction, **settings), "fifo")
        assert [event[2] for event in result.of("Evicted")] == [goes]


def test_what_overflows_the_host_cache_comes_from_disk_again() -> None:
    adapters = tuple(adapter(n, tier="host") for n in (1, 2, 3))
    rows = [{"at": 5.0 * i, "prompt": 1, "out": 1, "adapter": n} for i, n in enumerate([1, 2, 3, 1, 3])]
    result = run(world(rows, adapters, max_loras=1, max_cpu_loras=2), "fifo")
    # 3 starts on disk; bringing it in sends 1, the least recently used; bringing 1 back sends 2
    started = [(event[2], event[3]) for event in result.of("LoadStarted")]
    assert started == [("a1", "host"), ("a2", "host"), ("a3", "disk"), ("a1", "disk"), ("a3", "host")]


def test_pinned_adapters_stay() -> None:
    adapters = (adapter(1, pinned=True, tier="host"), adapter(2, tier="host"), adapter(3, tier="host"))
    rows = [{"at": 5.0 * i, "prompt": 1, "out": 1, "adapter": n} for i, n in enumerate([1, 2, 3, 2, 1])]
    result = run(world(rows, adapters, max_loras=2, max_cpu_loras=3), "fifo")
    assert [event[2] for event in result.of("Evicted")] == ["a2", "a3"]
    assert sequence_of(result.ended["4"].request).hit is True


def test_max_model_len_cuts_outputs_and_refuses_prompts() -> None:
    rows = [{"prompt": 6, "out": 20}, {"prompt": 9, "out": 20}, {"prompt": 10, "out": 1}, {"prompt": 3, "out": 2}]
    ended = run(world(rows, max_model_len=10), "fifo").ended
    assert [(ended[i].status, ended[i].request.generated_tokens) for i in "0123"] == [
        ("completed", 4),
        ("completed", 1),
        ("rejected", 0),
        ("completed", 2),
    ]
    assert ended["2"].why == "prompt of 10 tokens and an output do not fit max_model_len 10"


def test_a_prompt_as_large_as_the_pool_gives_one_token() -> None:
    rows = [{"prompt": 12, "out": 5}, {"prompt": 13, "out": 5, "at": 5.0}]
    ended = run(world(rows, num_gpu_blocks=12), "fifo").ended
    assert [(ended[i].status, ended[i].request.generated_tokens) for i in "01"] == [
        ("completed", 1),
        ("rejected", 0),
    ]


def test_cached_tokens_need_memory_and_no_compute() -> None:
    result = run(world([{"prompt": 20, "cached": 15, "out": 1}]), "fifo")
    assert prefills(result) == [5] and result.of("Stepped")[0][9] == 20


def test_an_unregistered_adapter_is_rejected() -> None:
    engine = Engine(EngineConfig(num_gpu_blocks=9), (), Fifo(), ToyCost(), None, (ended := []).append)
    engine.submit(Request("r", "nobody", 0.0, 1, 1))
    assert engine.plan(0.0) is None
    last = ended[-1]
    assert last.status == "rejected" and "'nobody' is not registered" in last.why and not engine.unfinished


# -- vLLM pull request 15422 -----------------------------------------------------------------------------------------

QUEUE = [None, None, None, 1, 3, 2, 4, 5, 5, 5, 5, None, None, 1, 2, 3]


@pytest.mark.parametrize("loading", ["sync", "async"])
def test_the_queue_of_vllm_pull_request_15422(loading: str) -> None:
    """max_loras 4: with SKIP everything but the four requests for the fifth adapter runs; with BREAK it stops at R8."""
    adapters = tuple(adapter(n, tier="host") for n in range(1, 6))
    rows = [{"prompt": 1, "out": 40, "adapter": n} for n in QUEUE]
    queue = world(rows, adapters, max_loras=4, max_cpu_loras=5, max_num_seqs=32, adapter_loading=loading)
    limit = 10 * STEP + 4 * 0.25
    for policy, expected in (
        ("fifo", {i for i, n in enumerate(QUEUE) if n != 5}),
        ("fifo-strict", set(range(7))),
    ):
        early = {int(e[2]) for e in run(queue, policy).of("Admitted") if e[1] < limit}
        assert early == expected, policy


def test_every_skipping_policy_runs_that_queue_without_the_fifth_adapter() -> None:
    adapters = tuple(adapter(n, tier="host") for n in range(1, 6))
    rows = [{"prompt": 1, "out": 40, "adapter": n} for n in QUEUE]
    queue = world(rows, adapters, max_loras=4, max_cpu_loras=5, max_num_seqs=32)
    for policy in ("affinity", "drain", "rotation-slow", "priority", "deadline-keep", "fair_share-loose"):
        early = {int(e[2]) for e in run(queue, policy).of("Admitted") if e[1] < 0.3}
        assert early == {i for i, n in enumerate(QUEUE) if n != 5}, policy


# -- the engine by hand ----------------------------------------------------------------------------------------------


class Bench:
    """An engine on a bench: one step a call, a clock that ticks by one."""

    def __init__(self, *adapters: Any, policy: Any = None, **settings: Any) -> None:
        self.events: list[Any] = []
        config = EngineConfig(**{"num_gpu_blocks": 100, "max_num_seqs": 8, "max_num_batched_tokens": 64, **settings})
        self.engine = Engine(config, adapters, policy or Fifo(), ToyCost(), 10, self.events.append)
        self.now = 0.0

    def submit(self, name: str, adapter: str | None = None, prompt: int = 4, most: int = 5) -> None:
        self.engine.submit(Request(name, adapter, self.now, prompt, most))

    def plan(self) -> Any:
        plan = self.engine.plan(self.now)
        check(self.engine.ledger)
        return plan

    def step(self, finished: tuple[str, ...] = ()) -> Any:
        plan = self.plan()
        self.now += 1.0
        if plan is not None:
            self.engine.commit(plan, StepResult(1, finished), self.now)
            check(self.engine.ledger)
        return plan

    def ends(self) -> dict[str, tuple[str, str]]:
        return {e.request.request_id: (e.status, e.why) for e in self.events if type(e).__name__ == "Ended"}


def test_ids_in_flight_are_unique_and_can_be_used_again() -> None:
    bench = Bench()
    bench.submit("r", most=1)
    with pytest.raises(InputError, match="'r'"):
        bench.submit("r")
    bench.plan()
    with pytest.raises(InputError, match="'r'"):
        bench.submit("r")
    bench.step()
    assert bench.ends() == {"r": ("completed", "length")}
    bench.submit("r", most=1)
    bench.step()
    assert sum(type(e).__name__ == "Ended" for e in bench.events) == 2


def test_an_abort_takes_effect_at_the_next_plan_whatever_the_state() -> None:
    bench = Bench(max_num_seqs=1)
    for name in ("runs", "waits", "goes"):
        bench.submit(name)
    bench.engine.abort("goes")
    bench.step()
    bench.engine.abort("runs")
    bench.engine.abort("nobody")
    bench.step()
    assert bench.ends() == dict.fromkeys(("runs", "goes"), ("aborted", "aborted by the client"))
    assert list(bench.engine.ledger.running) == ["waits"]
    bench.engine.abort("waits", "tired")
    bench.engine.abort("waits", "twice")
    assert bench.step() is None
    assert bench.ends()["waits"] == ("aborted", "tired") and bench.engine.unfinished == 0
    assert bench.engine.ledger.kv.used == 0


def test_the_model_may_end_a_request_early() -> None:
    bench = Bench()
    bench.submit("r", most=50)
    bench.step()
    bench.step(finished=("r",))
    assert bench.ends() == {"r": ("completed", "stop")}
    assert sequence_of(bench.events[-1].request).generated == 2


def test_a_failed_load_fails_those_who_wait_for_it_and_nobody_else() -> None:
    bench = Bench(adapter(1), adapter(2), adapter_loading="async", max_loras=2)
    for name, wanted in (("x", "a1"), ("y", "a1"), ("other", "a2"), ("base", None)):
        bench.submit(name, wanted)
    bench.step()
    assert set(bench.engine.ledger.slots.loading) == {"a1", "a2"}
    bench.engine.load_failed("a1", "no such file")
    bench.engine.loaded("a2")
    bench.step()
    assert bench.ends() == dict.fromkeys(("x", "y"), ("failed", "adapter 'a1' could not be loaded: no such file"))
    assert set(bench.engine.ledger.running) == {"other", "base"} and bench.engine.ledger.adapters["a1"].tier == "disk"
    bench.submit("again", "a1")
    bench.step()
    assert set(bench.engine.ledger.slots.loading) == {"a1"}
    bench.engine.loaded("a1")
    for _ in range(9):
        bench.step()
    assert bench.ends()["again"] == ("completed", "length")


def test_a_failed_synchronous_load_fails_those_it_was_for() -> None:
    """The plan has admitted them already; the backend tells before it commits."""
    bench = Bench(adapter(1), adapter(2), max_loras=2)
    for name, wanted in (("x", "a1"), ("other", "a2"), ("base", None)):
        bench.submit(name, wanted)
    plan = bench.plan()
    bench.engine.load_failed("a1", "no such file")
    bench.now += 1.0
    bench.engine.commit(plan, StepResult(1, (), 0.5), bench.now)
    for _ in range(9):
        bench.step()
    assert bench.ends() == {
        "x": ("failed", "adapter 'a1' could not be loaded: no such file"),
        "other": ("completed", "length"),
        "base": ("completed", "length"),
    }
    assert bench.engine.ledger.adapters["a1"].tier != "gpu"


def test_a_failed_prefetch_leaves_the_adapter_where_it_was() -> None:
    policy = POLICIES["fifo-prefetch"]()
    bench = Bench(adapter(1), adapter(2), policy=policy, adapter_loading="async", max_loras=1, max_cpu_loras=3)
    bench.submit("x", "a1")
    bench.submit("y", "a2")
    plan = bench.step()
    assert {(load.adapter.name, load.prefetch) for load in plan.loads} == {("a1", False), ("a2", True)}
    bench.engine.load_failed("a2", "disk full", prefetch=True)
    bench.engine.loaded("a1")
    bench.step()
    assert bench.ends().get("x") is None
    state = bench.engine.ledger.adapters["a2"]
    assert state.tier == "disk" and state.prefetching  # and the look-ahead asks for it again


@pytest.mark.parametrize("loading", ["sync", "async"])
def test_a_failed_prefetch_does_not_touch_a_load(loading: str) -> None:
    """a2 is being prefetched when its turn to be loaded comes; then the prefetch fails, the load does not."""
    policy = POLICIES["fifo-prefetch"]()
    bench = Bench(adapter(1), adapter(2), policy=policy, adapter_loading=loading, max_loras=1, max_cpu_loras=3)
    bench.submit("x", "a1", most=1)
    bench.submit("y", "a2", most=3)
    plan = bench.step()
    assert {(load.adapter.name, load.prefetch) for load in plan.loads} == {("a1", False), ("a2", True)}
    if loading == "async":
        bench.engine.loaded("a1")
        bench.step()
    plan = bench.step()
    assert [(load.adapter.name, load.prefetch) for load in plan.loads] == [("a2", False)]
    bench.engine.load_failed("a2", "no such file", prefetch=True)
    bench.step()
    if loading == "async":
        bench.engine.loaded("a2")
    for _ in range(5):
        bench.step()
    assert bench.ends() == {"x": ("completed", "length"), "y": ("completed", "length")}


def test_the_end_of_a_run_ends_everybody() -> None:
    bench = Bench(adapter(1), max_num_seqs=1)
    for name, wanted in (("x", "a1"), ("y", None), ("z", "a1")):
        bench.submit(name, wanted)
    bench.step()
    bench.submit("late")
    bench.engine.end_all(bench.now, "aborted", "the run is over")
    assert bench.ends() == dict.fromkeys(("x", "y", "z", "late"), ("aborted", "the run is over"))
    assert bench.engine.ledger.kv.used == 0 and bench.engine.unfinished == 0
