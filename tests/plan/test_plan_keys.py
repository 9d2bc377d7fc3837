"""Every key of a plan: another value changes the plan."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from every_key import PLAN
from small_plan import small

from loratory.plan.run import plan_scenario
from loratory.plan.space import Base
from loratory.scenarios.load import load_text


@cache
def planned(overrides: tuple[str, ...]) -> dict[str, Any]:
    base: Base = small(workload={"requests": 60})
    scenario = load_text(base.text, base.source, None, overrides)
    found = plan_scenario(replace(base, scenario=scenario, overrides=overrides))
    return {**found, "cpu_s": 0}


@pytest.mark.parametrize(
    ("given", "changed"),
    [pytest.param(*entry, id=f"{path}.{key}") for path, keys in PLAN.items() for key, entry in keys.items()],
)
def test_a_key_changes_the_plan(given: tuple[str, ...], changed: tuple[str, ...]) -> None:
    assert planned((*given, *changed)) != planned(given)
