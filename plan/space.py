"""Space: the combinations of settings that a plan tries, each as a scenario that can run, or why it cannot."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from loratory.errors import InputError, shortened
from loratory.experiment.placement_spec import placement_factory
from loratory.experiment.policy_spec import policy_factory
from loratory.experiment.router_spec import router_factory
from loratory.plan.candidate import ALONE, GPU, PLACEMENT, POLICY, REPLICAS, ROUTER, Candidate, words_of
from loratory.scenarios.load import dump, load_text
from loratory.scenarios.plan_spec import AUTOSCALE, SHORT_KEYS
from loratory.scenarios.schema import Scenario
from loratory.serving.policy_watch import POLICY_TIMEOUT_S
from loratory.sim.catalogue import gpu

Settings = dict[str, Any]

TARGET = f"{AUTOSCALE}.target"

_GUEST = "NAME, NAME:PARAMETER=VALUE or FILE.py:CLASS"
_FORMS = {GPU: "NAME, such as h100-80gb", POLICY: _GUEST, ROUTER: _GUEST, PLACEMENT: "NAME, or {name: NAME, homes: 2}"}
"""How a value of a space is written."""


@dataclass(frozen=True)
class Base:
    """The scenario that is planned, as text, from which every candidate is read with its settings.

    ``overrides``: settings of the command line, below those of a candidate.
    """

    scenario: Scenario
    text: str
    source: str = "scenario"
    folder: Path | None = None
    overrides: tuple[str, ...] = ()
    unbounded: bool = False
    policy_timeout_s: float = POLICY_TIMEOUT_S
    _known: dict[str, Scenario | InputError] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, scenario: Scenario, unbounded: bool = False) -> Base:
        """A base from a scenario that was made or loaded in Python."""
        return cls(scenario, dump(scenario), unbounded=unbounded)

    def with_settings(self, settings: Settings) -> Scenario:
        """The scenario with ``settings``, under one policy. Raises `InputError` for one that the schema refuses."""
        given = {key: value for key, value in settings.items() if key != POLICY}
        policies = [settings.get(POLICY, self.scenario.policies[0])]
        texts = [f"{key}={json.dumps(value)}" for key, value in given.items()]
        key = json.dumps([texts, policies])
        if key not in self._known:
            try:
                found: Scenario | InputError = load_text(
                    self.text,
                    self.source,
                    self.folder,
                    (*self.overrides, *texts),
                    policies,
                    unbounded=self.unbounded,
                )
            except InputError as error:
                found = error
            self._known[key] = found
        known = self._known[key]
        if isinstance(known, InputError):
            raise known
        return known

    def candidate(self, settings: Settings) -> Candidate:
        """A candidate. A lone replica has the scenario's own router, as none is used. Raises `InputError`."""
        scenario = self.with_settings(settings)
        if scenario.cluster.most_replicas == 1 and any(key in settings for key in ALONE):
            scenario = self.with_settings({key: value for key, value in settings.items() if key not in ALONE})
        return Candidate(tuple(settings.items()), scenario, scenario.policies[0])


@dataclass(frozen=True, slots=True)
class Refused:
    """A combination that cannot be: ``why`` is the sentence of the check that refused it."""

    settings: Settings
    label: str
    why: str


def space_of(base: Base) -> dict[str, list[Any]]:
    """The keys that a plan varies, and their values: the scenario's ``plan.space``, or the default.

    By default the policies of the scenario, slots from half to four times ``engine.max_loras`` as far as there are
    adapters, and, for a plan that may have several replicas, its router and lora_affinity; for `autoscale` its
    policies and half, once and twice its target. Raises `InputError` for an unknown policy, GPU, router or placement.
    """
    scenario, spec = base.scenario, base.scenario.plan
    space = {SHORT_KEYS.get(key, key): list(values) for key, values in (spec.space or {}).items()}
    if POLICY not in space:
        space[POLICY] = list(scenario.policies)
    if spec.space is None:
        space.update(_default_space(scenario))
    checks = ((POLICY, _check_policy(base)), (GPU, gpu), (ROUTER, router_factory), (PLACEMENT, placement_factory))
    for key, check in checks:
        for value in space.get(key, ()):
            if key == PLACEMENT and isinstance(value, dict):
                value = value.get("name", value)
            if not isinstance(value, str):
                raise InputError(
                    f"plan.space.{key} has {shortened(json.dumps(value), 60)}, which is not a name: give {_FORMS[key]}"
                )
            try:
                check(value)
            except InputError as error:
                raise InputError(f"plan.space.{key}: {error}") from error
    return {key: space[key] for key in sorted(space, key=_order)}


def _check_policy(base: Base) -> Any:
    return lambda value: policy_factory(value, base.policy_timeout_s)


def _default_space(scenario: Scenario) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    scale = scenario.cluster.autoscale
    if scenario.plan.ask == "autoscale" and scale is not None:
        tried = [scale.target * times for times in (0.5, 1.0, 2.0)] if scale.by == "queue" else []
        return {TARGET: [int(each) if each.is_integer() else each for each in tried]} if tried else {}
    count, engine = scenario.adapters.known_count, scenario.engine
    if count != 0 and engine.memory == "slots":
        slots = engine.max_loras
        most = max(slots, min(n for n in (count, engine.max_cpu_loras, 1 << 20) if n is not None))
        tried = sorted({n for n in (max(1, slots // 2), slots, 2 * slots, 4 * slots) if n <= most})
        if len(tried) > 1:
            found["engine.max_loras"] = tried
    several = scenario.plan.ask == "fleet" or scenario.cluster.most_replicas > 1
    if several and count != 0 and scenario.cluster.router != "lora_affinity":
        found[ROUTER] = [scenario.cluster.router, "lora_affinity"]
    return found


def _order(key: str) -> tuple[int, str]:
    """Hardware first, then an autoscaler's and the engine's settings, then placement, router and policy."""
    known = {GPU: 0, "engine.tensor_parallel_size": 1, PLACEMENT: 4, ROUTER: 5, POLICY: 6}
    return known.get(key, 2 if key.startswith(AUTOSCALE) else 3), key


def check_size(
    space: Mapping[str, Sequence[Any]],
    most: int,
    limit: str = "plan.budget.candidates",
    remedy: str = "take values out, or raise it",
) -> None:
    """Raises `InputError` for a space that has more combinations than ``most``, which is called ``limit`` there."""
    size = prod(len(values) for values in space.values())
    if size > most:
        raise InputError(f"plan.space has {size:,} combinations, more than {limit} ({most:,}): {remedy}")


def combinations(space: dict[str, list[Any]]) -> Iterator[Settings]:
    """Every combination of the space's values, the last key changing fastest."""
    for values in product(*space.values()):
        yield dict(zip(space, values, strict=True))


def possible(base: Base, settings: Sequence[Settings]) -> tuple[list[Settings], list[Refused]]:
    """Which of ``settings`` the schema accepts. Raises `InputError` for a value that it refuses in every one."""
    good: list[Settings] = []
    bad: list[tuple[Settings, InputError]] = []
    for each in settings:
        try:
            base.with_settings(each)
            good.append(each)
        except InputError as error:
            bad.append((each, error))
    for each, refusal in bad:
        for key, value in each.items():
            if f"--set {key}=" in str(refusal) and not any(other[key] == value for other in good):
                raise InputError(_of_space(str(refusal), key, value)) from None
    if bad and not good:
        raise bad[0][1]
    return good, [Refused(each, _label(base, each), _of_space(str(refusal))) for each, refusal in bad]


def _label(base: Base, settings: Settings) -> str:
    replicas = settings.get(REPLICAS, base.scenario.cluster.most_replicas)
    return ", ".join([str(settings.get(GPU, base.scenario.gpu)), *words_of(settings, 0 if replicas != 1 else 1)])


def _of_space(text: str, key: str = "", value: Any = None) -> str:
    """An error of a setting, told as one of the space: its place is plan.space."""
    if key:
        text = text.replace(f"--set {key}={json.dumps(value)}", f"plan.space.{key}")
    return text.replace("--set ", "")
