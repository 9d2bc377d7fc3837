"""run: a world under a policy, simulated with every step checked; Run, what it left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loratory.experiment.router_spec import router_factory
from loratory.policies.fifo import Fifo
from loratory.serving.engine import Engine
from loratory.serving.events import Ended, Event, Evicted
from loratory.serving.plan import StepPlan
from loratory.serving.policy import PolicyLike
from loratory.serving.run_end import RunEnd
from loratory.serving.sequence import sequence_of
from loratory.serving.views import RequestViews
from loratory.sim.cluster import simulate
from loratory.sim.noise import StepNoise
from loratory.sim.router import Router
from loratory.testing.broken_law import BrokenLaw
from loratory.testing.checked_engine import CheckedEngine
from loratory.testing.world import World

Values = tuple[Any, ...]
"""An event as values only: its type's name first."""

STALL_PLANS = 3000
"""What stalls does so for ever: wait less for it than a simulation does."""


@dataclass
class Run:
    """What a run left: by replica its events, and the same as values; how it ended; by replica its engine."""

    world: World
    events: list[list[Event]]
    flat: list[list[Values]]
    outcome: RunEnd
    engines: list[CheckedEngine]
    """None of a run whose books were not checked."""

    @property
    def ended(self) -> dict[str, Ended]:
        """The end of each request, by its id."""
        return {e.request.request_id: e for events in self.events for e in events if isinstance(e, Ended)}

    def of(self, kind: str) -> list[Values]:
        """The events of a type, such as "Admitted", as values."""
        return [event for flat in self.flat for event in flat if event[0] == kind]

    @property
    def decisions(self) -> list[list[Values]]:
        """By replica, what the policy yielded and what became of it, as values."""
        return [[event for event in flat if event[0] == "Decided"] for flat in self.flat]


def run(
    world: World,
    policy: Callable[[], PolicyLike],
    *,
    check_books: bool = True,
    replicas: int = 1,
    router: Router | str | None = None,
    router_name: str = "",
    metrics_delay_s: float = 0.0,
    metrics_interval_s: float | None = None,
    cutoff_s: float | None = None,
    jump: bool = True,
    noise: Callable[[int], StepNoise] | None = None,
    takes_over_at: int | None = None,
) -> Run:
    """Simulate a world; ``policy()`` makes one policy a replica, ``noise(i)`` the noise of replica i's steps.

    With ``check_books`` every plan and commit is recounted from scratch. ``jump=False`` runs decode steps one at a
    time; ``router`` is one or its name, ``router_name`` what errors call it, ``metrics_delay_s`` and
    ``metrics_interval_s`` are those of `simulate`. ``takes_over_at``: fifo decides at first, and the policy is put into
    the running engine before that plan, counted from 1. Raises `BrokenLaw`, and `PolicyError` when the policy fails.
    """
    events: list[list[Event]] = [[] for _ in range(replicas)]
    flat: list[list[Values]] = [[] for _ in range(replicas)]
    engines: list[CheckedEngine] = []

    def sink(index: int) -> Callable[[Event], None]:
        def take(event: Event) -> None:
            events[index].append(event)
            flat[index].append(plain(event))
            if isinstance(event, Evicted) and engines:
                state = engines[index].ledger.adapters[event.adapter]
                if state.pinned or state.running:
                    raise BrokenLaw("limits", f"{event.adapter} was evicted while pinned or in use")

        return take

    def checked(*arguments: Any) -> Engine:
        if takes_over_at is None:
            engines.append(CheckedEngine(*arguments))
        else:
            engines.append(_TakenOver(policy(), takes_over_at, *arguments))
        return engines[-1]

    outcome = simulate(
        world.workload,
        adapters=world.adapters,
        config=world.config,
        policy=policy if takes_over_at is None else Fifo,
        cost=world.cost,
        replicas=replicas,
        router=router_factory(router)() if isinstance(router, str) else router,
        router_name=router if isinstance(router, str) else router_name,
        metrics_delay_s=metrics_delay_s,
        metrics_interval_s=metrics_interval_s,
        sink=sink,
        kv_bytes_per_token=world.kv_bytes_per_token,
        cutoff_s=cutoff_s,
        jump=jump,
        stall_plans=STALL_PLANS,
        engine=checked if check_books else Engine,
        noise=noise,
    )
    return Run(world, events, flat, outcome, engines)


class _TakenOver(CheckedEngine):
    """An engine into which a policy is put before plan number ``at``."""

    def __init__(self, policy: PolicyLike, at: int, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._next_policy: PolicyLike | None = policy
        self._plans_left = at

    def plan(self, now: float) -> StepPlan | None:
        """See `Engine.plan`."""
        self._plans_left -= 1
        if self._plans_left <= 0 and self._next_policy is not None:
            policy, self._next_policy = self._next_policy, None
            self.swap(policy, now)
        return super().plan(now)


def plain(event: Any) -> Values:
    """An event as values only, so that those of two runs compare."""

    def value(item: Any) -> Any:
        if hasattr(item, "request_id"):
            return item.request_id
        if isinstance(item, tuple) and hasattr(item, "_fields"):
            return (type(item).__name__, *map(value, item))
        return tuple(map(value, item)) if isinstance(item, tuple | list | RequestViews) else item

    if isinstance(event, Ended):
        sequence = sequence_of(event.request)
        return (
            "Ended", event.now, event.request.request_id, event.status, event.why, sequence.generated,
            sequence.admitted_at, sequence.first_token_at, sequence.preemptions, sequence.load_wait_s,
            sequence.preempted_s, sequence.hit,
        )  # fmt: skip
    return (type(event).__name__, *map(value, event))
