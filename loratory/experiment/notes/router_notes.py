"""router_notes: keys of the cluster section that have no effect, in a sentence each, for the report."""

from __future__ import annotations

from loratory.scenarios.cluster_spec import ClusterSpec

_METRICS = ("metrics_delay_s", "metrics_interval_s")


def router_notes(cluster: ClusterSpec, reads_reports: bool = True) -> list[str]:
    """A note for each key that is not its default and changes nothing.

    With one replica there is no router. ``reads_reports``: whether the router looks at what replicas report.
    """
    keys = [key for key in ("router", *_METRICS) if getattr(cluster, key) != ClusterSpec.model_fields[key].default]
    if cluster.most_replicas == 1:
        why = "as there is one replica"
    elif not reads_reports:
        keys = [key for key in keys if key in _METRICS]
        why = f"as {cluster.router} does not look at what replicas report"
    else:
        keys = []
    return [f"cluster.{key} ({getattr(cluster, key)}) has no effect, {why}" for key in keys]
