"""fleet_events: replicas that fail, versions that roll out: which fleets of a plan have them, and if they happen."""

from __future__ import annotations

from loratory.errors import InputError
from loratory.scenarios.fleet_spec import FleetEventSpec
from loratory.scenarios.schema import Scenario
from loratory.serving.workload import Workload


def fewest_replicas(scenario: Scenario) -> int:
    """So many replicas a fleet needs for every event of the scenario to be of one that it has."""
    return 1 + max((event.replica for event in scenario.cluster.replica_events), default=0)


def events_words(scenario: Scenario) -> str:
    """``fail 0 at 30 s, recover 0 at 60 s``; empty without events, and shortened where there are many."""
    events = sorted(scenario.cluster.events or (), key=lambda event: event.at_s)
    words = [f"{_what(event)} at {event.at_s:g} s" for event in events]
    return ", ".join(words if len(words) <= 4 else [*words[:3], f"and {len(words) - 3} more"])


def _what(event: FleetEventSpec) -> str:
    return f"{event.kind} {event.replica}" if event.roll_out is None else "roll_out"


def too_few(scenario: Scenario, replicas: int) -> str:
    """Why a fleet of so many replicas cannot have the scenario's events; empty where it can."""
    fewest = fewest_replicas(scenario)
    if replicas >= fewest:
        return ""
    return f"cluster.events has replica {fewest - 1}, so that a fleet needs {fewest} replicas at least"


def refuse_late(scenario: Scenario, workload: Workload, seed: int) -> None:
    """Raises `InputError` for an event after the last arrival, which a plan would not have tried.

    Where arrivals depend on the run (a closed loop, later turns), `refuse_missed` looks when it is over.
    """
    if workload.concurrency is None and workload.after is None and len(workload):
        _refuse(scenario, float(workload.arrival[-1]), f"the last request arrives at {{}} s (seed {seed})")


def refuse_missed(scenario: Scenario, duration_s: float) -> None:
    """Raises `InputError` for an event that did not happen, because a run ended before."""
    _refuse(scenario, duration_s, "a run was over at {} s")


def _refuse(scenario: Scenario, last_s: float, why: str) -> None:
    for event in scenario.cluster.events or ():
        if event.at_s > last_s:
            raise InputError(
                f"cluster.events: {_what(event)} is at {event.at_s:g} s, but "
                f"{why.format(f'{last_s:.4g}')}: make the workload longer, or the event earlier"
            )
