"""Fleets made by hand, to ask a router about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from loratory.serving.lora import Adapter
from loratory.serving.request import Request
from loratory.sim.fleet import AWAY, GPU, HOST, LOADING, Fleet, Report
from loratory.sim.gateway import Gateway
from loratory.sim.router import Router
from loratory.testing import ToyCost, adapter

TIERS = {"gpu": GPU, "loading": LOADING, "host": HOST, "disk": AWAY}


class HandMade:
    """A router behind a gateway, with a fleet that the test sets. Requests are sent by `send` and end by `end`."""

    def __init__(self, router: Router, replicas: int, max_loras: int = 4, adapters: int = 700, **late: Any) -> None:
        self.adapters: dict[str, Adapter] = {f"a{n}": adapter(n) for n in range(1, adapters + 1)}
        costs = [ToyCost()] * replicas
        self.fleet = Fleet([max_loras] * replicas, costs, self.adapters.__getitem__)
        self.gateway = Gateway(router, self.fleet, **late)
        self.sent = 0

    def send(self, adapter: str | None = "a1", now: float = 0.0, **options: Any) -> int:
        """Where a request goes."""
        self.sent += 1
        fields: dict[str, Any] = {"prompt_tokens": 4, "max_tokens": 8, **options}
        return self.gateway.route(Request(str(self.sent), adapter, now, **fields), now)

    def end(self, place: int, count: int = 1) -> None:
        """Requests of a replica have ended."""
        self.gateway.ended(place, count)

    def report(self, place: int, **values: Any) -> None:
        """What a replica reports: fields of `Report` that differ from those of an idle one."""
        idle = Report(0, 0, int(self.fleet.max_loras[place]), 0, 0.0)
        self.gateway._apply(place, idle._replace(**values))

    def put(self, adapter: str, tiers: Sequence[str]) -> None:
        """Where an adapter is: its tier on each replica."""
        for place, tier in enumerate(tiers):
            self.gateway._move(place, adapter, TIERS[tier])

    def load(self, in_flight: Sequence[int]) -> None:
        """So many requests are in flight."""
        self.fleet._counts[0] = np.array(in_flight)
