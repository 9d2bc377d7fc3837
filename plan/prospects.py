"""prospects: which combinations of a plan have a chance, before anything is simulated."""

from __future__ import annotations

from collections.abc import Sequence

from loratory.errors import InputError
from loratory.plan.bounds import Bound, hopeless
from loratory.plan.candidate import REPLICAS, Candidate
from loratory.plan.evaluate import built_of, workload_of
from loratory.plan.outcome import Discarded
from loratory.plan.space import Base, Refused, Settings
from loratory.reports.number_text import plural
from loratory.scenarios.plan_spec import PlanSpec


class Prospects:
    """Resolves candidates, and applies the bounds to them. ``discard`` false: only what cannot run is refused."""

    def __init__(self, base: Base, seeds: Sequence[int], discard: bool = True) -> None:
        self._base = base
        self._seeds = seeds
        self._discard = discard

    def check(self, settings: Settings) -> tuple[Candidate | None, Discarded | None, Bound | None]:
        """The candidate, or why there is none; with the bound that discards it, if one does."""
        candidate = self._base.candidate(settings)
        if why := beyond_budget(candidate, self._base.scenario.plan):
            return None, Discarded(settings, candidate.label, "budget", why), None
        try:
            built = built_of(candidate.scenario)
        except InputError as error:
            text = str(error)
            by = "memory" if "GiB" in text or "does not fit" in text else "settings"
            return None, Discarded(settings, candidate.label, by, text), None  # type: ignore[arg-type]
        if not self._discard or not candidate.scenario.slo.given:
            return candidate, None, None
        workloads = [workload_of(candidate.scenario, seed, built) for seed in self._seeds]
        bound = hopeless(candidate.scenario, built, workloads)
        if bound is None:
            return candidate, None, None
        return None, Discarded(settings, candidate.label, bound.by, bound.reason), bound

    def fewest(self, settings: Settings, replicas: Sequence[int]) -> tuple[int | None, list[Discarded], Bound | None]:
        """The place in ``replicas`` of the first number with a chance; None if none has one, with the last bound.

        Bounds that more replicas help with fall as they rise, so the search bisects.
        """
        low, high = 0, len(replicas)
        found: dict[int, tuple[Discarded, Bound | None]] = {}
        while low < high:
            middle = (low + high) // 2 if found else 0
            _, refused, bound = self.check({**settings, REPLICAS: replicas[middle]})
            if refused is None:
                high = middle
                continue
            found[middle] = (refused, bound)
            if bound is None or not bound.replicas_help:
                return None, [refused], bound
            low = middle + 1
        discarded = [refused for _, (refused, _) in sorted(found.items())][-1:]
        last = found[max(found)][1] if found else None
        return (low if low < len(replicas) else None), discarded, last


def beyond_budget(candidate: Candidate, spec: PlanSpec) -> str:
    """Why a fleet has more GPUs, or a higher price, than the plan's budget allows; empty where it has not."""
    price, most = candidate.price_per_hour(spec.prices), spec.budget.price_per_hour
    if price is not None and most is not None and price > most * (1 + 1e-9):
        return f"{candidate.label} costs {price:,.2f} an hour, above plan.budget.price_per_hour ({most:,.2f})"
    if spec.budget.gpus is not None and candidate.gpus > spec.budget.gpus:
        return f"{candidate.label} has {plural(candidate.gpus, 'GPU')}, above plan.budget.gpus ({spec.budget.gpus})"
    return ""


def discarded_of(refused: Sequence[Refused]) -> list[Discarded]:
    """What the schema refused, as discarded candidates."""
    return [Discarded(each.settings, each.label, "settings", each.why) for each in refused]
