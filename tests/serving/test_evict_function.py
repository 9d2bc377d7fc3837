"""``evict`` as a function of a policy's own: every form it may have, what it decides, and its faults."""

from __future__ import annotations

import functools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from lab import run
from member_policies import Plain, held, world
from roster import POLICIES

from loratory.errors import InputError, PolicyError
from loratory.policy import SCORERS, AdapterView, Policy, Schedule, View
from loratory.serving.config import EngineConfig
from loratory.serving.policy_members import members_of
from loratory.serving.policy_watch import PolicyWatch
from loratory.serving.reserved import WithReservation
from loratory.testing import ToyCost, World, adapter, workload


def _largest_id(adapter: AdapterView, view: View) -> float:
    """The adapter with the largest id goes first; view is the engine's."""
    assert view.now >= 0.0 and isinstance(adapter, AdapterView)
    return -adapter.lora_int_id


class AsFunction(Plain):
    def evict(adapter: AdapterView, view: View) -> float:  # type: ignore[misc]  # noqa: N805
        return _largest_id(adapter, view)  # type: ignore[arg-type]


class AsFunctionWithMore(Plain):
    def evict(adapter: AdapterView, view: View, sign: float = 1.0) -> float:  # type: ignore[misc]  # noqa: N805
        return sign * _largest_id(adapter, view)  # type: ignore[arg-type]


class AsMethod(Plain):
    def evict(self, adapter: AdapterView, view: View) -> float:
        assert isinstance(self, AsMethod)
        return _largest_id(adapter, view)


class AsMethodOfTheBase(Policy):
    schedule = Plain.schedule

    def evict(self, adapter: AdapterView, view: View) -> float:
        assert isinstance(self, AsMethodOfTheBase)
        return _largest_id(adapter, view)


class AsStatic(Plain):
    @staticmethod
    def evict(adapter: AdapterView, view: View) -> float:
        return _largest_id(adapter, view)


class AsNamed(Plain):
    evict = _largest_id


class AsPartial(Plain):
    evict = functools.partial(lambda sign, adapter, view: sign * _largest_id(adapter, view), 1.0)


class AsLambda(Plain):
    def __init__(self) -> None:
        self.evict = lambda adapter, view: _largest_id(adapter, view)


class AsNumpy(Plain):
    def evict(self, adapter: AdapterView, view: View) -> Any:
        return np.float32(_largest_id(adapter, view))


class AsFraction(Plain):
    def evict(self, adapter: AdapterView, view: View) -> Any:
        return Fraction(int(_largest_id(adapter, view)), 3)


FORMS = [
    AsFunction, AsFunctionWithMore, AsMethod, AsMethodOfTheBase, AsStatic, AsNamed, AsPartial, AsLambda, AsNumpy,
    AsFraction, lambda: WithReservation(AsFunction()), lambda: WithReservation(AsMethod()),
]  # fmt: skip


@pytest.mark.parametrize("policy", FORMS)
@pytest.mark.parametrize("memory", ["slots", "unified"])
def test_an_evict_of_its_own_chooses_who_goes(policy: Callable[[], Any], memory: str) -> None:
    evicted = [event[2] for event in run(world(memory=memory), policy).of("Evicted")]
    by_age = [event[2] for event in run(world(memory=memory), Plain).of("Evicted")]
    assert evicted and evicted != by_age and evicted[0] == "a2"


def test_a_scorer_of_ours_is_called_as_it_is() -> None:
    """No step in between: it raises nothing and returns numbers."""
    scorers: list[Any] = []

    class Looks(Plain):
        def schedule(self, view: View) -> Schedule:
            scorers.append(view.scorer)
            yield from super().schedule(view)

    run(world(), lambda: held(Looks, evict="lfu"), check_books=False)
    assert set(scorers) == {SCORERS["lfu"]}


def _raises(adapter: AdapterView, view: View) -> float:
    raise KeyError("no such thing")


def _spins(adapter: AdapterView, view: View) -> float:
    while True:
        pass


@pytest.mark.parametrize(
    ("evict", "says"),
    [
        (_raises, r"its evict\(\) raised KeyError: 'no such thing' \(.*test_evict_function\.py:\d+\)"),
        (lambda a, v: float("nan"), r"its evict\(\) returned nan for adapter 'a1': return a number"),
        (lambda a, v: None, r"its evict\(\) returned a value of type NoneType for adapter 'a1': return a number"),
        (lambda a, v: "3", r"its evict\(\) returned a value of type str for adapter 'a1': return a number"),
        (lambda a, v: exit(3), r"its evict\(\) tried to end the process, with exit code 3"),
        (_spins, r"its evict\(\) did not come back within 0\.1 s; it was at .*test_evict_function\.py:\d+"),
    ],
)
@pytest.mark.parametrize("base", [Plain, POLICIES["fifo"], POLICIES["fifo-reserved"]])
def test_a_fault_in_evict_is_the_policys_error(base: Callable[[], Any], evict: Any, says: str) -> None:
    """Called within the policy's own code, and within that of a policy of ours."""

    def policy() -> Any:
        found = base()
        getattr(found, "_policy", found).evict = evict
        return found

    with pytest.raises(PolicyError, match=says) as caught, PolicyWatch("mine", 0.1):
        run(world(), policy, check_books=False)
    assert str(caught.value).count("failed at") == 1


@pytest.mark.parametrize(("evict", "says"), [(_raises, "raised KeyError"), (_spins, "did not come back within 0.1 s")])
def test_a_fault_in_evict_that_the_engine_calls_is_as_well(evict: Any, says: str) -> None:
    """With unified memory the engine itself evicts idle adapters when KV blocks run out."""
    adapters = (adapter(1), adapter(2))
    rows = [{"adapter": 1, "prompt": 2, "out": 2}, {"at": 2.0, "adapter": 2, "prompt": 2, "out": 60}]
    config = EngineConfig(max_loras=2, num_gpu_blocks=64, block_size=1, memory="unified")
    called: list[str] = []

    class Mine(Plain):
        def evict(self, adapter: AdapterView, view: View) -> float:
            called.append(str(adapter.name))
            return float(evict(adapter, view))

    tight = World(workload(rows, adapters), adapters, config, ToyCost())
    with pytest.raises(PolicyError, match=rf"its evict\(\) {says}"), PolicyWatch("mine", 0.1):
        run(tight, Mine, check_books=False)
    assert called == ["a1"]


def test_a_policy_that_asks_the_scorer_for_ever_is_stopped() -> None:
    """Each call of its evict is short, but that of its schedule never ends."""

    class Asks(AsMethod):
        def schedule(self, view: View) -> Schedule:
            while True:
                for each in view.adapters.values():
                    view.scorer(each, view)
            yield

    with pytest.raises(PolicyError, match=r"did not come back within 0\.1 s"), PolicyWatch("mine", 0.1):
        run(world(), Asks, check_books=False)


def _bare(function: Any) -> Any:
    """A decorator without functools.wraps."""
    return lambda *arguments, **named: function(*arguments, **named)


class Bare(Plain):
    @_bare
    def evict(self, adapter: AdapterView, view: View) -> float:
        return _largest_id(adapter, view)


class OtherSelf(Plain):
    def evict(this, adapter: AdapterView, view: View | None = None) -> float:  # noqa: N805
        assert isinstance(this, OtherSelf) and view is not None
        return _largest_id(adapter, view)


class AllArguments(Plain):
    def evict(*arguments: Any) -> float:
        assert isinstance(arguments[0], AllArguments)
        return _largest_id(*arguments[1:])


@pytest.mark.parametrize("policy", [Bare, OtherSelf, AllArguments])
def test_a_method_is_what_python_binds(policy: Callable[[], Any]) -> None:
    evicted = [event[2] for event in run(world(), policy).of("Evicted")]
    assert evicted and evicted[0] == "a2"


def test_a_function_that_may_be_either_is_refused() -> None:
    class Mine(Plain):
        def evict(a, b, c=1.0) -> float:  # type: ignore[no-untyped-def]  # noqa: N805
            return 0.0

    with pytest.raises(InputError, match=r"its evict\(a, b, c=1.0\) may be a method, or a function of"):
        members_of(Mine())
