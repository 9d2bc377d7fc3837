"""Candidate: one combination of settings that a plan may choose, and what it costs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loratory.scenarios.schema import Scenario

GPU, POLICY, REPLICAS, ROUTER = "gpu", "policy", "cluster.replicas", "cluster.router"
"""Keys of a candidate's settings that are more than numbers of the engine."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A scenario under one policy. ``settings``: what was chosen, by key of the scenario, in the order to show it.

    ``load`` is the factor on the scenario's traffic or adapters at which it is run.
    """

    settings: tuple[tuple[str, Any], ...]
    scenario: Scenario
    policy: str
    load: float = 1.0

    @property
    def replicas(self) -> int:
        """Engines, each on its own GPUs."""
        return self.scenario.cluster.replicas

    @property
    def gpus(self) -> int:
        """GPUs of all replicas."""
        return self.replicas * self.scenario.engine.tensor_parallel_size

    @property
    def chosen(self) -> dict[str, Any]:
        """The settings, by key."""
        return dict(self.settings)

    @property
    def label(self) -> str:
        """``2 x h100-80gb, max_loras 32, affine_deficit``."""
        chosen = self.chosen
        hardware = f"{self.replicas} x {self.scenario.gpu}"
        if (degree := self.scenario.engine.tensor_parallel_size) > 1:
            hardware += f" (tensor parallel {degree})"
        return ", ".join([hardware, *words_of(chosen, self.replicas)])

    def price_per_hour(self, prices: Mapping[str, float] | None) -> float | None:
        """What its GPUs cost in an hour; None without a price."""
        price = (prices or {}).get(self.scenario.gpu)
        return None if price is None else price * self.gpus


def words_of(chosen: Mapping[str, Any], replicas: int) -> list[str]:
    """Settings in words, without the hardware: ``["max_loras 32", "fifo"]``. One replica needs no router."""
    words = []
    for key, value in chosen.items():
        if key in (GPU, REPLICAS, "engine.tensor_parallel_size") or (key == ROUTER and replicas == 1):
            continue
        text = value if isinstance(value, str) else json.dumps(value)
        words.append(text if key in (POLICY, ROUTER) else f"{key.removeprefix('engine.')} {text}")
    return words
