"""fleet_options: what happens to the replicas of a scenario's cluster, as the simulator takes it."""

from __future__ import annotations

from dataclasses import replace

from loratory.experiment.notes.decode_ceiling import ceiling
from loratory.experiment.placement_spec import placement_options
from loratory.experiment.resolve import Built
from loratory.scenarios.cluster_spec import of_each
from loratory.scenarios.schema import Scenario
from loratory.serving.workload import Workload
from loratory.sim.fleet_options import AutoscaleOptions, FleetEvent, FleetOptions


def fleet_options(scenario: Scenario, built: Built, workload: Workload) -> FleetOptions | None:
    """None where nothing happens to replicas or adapters, and each adapter may be served anywhere."""
    cluster = scenario.cluster
    placement = None
    if cluster.placement is not None:
        each = [ceiling(replace(built, engine=k.engine, cost=k.cost), workload) for k in built.kinds]
        tokens_per_s = [one * k.engine.tensor_parallel_size for one, k in zip(each, built.kinds, strict=True)]
        placement = placement_options(cluster.placement, workload, of_each(cluster, tokens_per_s))
    if not cluster.changes and placement is None:
        return None
    events = [FleetEvent(each.at_s, each.kind, each.replica) for each in cluster.replica_events]
    return FleetOptions(
        tuple(sorted(events, key=lambda event: event.at_s)),
        cluster.on_failure == "resend",
        cluster.startup_s,
        _autoscale(scenario),
        placement,
        built.roll_outs,
    )


def _autoscale(scenario: Scenario) -> AutoscaleOptions | None:
    spec = scenario.cluster.autoscale
    if spec is None:
        return None
    limit = scenario.slo.ttft_limit if spec.by == "attainment" else None
    return AutoscaleOptions(
        spec.least,
        spec.most,
        spec.by,
        spec.target,
        spec.interval_s,
        spec.startup_s,
        spec.warm_adapters,
        spec.scale_down_after_s,
        limit or 0.0,
    )
