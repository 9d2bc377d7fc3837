"""Future: the whole workload of a run, as the clairvoyant knows it: what will arrive, and how long outputs will be."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from math import inf

import numpy as np

from loratory.serving.views import RequestView
from loratory.serving.workload import Workload


class Future:
    """What a workload says of the requests of a run, by request id: a request's place in the workload.

    In an open loop the distance to a future arrival is in seconds. In a closed loop, and where requests follow others
    as turns of a session, arrivals depend on the run: there it is the number of requests in between, in the order of
    the workload. With several replicas the arrivals are those of the whole cluster.
    """

    __slots__ = ("_arrived", "_by_order", "_outputs", "_times", "mean_context", "mean_output")

    def __init__(self, workload: Workload) -> None:
        count = len(workload)
        outputs = np.minimum(workload.output_tokens, workload.max_tokens)
        self._outputs: list[int] = outputs.tolist()
        self.mean_output = float(outputs.mean()) if count else 1.0
        """Output tokens of a request, on average."""
        self.mean_context = float(workload.prompt_tokens.mean()) + self.mean_output / 2 if count else 1.0
        """Tokens in the KV cache of a running request, on average."""
        self._by_order = workload.concurrency is not None or workload.after is not None
        times = np.arange(count, dtype=np.float64) if self._by_order else workload.arrival
        self._times = {name: times[workload.adapter == place].tolist() for place, name in enumerate(workload.adapters)}
        """When each adapter is asked for, in order."""
        self._arrived = 0

    def output_tokens(self, request: RequestView) -> int:
        """Tokens of a request's whole output, as far as max_tokens and the limit of its context allow."""
        return min(self._outputs[int(request.request_id)], request.max_tokens)

    def arrived(self, request: RequestView) -> None:
        """Take note that a request has arrived."""
        self._arrived = max(self._arrived, int(request.request_id) + 1)

    def next_use(self, adapter: str, now: float) -> float:
        """Seconds from ``now``, or requests, to the next arrival that asks for an adapter; inf: none will come."""
        times = self._times.get(adapter, [])
        if self._by_order:
            place = bisect_left(times, self._arrived)
            return times[place] - self._arrived + 1 if place < len(times) else inf
        place = bisect_right(times, now)
        return times[place] - now if place < len(times) else inf
