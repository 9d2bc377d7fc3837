"""Autoscaler: how many replicas there should be, by what is in flight or by how many requests were in time.

By queue it is the rule of Kubernetes' horizontal pod autoscaler (kubernetes.io, Horizontal Pod Autoscaling):

    wanted = ceil(count x (requests in flight / count) / target)      within 10 % of the target: count

By attainment the metric is the share of requests that missed the limit, over the share that may:

    over 1:     ceil(count x that), at most twice as many
    below 1/2:  one fewer
    else:       count

More replicas start at once. Fewer stay when they have been enough for ``scale_down_after_s``: the highest number that
was wanted in that time counts, which Kubernetes calls the stabilization window.
"""

from __future__ import annotations

from collections import deque
from math import ceil

from loratory.serving.events import Ended
from loratory.serving.sequence import sequence_of
from loratory.sim.fleet_options import AutoscaleOptions

_TOLERANCE = 0.1
_FASTEST = 2.0
_SLACK = 0.5


class Autoscaler:
    """Decides for one run; `wanted` is asked every ``options.interval_s`` seconds. ``decided``: whether it has been."""

    def __init__(self, options: AutoscaleOptions) -> None:
        self.options = options
        self.decided = False
        self._seen = 0
        """Requests that ended since the last decision."""
        self._missed = 0
        self._wanted: deque[tuple[float, int]] = deque()
        """What was wanted in the last ``scale_down_after_s`` seconds."""

    def ended(self, event: Ended) -> None:
        """A request ended: was its first token in time? Those that were rejected do not count."""
        if event.status == "rejected":
            return
        sequence = sequence_of(event.request)
        first = sequence.first_token_at
        self._seen += 1
        if first is None or first - sequence.request.arrival > self.options.ttft_s:
            self._missed += 1

    def wanted(self, now: float, count: int, in_flight: int) -> int:
        """How many replicas there should be at second ``now``, when ``count`` are open or start, and so many requests
        are in flight on those that are open or wait at the gateway."""
        options, window = self.options, self._wanted
        self.decided = True
        wanted = self._by_queue(count, in_flight) if options.by == "queue" else self._by_attainment(count, in_flight)
        wanted = min(max(wanted, options.least), options.most)
        window.append((now, wanted))
        while window[0][0] < now - options.scale_down_after_s:
            window.popleft()
        if wanted >= count:
            return wanted
        if now < options.scale_down_after_s:
            return max(min(count, options.most), options.least)  # fewer have not been enough for that long
        return min(max(each for _, each in window), max(count, options.least))

    def _by_queue(self, count: int, in_flight: int) -> int:
        ratio = in_flight / (count * self.options.target) if count else 0.0
        return count if count and abs(ratio - 1.0) <= _TOLERANCE else ceil(in_flight / self.options.target)

    def _by_attainment(self, count: int, in_flight: int) -> int:
        seen, missed = self._seen, self._missed
        self._seen = self._missed = 0
        if not seen:
            return count if in_flight else count - 1
        ratio = missed / seen / (1.0 - self.options.target)
        if ratio > 1.0:
            return ceil(count * min(ratio, _FASTEST))
        return count - 1 if ratio < _SLACK else count
