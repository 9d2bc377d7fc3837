"""late_notes: what of a cluster comes after the last request, in a sentence each, before anything has run."""

from __future__ import annotations

from loratory.scenarios.cluster_spec import ClusterSpec
from loratory.serving.workload import Workload
from loratory.sim.fleet_options import RollOut
from loratory.sim.order_notes import OrderNotes


def late_notes(cluster: ClusterSpec, roll_outs: tuple[RollOut, ...], workload: Workload) -> list[str]:
    """A note for each kind of event, and each interval, that the run may not last for.

    None where arrivals depend on the run (a closed loop, later turns): only the run itself can tell.
    """
    if workload.concurrency is not None or workload.after is not None or not len(workload):
        return []
    last_s = float(workload.arrival[-1])
    last = f"the last request arrives at {last_s:.4g} s"
    late = OrderNotes()
    events = [(event.at_s, f"{event.kind} {event.replica}") for event in cluster.replica_events]
    events += [(order.at_s, f"the roll-out of {order.new.name}") for order in roll_outs]
    for at_s, what in events:
        if at_s > last_s:
            late.add(f"{what} at {at_s:g} s", f"may not happen, because {last}")
    scale, placement = cluster.autoscale, cluster.placement
    found = late.texts
    for key, every_s in (
        ("autoscale.interval_s", None if scale is None else scale.interval_s),
        ("placement.every_s", None if placement is None else placement.every_s),
    ):
        if every_s is not None and every_s > last_s:
            found.append(f"cluster.{key} is {every_s:g} s, but {last}: the run may be over before")
    return found
