"""FleetOptions: what happens to a fleet in the course of a run: failures, drains, autoscaling, new adapter versions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from loratory.serving.lora import Adapter
from loratory.sim.placement import PlacementOptions


@dataclass(frozen=True, slots=True)
class FleetEvent:
    """At second ``at_s`` a replica fails, recovers from that, or is drained: it takes no new request from then on, and
    goes when its last one has ended."""

    at_s: float
    kind: Literal["fail", "recover", "drain"]
    replica: int


@dataclass(frozen=True, slots=True)
class AutoscaleOptions:
    """How many replicas there are, from ``least`` to ``most``, asked every ``interval_s`` seconds.

    ``by``: "queue", ``target`` requests in flight a replica; or "attainment", the share ``target`` of the requests that
    ended since the last time got their first token within ``ttft_s`` seconds. A replica that starts takes ``startup_s``
    seconds, then loads the ``warm_adapters`` that were asked for most, and then opens. A replica goes when fewer have
    been enough for ``scale_down_after_s``. See `loratory.sim.autoscaler`.
    """

    least: int
    most: int
    by: Literal["queue", "attainment"]
    target: float
    interval_s: float = 15.0
    startup_s: float = 60.0
    warm_adapters: int = 0
    scale_down_after_s: float = 300.0
    ttft_s: float = 0.0


@dataclass(frozen=True, slots=True)
class RollOut:
    """At second ``at_s`` requests for ``adapter`` begin to move from its version ``old`` to ``new``.

    ``shares`` of the new requests go to the new version, each for ``every_s`` seconds; they increase, and the last is
    1. Instead, with ``over_s``, the share grows evenly for so many seconds. ``preload``: before that, every open
    replica copies the new version to host memory. ``pinned``: where a replica forgets the old version, the new one is
    pinned.
    """

    at_s: float
    adapter: str
    old: Adapter
    new: Adapter
    shares: tuple[float, ...] = (1.0,)
    every_s: float = 0.0
    over_s: float = 0.0
    preload: bool = False
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """``events`` in order of time; requests in flight on a replica that fails are sent again (``resend``) or fail; a
    replica that recovers opens ``startup_s`` seconds later. ``roll_outs`` in order of time: adapters get new versions.
    """

    events: tuple[FleetEvent, ...] = ()
    resend: bool = True
    startup_s: float = 0.0
    autoscale: AutoscaleOptions | None = None
    placement: PlacementOptions | None = None
    roll_outs: tuple[RollOut, ...] = ()
