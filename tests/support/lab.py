"""The laws' laboratory: how many examples a test draws, and runs under the policies of the roster by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import settings
from roster import POLICIES

import loratory.testing
from loratory.serving.policy import PolicyLike
from loratory.testing import Run, World

MORE = int(os.environ.get("MORE", "1"))
"""Multiplies every number of examples: MORE=20 HYPOTHESIS_PROFILE=deep for a night of fuzzing."""


def examples(count: int) -> settings:
    """Hypothesis settings with ``count`` examples."""
    return settings(max_examples=count * MORE)


def run(world: World, policy: Callable[[], PolicyLike] | str, **options: Any) -> Run:
    """`loratory.testing.run`, which also takes the name of a policy of the roster."""
    return loratory.testing.run(world, POLICIES[policy] if isinstance(policy, str) else policy, **options)
