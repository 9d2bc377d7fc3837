"""Slora: workloads drawn exactly as S-LoRA's benchmark draws them.

Source: S-LoRA (MLSys 2024), benchmarks/trace.py, generate_requests: numpy's legacy generator, and in this order adapter
indices, prompt lengths, output lengths, gaps, for int(rate * duration) requests.
"""

from __future__ import annotations

import numpy as np

from loratory.scenarios.request_columns import Part
from loratory.scenarios.schema import Scenario


def slora_part(scenario: Scenario, seed: int, adapters: int) -> Part:
    """The requests S-LoRA's generator gives for ``seed`` (its default is 42) over ``adapters`` adapters.

    A scenario's ``uniform: [lo, hi]`` includes hi, S-LoRA's ranges do not: its ``[8, 512]`` is ``[8, 511]`` here.
    Arrivals may run past ``duration_s``, as they do there. Without adapters it draws as for one, and all requests want
    the base model.
    """
    workload, popularity = scenario.workload, scenario.adapters.popularity
    gamma = workload.arrivals.gamma if workload.arrivals is not None else None
    assert gamma is not None and popularity is not None and popularity.power is not None
    assert workload.input_tokens is not None and workload.input_tokens.uniform is not None
    assert workload.output_tokens is not None and workload.output_tokens.uniform is not None
    assert workload.duration_s is not None
    legacy = np.random.RandomState(seed)
    n = int(gamma.rate * workload.duration_s)
    adapter = (legacy.power(popularity.power, n) * adapters).astype(np.int64)
    lo, hi = workload.input_tokens.uniform
    prompt = legacy.randint(lo, hi + 1, n)
    lo, hi = workload.output_tokens.uniform
    output = legacy.randint(lo, hi + 1, n)
    gaps = legacy.gamma(1.0 / (gamma.cv * gamma.cv), gamma.cv * gamma.cv / gamma.rate, n)
    return Part(
        arrival=np.cumsum(gaps),
        adapter=np.minimum(adapter, adapters - 1),  # which is -1, the base model, without adapters
        prompt=prompt.astype(np.int64),
        output=output.astype(np.int64),
    )
