"""shadow_report: how often a candidate chose otherwise than the live policy, for whom, and what that would mean."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loratory.errors import InputError, LoratoryError, shortened
from loratory.experiment.run import run_scenario
from loratory.reports.compare import Comparison, compare
from loratory.reports.folder import SUMMARY
from loratory.reports.summary import to_json
from loratory.scenarios.load import dump, load_scenario
from loratory.server.recording_folder import PROFILE, SCENARIO, SHADOW, parts
from loratory.sim.cost.profile import ProfileCost, load_profile

ACTIONS = ("admit", "load", "evict", "preempt", "reject", "prefetch")


@dataclass(frozen=True, slots=True)
class Moments:
    """Of the moments at which one policy or both did something of a kind: at how many it was the same, and not."""

    same: int = 0
    different: int = 0


@dataclass(frozen=True, slots=True)
class TurnCounts:
    """Requests of one adapter or tenant that the candidate would have admitted earlier than the live policy, or later;
    ``name`` is None for the base model."""

    name: str | None
    earlier: int
    later: int


@dataclass(frozen=True, slots=True)
class LiveCounts:
    """The counts of a `ShadowReport`, of the moments at which one live policy was asked."""

    policy: str
    compared: int
    same: int
    left_out: Mapping[str, int]

    @property
    def asked(self) -> int:
        """Moments at which it was asked."""
        return self.compared + sum(self.left_out.values())


@dataclass(frozen=True, slots=True)
class ShadowReport:
    """What shadow.jsonl tells of the last candidate in it. ``began_s``, ``ended_s``: seconds of the server's clock.

    ``live``: the policies in force, in order. ``asked``: moments at which the live policy was asked, those ``left_out``
    (by reason) included; ``compared``: at which the candidate was, too; ``same``: at which both did the same;
    ``by_live``: the same counts by live policy, each once. ``actions``: of these, by action. ``first``: whether the
    first admission was the same. ``ended``: why the candidate ended, empty where that was ordered.
    ``earlier_candidates``: candidates before it in the same file.
    """

    live: tuple[str, ...]
    shadow: str
    began_s: float
    ended_s: float
    compared: int
    same: int
    left_out: Mapping[str, int]
    by_live: tuple[LiveCounts, ...]
    actions: Mapping[str, Moments]
    first: Moments
    earlier: int
    later: int
    adapters: tuple[TurnCounts, ...]
    tenants: tuple[TurnCounts, ...]
    ended: str | None
    earlier_candidates: int

    @property
    def asked(self) -> int:
        """Moments at which the live policy was asked."""
        return self.compared + sum(self.left_out.values())

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**asdict(self), "asked": self.asked}


@dataclass
class _Seen:
    """What has been read so far of one candidate."""

    shadow: str
    live: list[str]
    before: int
    times: list[float] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=lambda: {"compared": 0, "same": 0, "left_out": {}})
    at_swaps: list[dict[str, Any]] = field(default_factory=list)
    """The counts when each policy of ``live`` but the first was put in."""
    same: Counter[str] = field(default_factory=Counter)
    different: Counter[str] = field(default_factory=Counter)
    turns: dict[str, str] = field(default_factory=dict)
    """Whether a request would have been admitted "earlier" or "later", as first seen."""
    of: dict[str, tuple[str | None, str]] = field(default_factory=dict)
    ended: str | None = None


def shadow_report(folder: Path) -> ShadowReport:
    """Read the log of a recording's folder. Raises `InputError` where there is none, or it is broken."""
    found = parts(folder, SHADOW)
    if not found:
        raise InputError(
            f"{shortened(str(folder), 150)} has no shadow.jsonl: give the --record folder of a server that had a shadow"
        )
    seen: _Seen | None = None
    for path in found:
        for number, line in _lines(path):
            try:
                said = json.loads(line)
                if "shadow" in said and "t" not in said:
                    before = 0 if seen is None else seen.before + 1
                    seen = _Seen(str(said["shadow"]), [str(said["live"])], before)
                elif seen is not None:
                    _take(seen, said)
                else:
                    raise ValueError
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise InputError(f"{path}, line {number} is of no shadow: give what loratory serve wrote") from error
    if seen is None:
        raise InputError(f"{shortened(str(folder), 150)}: shadow.jsonl is empty: no shadow has run yet")
    return _report(seen)


def _lines(path: Path) -> Iterable[tuple[int, str]]:
    """The lines of a file with their numbers, without a last one that is cut short."""
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.endswith("\n"):
                    yield number, line
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise InputError(f"{path} cannot be read ({reason}): give what loratory serve wrote") from error


def _take(seen: _Seen, said: Mapping[str, Any]) -> None:
    """One line."""
    seen.times.append(float(said["t"]))
    if "compared" in said:
        seen.counts = dict(said)
    elif "live_now" in said:
        seen.live.append(str(said["live_now"]))
        seen.at_swaps.append(seen.counts)
    elif "ended" in said:
        seen.ended = str(said["ended"])
    elif "both" in said:
        for action, names in said["both"].items():
            if names:
                seen.same[action] += 1
        seen.same["first"] += bool(said["both"].get("admit"))
    else:
        _differ(seen, said)


def _differ(seen: _Seen, said: Mapping[str, Any]) -> None:
    live, shadow = said["live"], said["shadow"]
    seen.of.update({request_id: (adapter, tenant) for request_id, (adapter, tenant) in said["of"].items()})
    for action in {*live, *shadow}:
        one, two = live.get(action, []), shadow.get(action, [])
        (seen.same if one == two else seen.different)[action] += 1
    mine, other = live.get("admit", []), shadow.get("admit", [])
    if mine or other:
        (seen.same if mine[:1] == other[:1] else seen.different)["first"] += 1
    for request_id in other:
        if request_id not in mine:
            seen.turns.setdefault(request_id, "earlier")
    for request_id in mine:
        if request_id not in other:
            seen.turns.setdefault(request_id, "later")


def _report(seen: _Seen) -> ShadowReport:
    by_live = _by_live(seen)
    kinds = [action for action in ACTIONS if seen.same[action] or seen.different[action]]
    turns = Counter(seen.turns.values())
    return ShadowReport(
        live=tuple(seen.live),
        shadow=seen.shadow,
        began_s=min(seen.times, default=0.0),
        ended_s=max(seen.times, default=0.0),
        compared=sum(each.compared for each in by_live),
        same=sum(each.same for each in by_live),
        left_out={str(why): int(number) for why, number in seen.counts["left_out"].items()},
        by_live=by_live,
        actions={action: Moments(seen.same[action], seen.different[action]) for action in kinds},
        first=Moments(seen.same["first"], seen.different["first"]),
        earlier=turns["earlier"],
        later=turns["later"],
        adapters=_turns(seen, 0),
        tenants=_turns(seen, 1),
        ended=seen.ended,
        earlier_candidates=seen.before,
    )


def _by_live(seen: _Seen) -> tuple[LiveCounts, ...]:
    """The counts by live policy, in the order in which each was first in force."""
    found: dict[str, Counter[str]] = {}
    before: Counter[str] = Counter()
    for policy, counts in zip(seen.live, [*seen.at_swaps, seen.counts], strict=True):
        now = Counter({"compared": int(counts["compared"]), "same": int(counts["same"])})
        now.update({f"left out: {why}": int(number) for why, number in counts["left_out"].items()})
        found.setdefault(policy, Counter()).update(now - before)
        before = now
    return tuple(
        LiveCounts(
            policy,
            counted["compared"],
            counted["same"],
            {word.removeprefix("left out: "): number for word, number in counted.items() if ": " in word},
        )
        for policy, counted in found.items()
    )


def _turns(seen: _Seen, place: int) -> tuple[TurnCounts, ...]:
    """By adapter (0) or tenant (1), those with the most requests first."""
    counted: dict[str | None, Counter[str]] = {}
    for request_id, turn in seen.turns.items():
        counted.setdefault(seen.of.get(request_id, (None, ""))[place], Counter())[turn] += 1
    order = sorted(counted.items(), key=lambda item: (-item[1].total(), item[0] is None, item[0] or ""))
    return tuple(TurnCounts(name, found["earlier"], found["later"]) for name, found in order)


def doubts(folder: Path) -> list[str]:
    """What speaks against the seconds that are simulated: those of a profile that was assumed, or is a bad one."""
    profile = load_profile(folder / PROFILE)
    if profile.name == "assumed":
        return [
            "the server measured nothing and assumed the times of steps and loads, so only choices can be compared: "
            "measure with loratory profile, and serve with --profile"
        ]
    return ProfileCost(profile).warnings


def simulated(folder: Path, report: ShadowReport, overrides: Sequence[str] = ()) -> Comparison:
    """The recorded traffic under the live policy and under the candidate, both simulated.

    ``overrides``: settings of the scenario, such as ``workload.window=[0, 600]``. Raises `InputError` where the folder
    has no scenario or no requests, and `PolicyError` where a policy fails.
    """
    if not (folder / SCENARIO).exists():
        raise InputError(f"{shortened(str(folder), 150)} has no scenario.yaml: the server's log says why")
    with tempfile.TemporaryDirectory(prefix="loratory-shadow-") as scratch:
        results = []
        for name, policy in (("live", report.live[-1]), ("shadow", report.shadow)):
            scenario = load_scenario(folder / SCENARIO, overrides, [policy], unbounded=True)
            summary = run_scenario(scenario, source=str(folder / SCENARIO))
            place = Path(scratch) / name
            place.mkdir()
            (place / SUMMARY).write_text(to_json(summary), encoding="utf-8")
            (place / SCENARIO).write_text(dump(scenario), encoding="utf-8")
            results.append(place)
        return compare(results)


def why_not_simulated(error: LoratoryError) -> str:
    """What is said in place of a simulation."""
    return f"what it would have meant is not simulated: {error}"
