"""Remedies: whether a scenario whose model does not fit the GPU could run with other engine settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import ValidationError

from loratory.errors import InputError
from loratory.scenarios.build import build_workload
from loratory.scenarios.schema import Scenario
from loratory.serving.config import EngineConfig
from loratory.serving.lora import Adapter


class Remedies:
    """Judges settings for ``scenario``, whose engine is ``engine`` now. Draws its requests once, when it needs them."""

    def __init__(self, scenario: Scenario, engine: EngineConfig, adapters: Sequence[Adapter]) -> None:
        self._scenario = scenario
        self._engine = engine
        self._adapters = adapters
        self._values: dict[str, Any] | None = None
        self._longest: int | None = None

    def runs(self, changed: EngineConfig) -> bool:
        """Whether the scenario is valid with ``changed``, and every request that fits ``max_model_len`` still does."""
        if self._values is None:
            self._values = self._scenario.model_dump(exclude_none=True)
        try:
            Scenario.model_validate(self._values | {"engine": changed.model_dump(exclude_none=True)})
        except ValidationError:
            return False
        limit, before = changed.max_model_len, self._engine.max_model_len
        return limit is None or before is None or limit >= before or limit >= self._need(before)

    def _need(self, limit: int) -> int:
        """Tokens of the longest request, as far as ``limit`` lets it grow; 0 where no request fits."""
        if self._longest is None:
            try:
                workload = build_workload(self._scenario, self._scenario.seeds[0], self._adapters)
            except InputError:
                return 0
            fitting = workload.prompt_tokens < limit
            lengths = np.minimum(workload.prompt_tokens + workload.output_tokens, limit)[fitting]
            self._longest = int(lengths.max(initial=0))
        return self._longest
