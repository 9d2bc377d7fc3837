"""slora_workload: requests drawn exactly as S-LoRA's benchmark draws them.

Source: S-LoRA (MLSys 2024), benchmarks/trace.py, generate_requests: numpy's legacy generator, and in this order adapter
indices, prompt lengths, output lengths, gaps, for int(rate * duration) requests.
"""

from __future__ import annotations

import numpy as np

from loratory.scenarios.merge import own_tenants
from loratory.scenarios.schema import Scenario
from loratory.serving.workload import Workload


def slora_workload(scenario: Scenario, seed: int, adapters: tuple[str, ...]) -> Workload:
    """The requests S-LoRA's generator gives for ``seed`` (its default is 42) over these adapters.

    A scenario's ``uniform: [lo, hi]`` includes hi, but S-LoRA's ranges do not: its ``[8, 512]`` is ``[8, 511]`` here.
    As in S-LoRA, arrivals may be later than ``duration_s``. Without adapters the draws are those for one adapter, and
    all requests are for the base model.
    """
    workload, popularity = scenario.workload, scenario.adapters.popularity
    gamma = workload.arrivals.gamma if workload.arrivals is not None else None
    assert gamma is not None and popularity is not None and popularity.power is not None
    assert workload.input_tokens is not None and workload.input_tokens.uniform is not None
    assert workload.output_tokens is not None and workload.output_tokens.uniform is not None
    assert workload.duration_s is not None
    legacy = np.random.RandomState(seed)
    n = int(gamma.rate * workload.duration_s)
    adapter = (legacy.power(popularity.power, n) * len(adapters)).astype(np.int64)
    lo, hi = workload.input_tokens.uniform
    prompt = legacy.randint(lo, hi + 1, n).astype(np.int64)
    lo, hi = workload.output_tokens.uniform
    output = legacy.randint(lo, hi + 1, n).astype(np.int64)
    gaps = legacy.gamma(1.0 / (gamma.cv * gamma.cv), gamma.cv * gamma.cv / gamma.rate, n)
    tenant, tenants = own_tenants(None, n)
    return Workload(
        arrival=np.cumsum(gaps),
        adapter=np.minimum(adapter, len(adapters) - 1),  # which is -1, the base model, without adapters
        prompt_tokens=prompt,
        output_tokens=output,
        max_tokens=output,
        adapters=adapters,
        tenant=tenant,
        tenants=tenants,
    )
