"""check_policy: a policy against every law, in random worlds and in those that authors forget."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from time import monotonic
from typing import Any, NamedTuple

import hypothesis
from hypothesis.configuration import set_hypothesis_home_dir

from loratory.errors import InputError, LoratoryError, PolicyError, PolicyTimeout
from loratory.experiment.policy_spec import policy_factory
from loratory.serving.fairness import FairnessLimits
from loratory.serving.guest_errors import guest
from loratory.serving.policy import PolicyLike
from loratory.serving.policy_members import members_of, promised
from loratory.serving.policy_watch import POLICY_TIMEOUT_S, PolicyWatch
from loratory.testing.broken_law import BrokenLaw
from loratory.testing.edge_worlds import edge_worlds
from loratory.testing.hash_order import other_process
from loratory.testing.laws import LAWS, assert_run, assert_same, assert_serves
from loratory.testing.random_worlds import worlds
from loratory.testing.run import run
from loratory.testing.simpler_world import simplest
from loratory.testing.world import World, takes_over_at
from loratory.testing.world_program import program

PROMISES = {
    "returns": "its code comes back in time, and raises nothing",
    "events": "observe() takes events of types that it does not know",
    "serves": "every request is served, or rejected by the policy",
    "takes_over": "put into an engine that runs, it serves what is there",
    **LAWS,
}
"""What is checked, by name, in one sentence."""

EXAMPLES = 100
_ELSEWHERE = 8
"""Worlds that are run in another process as well."""

_SIMPLIFY_S = 6.0
"""Seconds spent on a plainer world for one broken promise."""

CheckProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class PromiseResult:
    """One promise: whether it was kept in every world, and if not, what shows it.

    ``ok`` is None where that is open: the policy did not come back, or no two runs are the same. ``program``: Python
    that shows a broken promise again, in the plainest world found.
    """

    law: str
    promise: str
    ok: bool | None
    found: str = ""
    program: str = ""


@dataclass(frozen=True, slots=True)
class PolicyCheck:
    """What a check found. ``refusals``: how often the ledger refused an action, by action and word of refusal."""

    policy: str
    examples: int
    seed: int
    worlds: int
    findings: tuple[PromiseResult, ...]
    refusals: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every promise was kept."""
        return all(finding.ok for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**asdict(self), "passed": self.passed}


def check_policy(
    spec: str,
    *,
    examples: int = EXAMPLES,
    seed: int = 0,
    policy_timeout_s: float = POLICY_TIMEOUT_S,
    progress: CheckProgress | None = None,
    simplify: bool = True,
) -> PolicyCheck:
    """Run the policy that ``spec`` names in ``examples`` random worlds and in every edge world.

    With ``simplify``, seconds are spent on a plainer world for each broken promise.

    Raises `InputError` for a policy that cannot be loaded. A policy that cannot be stopped ends the process, as in a
    run (`PolicyWatch`).
    """
    if examples < 1:
        raise InputError(f"the number of examples (--examples) is {examples}: give at least 1")
    if seed < 0:
        raise InputError(f"the seed (--seed) is {seed}: give 0 or more")
    search = _Search(spec, policy_factory(spec, policy_timeout_s), progress, examples)
    with quiet_hypothesis():
        stuck = _watched(spec, policy_timeout_s, partial(search.everywhere, seed))
        if not stuck and not search.broken.keys() & {"determinism", "returns"}:
            _watched(spec, policy_timeout_s, partial(search.elsewhere, policy_timeout_s))
    undecided = set(PROMISES) if stuck else set()
    if "determinism" in search.broken:  # two runs differ anyway: it is open whether jumps matter
        undecided.add("jumps")
        search.broken.pop("jumps", None)
    for law in [] if stuck or not simplify else list(search.broken):
        _watched(spec, policy_timeout_s, partial(search.simplify, law))
    findings = []
    for law, promise in PROMISES.items():
        broken = search.broken.get(law)
        if broken is None:
            findings.append(PromiseResult(law, promise, None if law in undecided else True))
        else:
            text = "" if broken.world is None else program(broken.world, spec, law)
            findings.append(PromiseResult(law, promise, False, broken.found, text))
    return PolicyCheck(spec, examples, seed, search.worlds, tuple(findings), search.refusals())


class _StuckError(PolicyError):
    """The policy did not come back: no world can be run any more."""


def _watched(spec: str, timeout_s: float, search: Callable[[], None]) -> bool:
    """Run a search; True when the policy did not come back."""
    try:
        with PolicyWatch(spec, timeout_s):
            search()
    except PolicyError as error:  # `_StuckError`, or what the watch has raised before that was caught
        if not is_late(error):
            raise
        return True
    return False


@contextmanager
def quiet_hypothesis() -> Iterator[None]:
    """Hypothesis leaves no folder behind where the command is run."""
    with tempfile.TemporaryDirectory(prefix="loratory-") as folder:
        set_hypothesis_home_dir(folder)
        try:
            yield
        finally:
            set_hypothesis_home_dir(None)


@dataclass(frozen=True, slots=True)
class _Broken:
    """What shows that a promise is broken, and the world in which it is, if it takes one."""

    law: str
    found: str
    world: World | None

    @property
    def size(self) -> tuple[int, int]:
        return (0, 0) if self.world is None else (len(self.world.workload), len(self.world.adapters))


class _UnknownEvent(NamedTuple):
    """An event of a type that no policy knows."""

    now: float


class _Search:
    """Runs the policy in worlds, and keeps for each promise the smallest world in which it is broken."""

    def __init__(
        self, spec: str, make: Callable[[], PolicyLike], progress: CheckProgress | None, examples: int
    ) -> None:
        self._spec = spec
        self._make = make
        self._progress = progress
        self._edges = edge_worlds()
        self._examples = examples
        self.worlds = 0
        self._ran: list[World] = []
        self.broken: dict[str, _Broken] = {}
        self._refused: Counter[tuple[str, str]] = Counter()

    def refusals(self) -> dict[str, dict[str, int]]:
        """By action, by word, the most frequent first."""
        found: dict[str, dict[str, int]] = {}
        for (action, why), number in self._refused.most_common():
            found.setdefault(action, {})[why] = number
        return found

    def everywhere(self, seed: int) -> None:
        """Run the policy in all edge worlds, then in random ones."""
        self._tell_unknown_event()
        self._ask_bound()
        for world in self._edges.values():
            self._check(world)
        chosen = hypothesis.settings(
            max_examples=self._examples,
            database=None,
            deadline=None,
            phases=[hypothesis.Phase.generate],
            print_blob=False,
            suppress_health_check=list(hypothesis.HealthCheck),
        )

        def drawn(world: World) -> None:
            self._check(world)

        hypothesis.seed(seed)(chosen(hypothesis.given(worlds(most=14))(drawn)))()

    def elsewhere(self, timeout_s: float) -> None:
        """Run the policy in the largest worlds once more, where sets have another order."""
        most = sorted(self._ran, key=lambda world: len(world.workload), reverse=True)[:_ELSEWHERE]
        if difference := other_process(self._spec, self._make, most, timeout_s):
            self.broken["determinism"] = _Broken("determinism", difference, None)

    def simplify(self, law: str) -> None:
        """Look for a plainer world in which a promise is broken."""
        broken = self.broken[law]
        if broken.world is None:
            return
        until = monotonic() + _SIMPLIFY_S
        texts: dict[int, str] = {}

        def fails(world: World) -> bool:
            if monotonic() > until:
                return False
            found = {each.law: each.found for each in self._broken_in(world, law)}
            texts[id(world)] = found.get(law, "")
            return law in found

        world = simplest(broken.world, fails)
        if world is not broken.world:
            self.broken[law] = _Broken(law, texts[id(world)], world)

    def _check(self, world: World) -> None:
        self.worlds += 1
        self._ran.append(world)
        planned = self._examples + len(self._edges)
        if self._progress is not None:
            self._progress(self._spec, min(self.worlds, planned), planned)
        for broken in self._broken_in(world):
            before = self.broken.get(broken.law)
            if before is None or broken.size < before.size:
                self.broken[broken.law] = broken

    def _broken_in(self, world: World, only: str | None = None) -> list[_Broken]:
        """What the policy breaks in a world; with ``only``, no more is run than shows that promise."""
        found: list[_Broken] = []

        def note(law: Callable[..., Any], *arguments: Any) -> None:
            try:
                law(*arguments)
            except BrokenLaw as error:
                found.append(_Broken(error.law, error.found, world))

        def compare(law: str, **options: Any) -> None:
            if only in (None, law):
                note(assert_same, law, checked, run(world, self._make, check_books=False, **options))

        try:
            checked = run(world, self._make)
            if only is None:
                self._refused.update({(a, w): n for a, ws in checked.outcome.refusals.items() for w, n in ws.items()})
            note(assert_run, checked)
            note(assert_serves, checked)
            compare("determinism")
            compare("jumps", jump=False)
            if only in (None, "takes_over") and not found:
                found += self._taking_over(world)
        except BrokenLaw as error:
            found.append(_Broken(error.law, error.found, world))
        except LoratoryError as error:
            found.append(_Broken("returns", str(error), world))
            if is_late(error):
                self.broken["returns"] = found[-1]
                raise _StuckError(str(error)) from error
        return found

    def _taking_over(self, world: World) -> list[_Broken]:
        """The same world with fifo at first, and the policy put in at the second to sixth plan."""
        try:
            result = run(world, self._make, takes_over_at=takes_over_at(world))
            assert_run(result)
            assert_serves(result)
        except BrokenLaw as error:
            return [_Broken("takes_over", error.found, world)]
        except LoratoryError as error:
            if is_late(error):
                raise
            return [_Broken("takes_over", str(error), world)]
        return []

    def _ask_bound(self) -> None:
        """What it promises for an engine and a workload of usual sizes."""
        bound = members_of(self._make(), self._spec).bound
        if bound is None:
            return
        try:
            promised(self._spec, bound, FairnessLimits(1000, 1000, 100_000, 256, 2048))
        except LoratoryError as error:
            self.broken["returns"] = _Broken("returns", str(error), None)
            if is_late(error):
                raise _StuckError(str(error)) from error

    def _tell_unknown_event(self) -> None:
        """A policy that names no event types gets those of later versions, too."""
        members = members_of(self._make(), self._spec)
        if members.observe is None or members.observes is not None:
            return
        try:
            guest(self._spec, "its observe()", members.observe, _UnknownEvent(0.0))
        except LoratoryError as error:
            hint = "look at the event's type first, or name the types wanted in observes"
            self.broken["events"] = _Broken("events", f"{error}: {hint}", None)


def is_late(error: BaseException | None) -> bool:
    """Whether a policy was stopped because it did not come back."""
    while error is not None and not isinstance(error, PolicyTimeout):
        error = error.__cause__
    return error is not None
