"""placement_notes: a placement that decides from requests that are still to come, in a sentence, for the report."""

from __future__ import annotations

from loratory.experiment.placement_spec import ALL
from loratory.scenarios.schema import Scenario


def placement_notes(scenario: Scenario) -> list[str]:
    """At most one sentence on ``cluster.placement``; none where it decides again in the course of the traffic."""
    placement, span = scenario.cluster.placement, scenario.workload.duration_s
    if placement is None or placement.name == ALL or scenario.cluster.most_replicas == 1:
        return []
    if placement.every_s is not None and (span is None or placement.every_s < span):
        return []
    such = 60.0 if span is None else span / 10
    why = "without every_s" if placement.every_s is None else f"with an every_s ({placement.every_s:g}) beyond the run"
    return [
        f"the placement {placement.name} knows what is to come: {why} it decides from what the whole workload asks "
        f"for, which no operator has; an every_s within it, such as {{name: {placement.name}, every_s: {such:.3g}}}, "
        "has it decide again from what arrived"
    ]
