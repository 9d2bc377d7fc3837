"""prepare: what all runs of a scenario share, made once: its fixed parts, and its policy specs parsed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from loratory.experiment.notes.placement_notes import placement_notes
from loratory.experiment.notes.router_notes import fleet_notes, router_notes
from loratory.experiment.placement_spec import placement_factory
from loratory.experiment.policy_spec import PolicyFactory, policy_factory
from loratory.experiment.resolve import Built, build
from loratory.experiment.router_spec import RouterFactory, router_factory
from loratory.scenarios.schema import Scenario
from loratory.serving.policy_watch import POLICY_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class Prepared:
    """A scenario that can run. ``policies`` has the factory of each policy spec of the scenario, ``router`` is that of
    its router."""

    scenario: Scenario
    built: Built
    policies: Mapping[str, PolicyFactory]
    router: RouterFactory
    policy_timeout_s: float = POLICY_TIMEOUT_S


def prepare(
    scenario: Scenario,
    policy_timeout_s: float = POLICY_TIMEOUT_S,
    source: str | None = None,
    parsed: Mapping[str, PolicyFactory] | None = None,
) -> Prepared:
    """Build the scenario, parse its policies, and check its router.

    ``source`` names the scenario's file in errors; ``parsed`` has policies that need not be parsed again. Raises
    `InputError` for a scenario that cannot run, and `PolicyError` for a policy or router that exits, or takes longer
    than ``policy_timeout_s``, while it is imported or made.
    """
    built = build(scenario, source)
    known = parsed or {}
    policies = {spec: known.get(spec) or policy_factory(spec, policy_timeout_s) for spec in scenario.policies}
    if scenario.cluster.placement is not None:
        placement_factory(scenario.cluster.placement.name)
    router = router_factory(scenario.cluster.router, policy_timeout_s)
    cluster = scenario.cluster
    notes = [*router_notes(cluster, router.reads_reports), *fleet_notes(cluster), *placement_notes(scenario)]
    built = replace(built, notes=(*built.notes, *notes))
    return Prepared(scenario, built, policies, router, policy_timeout_s)
