"""Member policies: policies with and without the base class, made with members of any kind, and what refuses them."""

from __future__ import annotations

from typing import Any

import pytest
from lab import run

from loratory.errors import InputError
from loratory.policy import Policy, Schedule, View, want
from loratory.serving.config import EngineConfig
from loratory.serving.policy_members import members_of
from loratory.testing import ToyCost, World, adapter, workload


class Plain:
    """A policy without the base class."""

    def schedule(self, view: View) -> Schedule:
        for request in view.unblocked():
            yield from want(view, request)


class Based(Policy):
    """The same with it."""

    schedule = Plain.schedule


def made(base: type, **names: Any) -> Any:
    """An object of a class of these names."""
    return type("Mine", (base,), names)()


def held(base: type, **names: Any) -> Any:
    """An object that has these names itself."""
    found = base()
    vars(found).update(names)
    return found


def refusal(policy: object) -> str:
    """The sentence that a policy is refused with, which is the same wherever it is given."""
    with pytest.raises(InputError) as caught:
        members_of(policy)
    text = str(caught.value)
    assert "\n" not in text and len(text) <= 400 and text.startswith(f"policy {type(policy).__name__!r}: "), text
    with pytest.raises(InputError) as again:
        run(world(), lambda: policy, check_books=False)  # type: ignore[arg-type, return-value]
    assert str(again.value) == text
    return text


def world(**settings: Any) -> World:
    """Twelve requests for three adapters, two slots: adapters are evicted."""
    adapters = (adapter(1), adapter(2), adapter(3))
    rows = [{"at": 0.5 * i, "adapter": i % 3 + 1, "prompt": 4, "out": 3} for i in range(12)]
    config = EngineConfig(**{"max_loras": 2, "num_gpu_blocks": 60, "block_size": 2} | settings)
    return World(workload(rows, adapters), adapters, config, ToyCost())


BASES = pytest.mark.parametrize("base", [Plain, Based])
PLACES = pytest.mark.parametrize("place", [made, held])
