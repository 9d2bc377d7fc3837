"""vtc_workload: clients' requests drawn exactly as VTC's benchmark draws them.

Source: VTC (OSDI 2024), fair_bench/trace.py of its artifact: numpy's legacy generator. Evenly spaced clients begin at a
drawn fraction of a gap and come in order; Poisson clients are one Poisson process, each request's client drawn first.
"""

from __future__ import annotations

import numpy as np

from loratory.scenarios.merge import merge, own_tenants
from loratory.scenarios.traces.table import Labels
from loratory.scenarios.workload_spec import Stream, WorkloadSpec
from loratory.serving.workload import Floats, Ints, Workload


def vtc_workload(spec: WorkloadSpec, seed: int, adapters: tuple[str, ...]) -> Workload:
    """The requests of VTC's generator for ``seed`` (its default is 42), one client per stream, all for the base model.

    Clients are all evenly spaced (``constant``, or ``on_off`` with equal gaps), or all ``poisson``; lengths are fixed.
    int(rate * duration) requests are drawn, so, as in VTC, the last may arrive after ``duration_s``.
    """
    assert spec.streams is not None and spec.duration_s is not None
    legacy = np.random.RandomState(seed)
    streams = spec.streams
    if any(stream.arrivals.poisson is None for stream in streams):
        return merge([_client(spec, s, _even(s, spec.duration_s, legacy), adapters) for s in streams])
    rates = np.array([stream.arrivals.poisson for stream in streams], float)
    n = int(rates.sum() * spec.duration_s)
    client = np.searchsorted(np.cumsum(rates)[:-1] / rates.sum(), legacy.rand(n))
    arrival = np.cumsum(legacy.gamma(1.0, 1.0 / rates.sum(), n))
    return merge([_client(spec, stream, arrival[client == i], adapters) for i, stream in enumerate(streams)])


def _even(stream: Stream, duration_s: float, legacy: np.random.RandomState) -> Floats:
    arrivals = stream.arrivals
    rate = arrivals.constant if arrivals.on_off is None else arrivals.on_off.rate_on
    assert rate is not None
    gaps = np.full(int(rate * duration_s) + 1, 1.0 / rate)
    gaps[0] = legacy.rand() / rate
    times: Floats = np.cumsum(gaps)[1:]
    if arrivals.on_off is not None:
        times = times[times % (arrivals.on_off.on_s + arrivals.on_off.off_s) < arrivals.on_off.on_s]
    return times


def _client(spec: WorkloadSpec, stream: Stream, arrival: Floats, adapters: tuple[str, ...]) -> Workload:
    prompts, outputs = stream.input_tokens or spec.input_tokens, stream.output_tokens or spec.output_tokens
    assert prompts is not None and prompts.fixed is not None and outputs is not None and outputs.fixed is not None
    n = len(arrival)

    def every(value: int) -> Ints:
        return np.full(n, value, dtype=np.int64)

    labels = None if stream.tenant is None else Labels(every(0), (stream.tenant,))
    tenant, tenants = own_tenants(labels, n)
    return Workload(
        arrival=arrival,
        adapter=every(-1),
        prompt_tokens=every(prompts.fixed),
        output_tokens=every(outputs.fixed),
        max_tokens=every(outputs.fixed),
        adapters=adapters,
        tenant=tenant,
        tenants=tenants,
    )
