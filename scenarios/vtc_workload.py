"""Vtc: clients' requests drawn exactly as VTC's benchmark draws them.

Source: VTC (OSDI 2024), fair_bench/trace.py of its artifact: numpy's legacy generator. Evenly spaced clients begin at a
drawn fraction of a gap and come in order; Poisson clients are one Poisson process, each request's client drawn first.
"""

from __future__ import annotations

import numpy as np

from loratory.scenarios.request_columns import Part, merge
from loratory.scenarios.traces.table import Labels
from loratory.scenarios.workload_spec import Stream, WorkloadSpec
from loratory.serving.workload import Floats, Ints


def vtc_part(workload: WorkloadSpec, seed: int) -> Part:
    """The requests VTC's generator gives for ``seed`` (its default is 42), one client a stream.

    Clients are all evenly spaced (``constant``, or ``on_off`` with equal gaps), or all ``poisson``; lengths are fixed.
    int(rate * duration) requests are drawn, so the last may come after ``duration_s``, as there.
    """
    assert workload.streams is not None and workload.duration_s is not None
    legacy = np.random.RandomState(seed)
    streams = workload.streams
    if any(stream.arrivals.poisson is None for stream in streams):
        return merge([_client(workload, s, _even(s, workload.duration_s, legacy)) for s in streams])
    rates = np.array([stream.arrivals.poisson for stream in streams], float)
    n = int(rates.sum() * workload.duration_s)
    client = np.searchsorted(np.cumsum(rates)[:-1] / rates.sum(), legacy.rand(n))
    arrival = np.cumsum(legacy.gamma(1.0, 1.0 / rates.sum(), n))
    return merge([_client(workload, stream, arrival[client == i]) for i, stream in enumerate(streams)])


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


def _client(workload: WorkloadSpec, stream: Stream, arrival: Floats) -> Part:
    prompts, outputs = stream.input_tokens or workload.input_tokens, stream.output_tokens or workload.output_tokens
    assert prompts is not None and prompts.fixed is not None and outputs is not None and outputs.fixed is not None
    n = len(arrival)

    def every(value: int) -> Ints:
        return np.full(n, value, dtype=np.int64)

    tenant = None if stream.tenant is None else Labels(every(0), (stream.tenant,))
    return Part(arrival, every(-1), every(prompts.fixed), every(outputs.fixed), tenant=tenant)
