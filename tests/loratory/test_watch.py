"""PolicyWatch: a policy that spins, sleeps or exits, wherever it is called, ends as its own error, with its line."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from lab import run

from loratory.errors import InputError, Interruption, PolicyError
from loratory.experiment.policy_spec import policy_factory
from loratory.policy import Arrived, Schedule, View, Wake, want
from loratory.serving import policy_calls
from loratory.serving.config import EngineConfig
from loratory.serving.engine import Engine
from loratory.serving.guest_errors import guest
from loratory.serving.policy_watch import PolicyWatch
from loratory.serving.request import Request
from loratory.testing import ToyCost, World, adapter, workload

SOON_S = 0.1
HERE = Path(__file__).name


class Serves:
    """First come, first served; what the others derive from."""

    def schedule(self, view: View) -> Schedule:
        for request in view.unblocked():
            yield from want(view, request)


class SpinsInSchedule(Serves):
    def schedule(self, view: View) -> Schedule:
        while True:
            pass
        yield


class SpinsBeforeItIsAGenerator(Serves):
    def schedule(self, view: View) -> Schedule:
        while True:
            pass


class Sleeps(Serves):
    def schedule(self, view: View) -> Schedule:
        threading.Event().wait()
        yield


class SpinsInObserve(Serves):
    def observe(self, event: Any) -> None:
        while True:
            pass


class SpinsInVictim(Serves):
    def victim(self, view: View) -> Any:
        while True:
            pass


class SpinsInAProperty(Serves):
    def observe(self, event: Any) -> None:
        """Nothing."""

    @property
    def observes(self) -> Any:
        while True:
            pass


class ExitsInAProperty(SpinsInAProperty):
    @property
    def observes(self) -> Any:
        sys.exit(0)


class CatchesTheFirst(Serves):
    """Catches the first that is thrown, and then goes on answering."""

    def __init__(self) -> None:
        self.caught = False

    def schedule(self, view: View) -> Schedule:
        try:
            while not self.caught:
                sum(range(10_000))  # since Python 3.13 what is raised at the jump back is outside of the try block
        except BaseException:
            self.caught = True
        yield from super().schedule(view)


class Raises(Serves):
    def __init__(self, make: Callable[[], BaseException]) -> None:
        self.make = make

    def schedule(self, view: View) -> Schedule:
        raise self.make()
        yield


class Exits(Serves):
    def schedule(self, view: View) -> Schedule:
        os._exit(0)
        yield


class Unprintable(BaseException):
    def __str__(self) -> str:
        raise ValueError


def small(requests: int = 10) -> World:
    """Ten requests do not fit together, so that one of them is preempted."""
    adapters = (adapter(1), adapter(2))
    rows = [{"at": 0.002 * i, "adapter": i % 2 + 1, "prompt": 7, "out": 12} for i in range(requests)]
    config = EngineConfig(max_loras=2, max_num_seqs=8, num_gpu_blocks=30, block_size=2, max_num_batched_tokens=32)
    return World(workload(rows, adapters), adapters, config, ToyCost())


def fault(policy: Callable[[], Any]) -> str:
    """What a run under the policy ends with."""
    with pytest.raises(PolicyError) as caught, PolicyWatch("mine", SOON_S):
        run(small(), policy, check_books=False)
    return str(caught.value)


@pytest.mark.parametrize(
    "policy", [SpinsInSchedule, SpinsBeforeItIsAGenerator, Sleeps, SpinsInObserve, SpinsInVictim, SpinsInAProperty]
)
def test_code_that_does_not_come_back_is_stopped_and_its_line_named(policy: type) -> None:
    text = fault(policy)
    assert re.search(rf"did not come back within {SOON_S:g} s; it was at .*(test_watch|threading)\.py:\d+", text), text
    assert HERE in text or policy is Sleeps


def test_an_attribute_that_exits_is_the_policys_error_too() -> None:
    text = fault(ExitsInAProperty)
    assert "tried to end the process, with exit code 0" in text and HERE in text


def test_no_look_disturbs_the_end_of_a_watch() -> None:
    """What is raised there would leave the alarm on, and end the process at some later time."""

    class Signals(PolicyWatch):
        def _disarm(self) -> None:
            signal.raise_signal(signal.SIGALRM)
            super()._disarm()

    with pytest.raises(Interruption), Signals("mine", SOON_S) as watch:
        watch.insist(Interruption(15))
        watch._ignored = 1000  # it is due at every look
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL and PolicyWatch.armed() is None


def test_an_exit_of_the_callers_own_is_not_the_policys() -> None:
    with pytest.raises(SystemExit), PolicyWatch("mine", SOON_S):
        run(small(), Serves, check_books=False)
        sys.exit(3)


def test_a_slow_sink_is_not_the_policy() -> None:
    """It hears the same events as the policy's observe(), from the same function."""

    class Observes(Serves):
        def observe(self, event: Any) -> None:
            """Nothing."""

    def slow(event: Any) -> None:
        time.sleep(1.5 * SOON_S if isinstance(event, Arrived) and event.request.request_id == "3" else 0)

    world = small()
    engine = Engine(world.config, world.adapters, Observes(), ToyCost(), sink=slow)
    for number in range(4):
        engine.submit(Request(str(number), None, 0.0, 1, 1))
    with PolicyWatch("mine", SOON_S):
        assert engine.plan(0.0) is not None


def test_behind_a_reservation_too() -> None:
    from loratory.serving.reserved import WithReservation

    assert HERE in fault(lambda: WithReservation(SpinsInSchedule()))


def test_in_another_thread_than_the_main_one() -> None:
    told: list[str] = []
    thread = threading.Thread(target=lambda: told.append(fault(SpinsInSchedule)))
    thread.start()
    thread.join()
    assert told and "did not come back" in told[0]


def test_a_signal_in_another_thread_than_the_main_one_stays_what_it_is() -> None:
    """What a policy has caught is raised anew, with its number."""

    class Catches(Serves):
        def schedule(self, view: View) -> Schedule:
            watch = PolicyWatch.armed()
            assert watch is not None
            watch.insist(Interruption(15))
            while True:
                pass
            yield

    caught: list[BaseException] = []

    def thread() -> None:
        with pytest.raises(Interruption) as error, PolicyWatch("mine", SOON_S):
            run(small(), Catches, check_books=False)
        caught.append(error.value)

    runs = threading.Thread(target=thread)
    runs.start()
    runs.join(30)
    assert caught and caught[0].args == (15,)


def test_a_policy_that_catches_the_first_order_is_stopped_by_the_next() -> None:
    """The second may find the engine at work, where it is nobody's to catch."""
    policy = CatchesTheFirst()
    with pytest.raises(PolicyError), PolicyWatch("mine", SOON_S):
        while True:
            run(small(), lambda: policy, check_books=False)
    assert policy.caught


def test_and_by_the_end_of_the_watch_where_no_other_order_comes() -> None:
    """What is left of the run is over before the next look."""
    with pytest.raises(PolicyError, match="mine did not come back within"), PolicyWatch("mine", 5 * SOON_S):
        run(small(1), CatchesTheFirst, check_books=False)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: SystemExit(0), "tried to end the process, with exit code 0"),
        (lambda: SystemExit("bye"), "tried to end the process, with exit code bye"),
        (lambda: Unprintable(), "raised Unprintable"),
        (lambda: GeneratorExit(), "raised GeneratorExit"),
        (lambda: ValueError("long " * 1000), "raised ValueError"),
        (lambda: MemoryError(), "raised MemoryError"),
    ],
)
def test_whatever_it_raises_is_its_own_error(make: Callable[[], BaseException], says: str) -> None:
    text = fault(lambda: Raises(make))
    assert says in text and HERE in text and len(text) <= 400


def test_an_exit_is_caught_and_the_process_lives() -> None:
    assert "tried to end the process, with exit code 0" in fault(Exits)


def test_a_keyboard_interrupt_is_the_policys_only_where_python_would_not_raise_it() -> None:
    with pytest.raises(KeyboardInterrupt), PolicyWatch("mine", SOON_S):
        run(small(), lambda: Raises(KeyboardInterrupt), check_books=False)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert "raised KeyboardInterrupt" in fault(lambda: Raises(KeyboardInterrupt))
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_order_of_a_signal_is_never_the_policys() -> None:
    with pytest.raises(Interruption), PolicyWatch("mine", SOON_S):
        run(small(), lambda: Raises(lambda: Interruption(15)), check_books=False)


def test_time_outside_a_policy_and_many_short_answers_do_not_count() -> None:
    """The run as a whole takes longer than the limit, each call far less."""

    class Short(Serves):
        def schedule(self, view: View) -> Schedule:
            until = time.perf_counter() + SOON_S / 20
            while time.perf_counter() < until:
                pass
            yield from super().schedule(view)

    with PolicyWatch("mine", SOON_S):
        until = time.perf_counter() + 2 * SOON_S
        while time.perf_counter() < until:
            pass
        outcome = run(small(), Short, check_books=False).outcome
    assert outcome.never_served == 0


class TalksOn(Serves):
    """Yields for twice the limit when it is first asked, each answer in time."""

    calls = 0

    def schedule(self, view: View) -> Schedule:
        self.calls += 1
        until = time.perf_counter() + (2 * SOON_S if self.calls == 1 else 0)
        while time.perf_counter() < until:
            next_answer = time.perf_counter() + SOON_S / 20
            while time.perf_counter() < next_answer:
                pass
            yield Wake(after_steps=1)
        yield from super().schedule(view)


def test_the_time_of_one_answer_counts_not_that_of_a_call_with_many() -> None:
    with PolicyWatch("mine", SOON_S):
        outcome = run(small(), TalksOn, check_books=False).outcome
    assert outcome.never_served == 0


def test_a_live_engine_does_not_wait_for_a_policy_that_yields_on_and_on() -> None:
    watch = PolicyWatch.over(TalksOn(), SOON_S, lambda text: None)
    try:
        with pytest.raises(PolicyError, match=r"TalksOn failed at 0\.0+ s: it did not come back within"), watch:
            run(small(), TalksOn, check_books=False)
        with watch:
            assert run(small(), Serves, check_books=False).outcome.never_served == 0
    finally:
        watch.close()


def test_a_watch_that_is_kept_can_be_entered_again() -> None:
    exit_before, alarm_before = os._exit, signal.getsignal(signal.SIGALRM)
    watch = PolicyWatch.over(SpinsInSchedule(), SOON_S, lambda text: None)
    try:
        for _ in range(2):
            with pytest.raises(PolicyError, match="SpinsInSchedule"), watch:
                run(small(), SpinsInSchedule, check_books=False)
            with watch:
                run(small(), Serves, check_books=False)
            assert os._exit is exit_before and signal.getsignal(signal.SIGALRM) is alarm_before
    finally:
        watch.close()


def test_one_thread_s_watch_is_not_anothers() -> None:
    seen: list[PolicyWatch | None] = []
    with PolicyWatch("mine") as watch:
        other = threading.Thread(target=lambda: seen.append(PolicyWatch.armed()))
        other.start()
        other.join()
        assert seen == [None] and PolicyWatch.armed() is watch


def test_the_watch_leaves_the_process_as_it_was() -> None:
    exit_before, alarm_before = os._exit, signal.getsignal(signal.SIGALRM)
    with PolicyWatch("mine"), PolicyWatch("nested"):
        assert os._exit is not exit_before
    assert os._exit is exit_before and signal.getsignal(signal.SIGALRM) is alarm_before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_a_timeout_that_means_nothing_is_refused(seconds: float) -> None:
    with pytest.raises(InputError, match="--policy-timeout"):
        PolicyWatch("mine", seconds)


@pytest.mark.parametrize(
    ("body", "kind", "says"),
    [
        ("while True: pass", PolicyError, r"its import did not come back within .*mine\.py:1"),
        ("import sys; sys.exit(0)", PolicyError, r"its import tried to end the process.*mine\.py:1"),
        ("import os; os._exit(0)", PolicyError, r"its import tried to end the process.*mine\.py:1"),
        ("1 / 0", InputError, r"its import raised ZeroDivisionError.*mine\.py:1"),
        ("class Mine", InputError, r"its import raised SyntaxError: [^()]+ \(\S*\w+\.py:1\)$"),
        (
            "class Mine:\n def schedule(self, view): yield\n def __init__(self):\n  while True: pass",
            PolicyError,
            "py:4",
        ),
        ("class Mine:\n def schedule(self, view): yield\n def __init__(self): exit()", PolicyError, "py:3"),
        (
            "class Mine:\n def schedule(self, view): yield\n def __init__(self, n): pass",
            InputError,
            r"needs n: write \S*mine\.py:Mine:n=VALUE",
        ),
    ],
)
def test_import_and_constructor_are_watched(body: str, kind: type, says: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(body)
    with pytest.raises(kind, match=says) as caught:
        policy_factory(f"{file}:Mine", SOON_S)
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 400


def test_a_bound_is_watched() -> None:
    def bound(limits: object) -> float:
        while True:
            pass

    with pytest.raises(PolicyError, match=r"its bound\(\) did not come back"), PolicyWatch("mine", SOON_S):
        guest("mine", "its bound()", bound, None)


def test_a_name_too_long_for_a_file_leaves_no_watch_behind() -> None:
    with PolicyWatch("f" * 100_000, SOON_S):
        assert PolicyWatch.armed() is not None
    assert PolicyWatch.armed() is None


def test_the_functions_that_call_a_policy_exist() -> None:
    """They are known by name: one that is renamed would be watched no more."""

    def names(code: CodeType) -> set[str]:
        inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        return {code.co_qualname}.union(*map(names, inner))

    for module, calling in policy_calls._ENTRIES.items():
        source = Path(str(import_module(module).__file__)).read_text(encoding="utf-8")
        assert calling <= names(compile(source, module, "exec"))
    for module in policy_calls._PASSING:
        import_module(module)
