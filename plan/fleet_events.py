"""fleet_events: replicas that fail, versions that roll out: which fleets of a plan have them, and if they happen."""

from __future__ import annotations

from collections.abc import Sequence

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
    """Raises `InputError` for an event after the last arrival, which a plan would not have tried, and for a roll-out
    that would then go on: its last step for its last adapter counts.

    Where arrivals depend on the run (a closed loop, later turns), `refuse_missed` looks when it is over.
    """
    if workload.concurrency is None and workload.after is None and len(workload):
        why = f"the last request arrives at {{}} s (seed {seed})"
        _refuse(scenario, workload.adapters, float(workload.arrival[-1]), why)


def refuse_missed(scenario: Scenario, workload: Workload, duration_s: float) -> None:
    """Raises `InputError` for an event that did not happen, or not to its end, because a run ended before."""
    _refuse(scenario, workload.adapters, duration_s, "a run was over at {} s")


def _refuse(scenario: Scenario, adapters: Sequence[str], last_s: float, why: str) -> None:
    for event in scenario.cluster.events or ():
        but = f"but {why.format(f'{last_s:.4g}')}: make the workload longer, or"
        if event.at_s > last_s:
            raise InputError(f"cluster.events: {_what(event)} is at {event.at_s:g} s, {but} the event earlier")
        if event.roll_out is None:
            continue
        chosen = len(event.roll_out.chosen(adapters))
        end_s = event.at_s + (chosen - 1) * event.roll_out.apart_s + event.roll_out.moving_s
        if end_s > last_s:
            of = f" of {chosen:,} adapters" if chosen > 1 else ""
            raise InputError(
                f"cluster.events: the roll_out{of} at {event.at_s:g} s ends at {end_s:g} s at the earliest, {but} the "
                "roll-out shorter or earlier"
            )
