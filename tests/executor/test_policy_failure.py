"""A policy that fails on a live executor, in whichever thread: its requests end with the reason, in time."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench_machine import JumpingClock, Zoo

from loratory.errors import InputError, PolicyError
from loratory.executor.generation import Generation
from loratory.policy import AdapterView, Arrived, Schedule, View, Wake, want
from loratory.serving.config import EngineConfig
from loratory.serving.request import Request
from loratory.testing import ToyCost

SOON_S = 0.2
CONFIG = EngineConfig(
    max_loras=1,
    max_lora_rank=8,
    num_gpu_blocks=9,
    block_size=4,
    max_num_seqs=4,
    max_num_batched_tokens=24,
    scheduler_reserve_full_isl=False,
)
HERE = rf"{Path(__file__).name}:\d+"
Fault = Callable[[], Any]


def spin() -> None:
    while True:
        pass


def leave() -> None:
    sys.exit(0)


def leave_at_once() -> None:
    os._exit(0)


LATE = rf"did not come back within {SOON_S:g} s; it was at \S*{HERE}: mend that"
EXITS = rf"tried to end the process, with exit code 0 \(\S*{HERE}\)"
FAULTS: dict[str, tuple[Fault, str]] = {
    "spins": (spin, LATE),
    "sleeps": (lambda: time.sleep(60), LATE),
    "exits": (leave, EXITS),
    "exits at once": (leave_at_once, EXITS),
}


class Number:
    """A whole number that fails when it is read."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def __index__(self) -> int:
        self.fault()
        return 1


class Serves:
    """First come, first served, until the place where it fails is reached."""

    def __init__(self, fails_in: str, fault: Fault) -> None:
        self.fault = {fails_in: fault}
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        if name == "observes" and name in self.__dict__.get("fault", ()):
            self.fault[name]()
        raise AttributeError(name)

    def schedule(self, view: View) -> Schedule:
        self.calls += 1
        if self.calls == 3:
            self.fault.get("schedule", int)()
            if "action" in self.fault:
                yield Wake(after_steps=Number(self.fault["action"]))  # type: ignore[arg-type]
        for request in view.unblocked():
            yield from want(view, request)

    def observe(self, event: Any) -> None:
        if isinstance(event, Arrived):
            self.fault.get("observe", int)()

    def victim(self, view: View) -> None:
        self.fault.get("victim", int)()

    def evict(self, adapter: AdapterView, view: View) -> float:
        self.fault.get("evict", int)()
        return 0.0


class Live:
    """An executor that serves six requests of two adapters, more than its KV blocks hold, and how they ended."""

    def __init__(self, zoo: Zoo, policy: Any) -> None:
        self.ends: dict[str, tuple[str, str]] = {}
        self.ended = threading.Event()
        self.executor = zoo.machine(CONFIG).executor(
            zoo.adapters[:2], policy, ToyCost(), JumpingClock(), on_end=self.on_end, policy_timeout_s=SOON_S
        )
        for number in range(6):
            request = Request(str(number), ("a1", "a2")[number % 2], 0.0, 6, 10)
            self.executor.submit(request, Generation(range(6), output_tokens=10))

    def on_end(self, event: Any, generation: Generation) -> None:
        self.ends[event.request.request_id] = event.status, event.why
        if len(self.ends) == 6:
            self.ended.set()

    def step(self) -> None:
        self.executor.step(self.executor.now())

    def serve(self) -> None:
        try:
            while self.executor.engine.unfinished:
                self.step()
        finally:
            self.executor.close()

    def serve_in_a_thread(self) -> tuple[threading.Thread, list[BaseException]]:
        """The thread that serves, and a list that gets what `serve` raises."""
        raised: list[BaseException] = []

        def serve() -> None:
            try:
                self.serve()
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=serve)
        thread.start()
        return thread, raised


def check(live: Live, reason: str) -> None:
    """Every request has ended, those that were left with the reason; memory is free, and nothing more is taken."""
    failed = [why for status, why in live.ends.values() if status == "failed"]
    assert len(live.ends) == 6 and failed and set(failed) == {failed[0]} and re.search(reason, failed[0]), live.ends
    assert {status for status, _ in live.ends.values()} <= {"failed", "completed"}
    engine, tables = live.executor.engine, live.executor.runner.tables
    assert not engine.unfinished and not engine.ledger.sequences and engine.ledger.kv.used == 0
    assert tables.free_blocks == tables.num_blocks and tables.sequences == 0
    for call in (lambda: live.executor.submit(Request("7", None, 0.0, 1, 1), Generation([1])), live.step):
        with pytest.raises(PolicyError, match=r"^the executor has stopped: policy Serves") as caught:
            call()
        assert len(str(caught.value)) <= 400


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("place", ["schedule", "observe", "victim", "evict", "action"])
def test_in_the_main_thread(llama: Zoo, place: str, fault: str) -> None:
    before = os._exit
    live = Live(llama, Serves(place, FAULTS[fault][0]))
    with pytest.raises(PolicyError, match=FAULTS[fault][1]):
        live.serve()
    check(live, FAULTS[fault][1])
    assert os._exit is before


@pytest.mark.parametrize("fault", ["spins", "exits", "exits at once"])
@pytest.mark.parametrize("place", ["schedule", "observe", "victim", "evict", "action"])
def test_in_another_thread(llama: Zoo, place: str, fault: str) -> None:
    live = Live(llama, Serves(place, FAULTS[fault][0]))
    thread, raised = live.serve_in_a_thread()
    thread.join(30)
    (error,) = raised
    assert isinstance(error, PolicyError) and re.search(FAULTS[fault][1], str(error))
    check(live, FAULTS[fault][1])


def test_a_sleep_in_another_thread_ends_the_requests_and_the_process_lives(llama: Zoo) -> None:
    """No signal reaches it there: that one step returns with the policy, and raises then."""
    wakes = threading.Event()
    live = Live(llama, Serves("schedule", wakes.wait))
    thread, raised = live.serve_in_a_thread()
    assert live.ended.wait(30) and not raised
    check(live, rf"^policy Serves did not come back within {SOON_S:g} s; it was at .*, in a call that Python cannot")
    wakes.set()
    thread.join(30)
    (error,) = raised
    assert isinstance(error, PolicyError) and "did not come back" in str(error)


def test_a_policy_that_catches_everything_in_another_thread_is_left_behind(llama: Zoo) -> None:
    over: list[bool] = []

    def catch_all() -> None:
        while not over:
            try:
                while not over:
                    sum(range(1000))
            except BaseException:
                pass

    live = Live(llama, Serves("schedule", catch_all))
    thread, raised = live.serve_in_a_thread()
    assert live.ended.wait(30) and not raised
    check(
        live, rf"^policy Serves did not come back within {SOON_S:g} s; .*; it also caught what was raised to stop it$"
    )
    over.append(True)
    thread.join(30)
    (error,) = raised
    assert isinstance(error, PolicyError) and "did not come back" in str(error)


@pytest.mark.parametrize("fault", FAULTS)
def test_while_the_engine_is_made(llama: Zoo, fault: str) -> None:
    with pytest.raises(PolicyError, match=FAULTS[fault][1]):
        Live(llama, Serves("observes", FAULTS[fault][0]))


def test_two_executors_in_two_threads_are_watched_both(llama: Zoo) -> None:
    """Each policy begins to spin when the other has begun."""
    both = threading.Barrier(2)

    def meet_and_spin() -> None:
        both.wait(30)
        spin()

    lives = [Live(llama, Serves("schedule", meet_and_spin)) for _ in range(2)]

    def serve() -> None:
        with pytest.raises(PolicyError, match=LATE):
            lives[0].serve()

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(PolicyError, match=LATE):
        lives[1].serve()
    thread.join(30)
    for live in lives:
        check(live, LATE)


def test_a_timeout_that_means_nothing_is_refused(llama: Zoo) -> None:
    with pytest.raises(InputError, match="policy_timeout_s"):
        llama.machine(CONFIG).executor(
            llama.adapters, Serves("", int), ToyCost(), JumpingClock(), policy_timeout_s=-1.0
        )
