"""router_notes, fleet_notes: keys of the cluster section that have no effect, in a sentence each, for the report."""

from __future__ import annotations

from collections.abc import Sequence

from loratory.scenarios.cluster_spec import ClusterSpec

METRICS = ("metrics_delay_s", "metrics_interval_s")
"""Keys on how old the reports of replicas are."""


def router_notes(
    cluster: ClusterSpec, reads_reports: bool = True, among: Sequence[str] = ("router", *METRICS)
) -> list[str]:
    """A note for each key ``among`` these that is not its default and changes nothing.

    With one replica there is no router. ``reads_reports``: whether the router looks at what replicas report.
    """
    keys = [key for key in among if getattr(cluster, key) != ClusterSpec.model_fields[key].default]
    if cluster.most_replicas == 1:
        why = "as there is one replica"
    elif not reads_reports:
        keys = [key for key in keys if key in METRICS]
        why = f"as {cluster.router} does not look at what replicas report"
    else:
        keys = []
    return [f"cluster.{key} ({getattr(cluster, key)}) has no effect, {why}" for key in keys]


def fleet_notes(cluster: ClusterSpec) -> list[str]:
    """A note for each key about the lives of replicas, or the homes of adapters, that is given and changes nothing.

    They are not refused, as ``--set``, a sweep or a plan may take away what they need.
    """
    found = []
    for key, kind in (("on_failure", "fail"), ("startup_s", "recover")):
        given = getattr(cluster, key) != ClusterSpec.model_fields[key].default
        if given and not any(getattr(event, kind) is not None for event in cluster.events or ()):
            found.append(f"cluster.{key} ({getattr(cluster, key)}) has no effect, as cluster.events has no {kind}")
    scale, placement = cluster.autoscale, cluster.placement
    comes_back = any(event.drain is not None for event in cluster.events or ())
    if scale is not None and scale.least == scale.most and not comes_back:
        found.append(f"cluster.autoscale has no effect, as its least and its most are both {scale.most}")
    if placement is not None and placement.homes is not None and 1 < cluster.most_replicas <= placement.homes:
        given = f"cluster.placement.homes ({placement.homes})"
        found.append(f"{given} has no effect, as there are {cluster.most_replicas} replicas at most")
    return found
