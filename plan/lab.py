"""Lab: runs candidates under common seeds until each is decided, and remembers every run."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from loratory.errors import LoratoryError
from loratory.plan.candidate import Candidate
from loratory.plan.evaluate import Evaluation
from loratory.plan.measure import Measured
from loratory.plan.pools import Pool
from loratory.plan.store import Store, key_of
from loratory.plan.verdict import Judgement, judge
from loratory.reports.slo_target import SloTarget
from loratory.serving.policy_watch import POLICY_TIMEOUT_S

K = TypeVar("K")
R = TypeVar("R")

Progress = Callable[[str, int, int], None]
Search = Generator[Candidate, Judgement, R]
"""A search that asks for one candidate after the other, and returns what it found."""


class BudgetSpentError(LoratoryError):
    """As many requests were simulated as the plan's budget allows."""


@dataclass(slots=True)
class Lab:
    """The place where candidates are tried.

    Every candidate runs with the same seeds (common random numbers), ``first`` of them at first. While an interval
    holds a limit, it gets as many again, up to ``most``. Which runs are made does not depend on the pool, nor on what a
    store knows already. ``most_requests``: a budget of simulated requests, checked before each round.
    """

    pool: Pool
    store: Store
    targets: Sequence[SloTarget]
    seeds: Sequence[int]
    first: int
    most: int
    policy_timeout_s: float = POLICY_TIMEOUT_S
    most_requests: int | None = None
    progress: Progress = lambda what, done, total: None
    runs: int = 0
    requests: int = 0
    cpu_s: float = 0.0
    judged: list[tuple[Candidate, Judgement]] = field(default_factory=list)
    """Every candidate that was judged so far."""
    _asked: int = 0
    _drawn: bool = True
    _seen: dict[str, Measured] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)

    def judge_all(
        self, what: str, candidates: Sequence[Candidate], *, stop_early: bool = True, decide: bool = True
    ) -> list[Judgement]:
        """A judgement of each candidate. ``stop_early``: runs that miss the SLO for certain may be stopped, and then
        have no values. ``decide``: seeds are added while a verdict is open. ``what`` is told to the user meanwhile.

        Raises `BudgetSpentError` when the budget of requests is spent, and what a run raises.
        """
        seeds = {index: min(self.first, self.most) for index in range(len(candidates))}
        found: dict[int, Judgement] = {}
        early = dict.fromkeys(seeds, stop_early and bool(self.targets))
        while seeds:
            if self.spent:
                raise BudgetSpentError(f"plan.budget.requests ({self.most_requests:,}) is spent")
            asked = [
                (index, self._evaluation(candidates[index], seed, early[index]))
                for index, count in seeds.items()
                for seed in self.seeds[: count if self._drawn else 1]
            ]
            measured = self._measure(what, [each for _, each in asked])
            runs: dict[int, list[Measured]] = {index: [] for index in seeds}
            for (index, _), result in zip(asked, measured, strict=True):
                runs[index].append(result)
            self._look_for_chance(runs.values())
            following: dict[int, int] = {}
            for index, found_runs in runs.items():
                each = found_runs if self._drawn else found_runs[:1]
                some = [run.stopped for run in each]
                if any(some) and not all(some):
                    early[index] = False
                    following[index] = seeds[index]
                    continue
                found[index] = judge(each, self.targets)
                if decide and self._drawn and found[index].verdict == "too_close" and seeds[index] < self.most:
                    following[index] = min(self.most, 2 * seeds[index])
            seeds = following
        self.judged += [(candidates[index], found[index]) for index in range(len(candidates))]
        return [found[index] for index in range(len(candidates))]

    def judge_with(self, what: str, candidates: Sequence[Candidate], seeds: int) -> list[Judgement]:
        """A judgement of each candidate from exactly so many seeds, none of them stopped."""
        asked = [self._evaluation(each, seed, False) for each in candidates for seed in self.seeds[:seeds]]
        measured = self._measure(what, asked)
        return [judge(measured[i * seeds : (i + 1) * seeds], self.targets) for i in range(len(candidates))]

    def drive(self, what: str, searches: Mapping[K, Search[R]], *, stop_early: bool = True) -> dict[K, R]:
        """Run searches side by side: what they ask for is judged together, round by round; returns what each found."""
        results: dict[K, R] = {}
        waiting: dict[K, Candidate] = {}
        for key, search in searches.items():
            self._advance(key, search, None, waiting, results)
        while waiting:
            asking = list(waiting)
            judgements = self.judge_all(what, [waiting[key] for key in asking], stop_early=stop_early)
            waiting = {}
            for key, judgement in zip(asking, judgements, strict=True):
                self._advance(key, searches[key], judgement, waiting, results)
        return {key: results[key] for key in searches}

    @staticmethod
    def _advance(
        key: K, search: Search[R], judgement: Judgement | None, waiting: dict[K, Candidate], results: dict[K, R]
    ) -> None:
        try:
            waiting[key] = next(search) if judgement is None else search.send(judgement)
        except StopIteration as end:
            results[key] = end.value

    def _evaluation(self, candidate: Candidate, seed: int, stop_early: bool) -> Evaluation:
        return Evaluation(candidate.scenario, candidate.policy, seed, stop_early, self.policy_timeout_s)

    def _measure(self, what: str, asked: Sequence[Evaluation]) -> list[Measured]:
        """The result of each run: known, or simulated now; equal runs are simulated once."""
        keys = [key_of(each) for each in asked]
        missing: dict[str, Evaluation] = {}
        for key, each in zip(keys, asked, strict=True):
            if key not in self._seen and key not in missing:
                known = self.store.get(each)
                if known is None or not self._fits(known):
                    missing[key] = each
                else:
                    self._count(key, known)
        self._asked = self.runs + len(missing)
        new = list(missing.items())
        for place, result in self.pool.results([each for _, each in new]):
            key, each = new[place]
            self.store.put(each, result)
            self._count(key, result)
            self.progress(what, self.runs, self._asked)
        return [self._seen[key] for key in keys]

    def _fits(self, known: Measured) -> bool:
        """Whether a kept result tells of this plan's targets, as those that this program wrote do."""
        names = {target.name for target in self.targets}
        return set(known.missed) <= names if known.stopped else names <= set(known.values)

    def _count(self, key: str, result: Measured) -> None:
        self._seen[key] = result
        self.runs += 1
        self.requests += result.requests
        self.cpu_s += result.cpu_s

    def _look_for_chance(self, runs: Iterable[Sequence[Measured]]) -> None:
        """Whether seeds differ at all: in a trace in which nothing is drawn they do not, and one seed is enough."""
        several = [[run.values for run in each] for each in runs if len(each) > 1 and not any(r.stopped for r in each)]
        if self._drawn and several and all(values == each[0] for each in several for values in each):
            self._drawn = False

    @property
    def spent(self) -> bool:
        """Whether as many requests were simulated as the budget allows."""
        return self.most_requests is not None and self.requests >= self.most_requests

    @property
    def facts(self) -> dict[str, Any]:
        """How much was done for candidates, for plan.json."""
        return {"runs": self.runs, "requests_simulated": self.requests, "cpu_s": round(self.cpu_s, 2)}
