"""router_notes: keys of the cluster section that have no effect, in a sentence each, for the report."""

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
