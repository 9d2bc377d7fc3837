"""Candidate: one combination of settings that a plan may choose, and what it costs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loratory.scenarios.plan_spec import AUTOSCALE, BOUNDS
from loratory.scenarios.schema import Scenario

GPU, POLICY, REPLICAS, ROUTER, PLACEMENT = "gpu", "policy", "cluster.replicas", "cluster.router", "cluster.placement"
"""Keys of a candidate's settings that are more than numbers of the engine."""

ALONE = (ROUTER, PLACEMENT)
"""Keys without effect where there is one replica."""

_HARDWARE = (GPU, REPLICAS, "engine.tensor_parallel_size", AUTOSCALE, *BOUNDS)
"""Keys whose values `hardware_words` tells."""


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
        """Engines, each on its own GPUs; of an autoscaled fleet the most that there may be."""
        return self.scenario.cluster.most_replicas

    @property
    def gpus(self) -> int:
        """GPUs of all replicas, where an autoscaler may add some with those."""
        return sum(count * width for _, count, width in self._hardware)

    @property
    def _hardware(self) -> list[tuple[str, int, int]]:
        """`Scenario.hardware` with the replicas that an autoscaler may add, which are of the last kind."""
        *others, (name, count, width) = self.scenario.hardware
        cluster = self.scenario.cluster
        return [*others, (name, count + cluster.most_replicas - cluster.count, width)]

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
        """What `gpus` cost in an hour; None without a price."""
        known, total = prices or {}, 0.0
        for name, count, width in self._hardware:
            if name not in known:
                return None
            total += known[name] * (count * width)
        return total


def stays(scenario: Scenario) -> bool:
    """Whether its fleet is of equal replicas, which neither come nor go."""
    return not scenario.cluster.changes and len(scenario.cluster.groups) == 1


def hardware_words(scenario: Scenario) -> str:
    """``2 x h100-80gb + 1 x a100-80gb (tensor parallel 2)``, with the engine settings that are a kind's own; of an
    autoscaled fleet ``1 to 4 x h100-80gb``."""
    words = []
    scale, several = scenario.cluster.autoscale, len(scenario.cluster.groups) > 1
    between = "" if scale is None else f"{scale.least} to {scale.most}"
    for (name, count, width), group in zip(scenario.hardware, scenario.cluster.groups, strict=True):
        own = [f"{key} {value}" for key, value in group.engine.items() if key != "tensor_parallel_size"]
        degree = [f"tensor parallel {width}"] if width > 1 else []
        more = f" ({', '.join([*degree, *own])})" if degree or own else ""
        words.append(f"{between if between and not several else count} x {name}{more}")
    return " + ".join(words) + (f", {between} replicas" if between and several else "")


def words_of(chosen: Mapping[str, Any], replicas: int) -> list[str]:
    """Settings in words, without the hardware: ``["max_loras 32", "fifo"]``. One replica needs no router."""
    words = []
    for key, value in chosen.items():
        if key in _HARDWARE or (key in ALONE and replicas == 1):
            continue
        text = value if isinstance(value, str) else json.dumps(value)
        if key == PLACEMENT:
            words.append(placement_words(value))
        elif key in (POLICY, ROUTER):
            words.append(text)
        else:
            words.append(f"{key.removeprefix('engine.').removeprefix('cluster.autoscale.')} {text}")
    return words


def placement_words(value: Any) -> str:
    """``min_cost_flow (homes 2)``, of a placement as a scenario gives it."""
    if not isinstance(value, Mapping):
        return str(value)
    more = ", ".join(f"{key} {json.dumps(each)}" for key, each in value.items() if key != "name" and each is not None)
    return f"{value.get('name')} ({more})" if more else str(value.get("name"))
