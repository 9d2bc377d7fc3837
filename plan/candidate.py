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
        return self.scenario.cluster.count

    @property
    def gpus(self) -> int:
        """GPUs of all replicas."""
        return sum(count * width for _, count, width in self.scenario.hardware)

    @property
    def gpu(self) -> str:
        """``h100-80gb``, or of a fleet of several kinds ``h100-80gb + a100-80gb``."""
        return " + ".join(dict.fromkeys(name for name, _, _ in self.scenario.hardware))

    @property
    def mixed(self) -> bool:
        """Whether its replicas are of several kinds."""
        return len(self.scenario.cluster.groups) > 1

    @property
    def chosen(self) -> dict[str, Any]:
        """The settings, by key."""
        return dict(self.settings)

    @property
    def label(self) -> str:
        """``2 x h100-80gb, max_loras 32, affine_deficit``."""
        chosen = self.chosen
        return ", ".join([hardware_words(self.scenario), *words_of(chosen, self.replicas)])

    def price_per_hour(self, prices: Mapping[str, float] | None) -> float | None:
        """What its GPUs cost in an hour; None without a price."""
        known, total = prices or {}, 0.0
        for name, count, width in self.scenario.hardware:
            if name not in known:
                return None
            total += known[name] * (count * width)
        return total


def hardware_words(scenario: Scenario) -> str:
    """``2 x h100-80gb + 1 x a100-80gb (tensor parallel 2)``, with the engine settings that are a kind's own."""
    words = []
    for (name, count, width), group in zip(scenario.hardware, scenario.cluster.groups, strict=True):
        own = [f"{key} {value}" for key, value in group.engine.items() if key != "tensor_parallel_size"]
        degree = [f"tensor parallel {width}"] if width > 1 else []
        more = f" ({', '.join([*degree, *own])})" if degree or own else ""
        words.append(f"{count} x {name}{more}")
    return " + ".join(words)


def words_of(chosen: Mapping[str, Any], replicas: int) -> list[str]:
    """Settings in words, without the hardware: ``["max_loras 32", "fifo"]``. One replica needs no router."""
    words = []
    for key, value in chosen.items():
        if key in (GPU, REPLICAS, "engine.tensor_parallel_size") or (key == ROUTER and replicas == 1):
            continue
        text = value if isinstance(value, str) else json.dumps(value)
        words.append(text if key in (POLICY, ROUTER) else f"{key.removeprefix('engine.')} {text}")
    return words
