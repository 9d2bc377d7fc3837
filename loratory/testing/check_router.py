"""check_router: a router in front of small random fleets, against what every router promises."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import hypothesis
from hypothesis import strategies as st

from loratory.errors import InputError, LoratoryError, PolicyError
from loratory.experiment.router_spec import RouterFactory, router_factory
from loratory.policies.fifo import Fifo
from loratory.serving.policy_watch import POLICY_TIMEOUT_S, PolicyWatch
from loratory.testing.broken_law import BrokenLaw
from loratory.testing.check_policy import EXAMPLES, CheckProgress, PromiseResult, is_late, quiet_hypothesis
from loratory.testing.failing_fleet import End, ends_through_failure
from loratory.testing.laws import assert_run, assert_same, assert_serves
from loratory.testing.random_worlds import worlds
from loratory.testing.run import Run, run
from loratory.testing.world import World

ROUTER_PROMISES = {
    "returns": "its code comes back in time, raises nothing, and answers with a candidate",
    "serves": "every request goes to one replica, is served, and ends once, also while replicas fail, return, drain",
    "determinism": "two runs of the same fleet are the same",
    "jumps": "runs are the same when the simulator jumps over decode steps and when it does not",
}
"""What is checked, by name, in one sentence."""


@dataclass(frozen=True, slots=True)
class RouterCheck:
    """What a check found, in ``examples`` random fleets."""

    router: str
    examples: int
    seed: int
    findings: tuple[PromiseResult, ...]

    @property
    def passed(self) -> bool:
        """Whether every promise was kept."""
        return all(finding.ok for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**asdict(self), "passed": self.passed}


def check_router(
    spec: str,
    *,
    examples: int = EXAMPLES,
    seed: int = 0,
    timeout_s: float = POLICY_TIMEOUT_S,
    progress: CheckProgress | None = None,
) -> RouterCheck:
    """Run the router that ``spec`` names in front of ``examples`` random fleets, whose engines run fifo.

    Raises `InputError` for a router that cannot be loaded, and `PolicyError` for one that exits or takes longer than
    ``timeout_s`` when it is. One that cannot be stopped ends the process, as in a run (`PolicyWatch`).
    """
    if examples < 1:
        raise InputError(f"the number of examples (--examples) is {examples}: give at least 1")
    if seed < 0:
        raise InputError(f"the seed (--seed) is {seed}: give 0 or more")
    search = _Search(spec, router_factory(spec, timeout_s), progress, examples)
    chosen = hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        print_blob=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    late = st.sampled_from([(0.0, None), (0.05, None), (0.01, 0.1)])

    def drawn(world: World, fleet: tuple[int, int], metrics: tuple[float, float | None]) -> None:
        search.check(world, *fleet, *metrics)

    fleets = st.integers(2, 5).flatmap(lambda count: st.tuples(st.just(count), st.integers(0, count - 1)))
    given = hypothesis.given(worlds(most=14), fleets, late)
    stuck = False
    try:
        with quiet_hypothesis(), PolicyWatch(spec, timeout_s, word="router"):
            hypothesis.seed(seed)(chosen(given(drawn)))()
    except PolicyError as error:  # `_StuckError`, or what the watch has raised before that was caught
        if not is_late(error):
            raise
        stuck = True
        search.broken.setdefault("returns", (0, str(error)))
    undecided = set(ROUTER_PROMISES) if stuck else set()
    if not search.ended:  # no fleet was run to its end: of what a run shows, nothing was seen
        undecided |= set(ROUTER_PROMISES) - {"returns"}
    if "determinism" in search.broken:  # two runs differ anyway: it is open whether jumps matter
        undecided.add("jumps")
        search.broken.pop("jumps", None)
    findings = [
        PromiseResult(
            law, promise, False if law in search.broken else None if law in undecided else True, search.text(law)
        )
        for law, promise in ROUTER_PROMISES.items()
    ]
    return RouterCheck(spec, examples, seed, tuple(findings))


class _StuckError(PolicyError):
    """The router did not come back: no fleet can be run any more."""


class _Search:
    """Runs the router in front of fleets, and keeps for each promise what breaks it in the smallest world."""

    def __init__(self, spec: str, make: RouterFactory, progress: CheckProgress | None, examples: int) -> None:
        self._spec = spec
        self._make = make
        self._progress = progress
        self._examples = examples
        self._ran = 0
        self.ended = False
        """Whether a fleet ran to its end, each time."""
        self.broken: dict[str, tuple[int, str]] = {}

    def text(self, law: str) -> str:
        """What breaks a promise; empty where nothing does."""
        return self.broken.get(law, (0, ""))[1]

    def check(self, world: World, replicas: int, fails: int, delay_s: float, interval_s: float | None) -> None:
        """Run one fleet: once, again, and without jumps; the same while replica ``fails`` fails and another drains."""
        self._ran += 1
        if self._progress is not None:
            self._progress(self._spec, min(self._ran, self._examples), self._examples)
        where = f"{replicas} replicas, {len(world.workload)} requests, metrics_delay_s {delay_s:g}"
        where += "" if interval_s is None else f", metrics_interval_s {interval_s:g}"

        def note(law: str, found: str) -> None:
            before = self.broken.get(law)
            if before is None or len(world.workload) < before[0]:
                self.broken[law] = len(world.workload), f"{found} ({where})"

        def options(jump: bool) -> dict[str, Any]:
            late: dict[str, Any] = {"metrics_delay_s": delay_s, "metrics_interval_s": interval_s}
            return {"router": self._make(), "router_name": self._spec, "jump": jump, "replicas": replicas} | late

        def simulated(jump: bool = True) -> Run:
            return run(world, Fifo, check_books=False, **options(jump))

        def failing(jump: bool = True) -> dict[str, End]:
            return ends_through_failure(world, failing=fails, **options(jump))

        try:
            first = simulated()
            for law, assertion in (("serves", assert_run), ("serves", assert_serves)):
                try:
                    assertion(first)
                except BrokenLaw as error:
                    note(law, error.found)
            for law, jump in (("determinism", True), ("jumps", False)):
                try:
                    assert_same(law, first, simulated(jump))
                except BrokenLaw as error:
                    note(law, error.found)
            try:
                ends = failing()
                for law, jump in (("determinism", True), ("jumps", False)):
                    if failing(jump) != ends:
                        note(law, "requests end otherwise while replicas fail, come back and drain")
            except BrokenLaw as error:
                note(error.law, error.found)
            self.ended = True
        except LoratoryError as error:
            note("returns", str(error))
            if is_late(error):
                raise _StuckError(str(error)) from error
