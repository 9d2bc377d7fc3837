"""drive: a workload through an executor in real time, from the first arrival to the last token."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from loratory.errors import StalledError
from loratory.executor.executor import Executor
from loratory.executor.generation import Generation
from loratory.serving.arrivals import Arrivals
from loratory.serving.events import Ended
from loratory.serving.request import Request
from loratory.serving.request_maker import RequestMaker
from loratory.serving.run_end import RunEnd, end_run
from loratory.serving.workload import Workload

MakeGeneration = Callable[[Request, int], Generation]
"""From a request and its true output length to what is generated for it."""


class _Clients:
    """Sends the requests of a workload when they are due, ``time_scale`` times as fast as it says."""

    def __init__(self, workload: Workload, executor: Executor, make: MakeGeneration, time_scale: float) -> None:
        self._workload = workload
        self._executor = executor
        self._make = make
        self._maker = RequestMaker(workload)
        self._arrivals = [*(workload.arrival / time_scale).tolist(), inf]
        self._turns = None if workload.after is None else Arrivals(workload, time_scale)
        self._last = -inf
        self.sent = 0
        if self._turns is not None:
            executor.listen(self._ended)

    @property
    def has_turns(self) -> bool:
        """See `loratory.serving.run_end.Clients`."""
        return self._turns is not None

    @property
    def unsent(self) -> int:
        """See `loratory.serving.run_end.Clients`."""
        return len(self._workload) - self.sent

    @property
    def next_at(self) -> float:
        """When the next one is due, absolute seconds; inf where it follows the end of one that has not ended."""
        if self._turns is not None:
            return self._turns.next_at
        return inf if self._workload.concurrency is not None else self._arrivals[self.sent]

    def deliver(self, now: float) -> None:
        """Send what is due at second ``now``."""
        concurrency = self._workload.concurrency
        if self._turns is not None:
            while self._turns.next_at <= now:
                index, at = self._turns.pop()
                # what was due when the engine last planned, it could not see then: it takes it in now
                self.send(index, at if at > self._last else now)
        elif concurrency is not None:
            for _ in range(min(concurrency - self._executor.engine.unfinished, self.unsent)):
                self.send(self.sent, now)
        else:
            while self._arrivals[self.sent] <= now:
                self.send(self.sent, self._arrivals[self.sent])
        self._last = now

    def send(self, index: int, arrival: float) -> None:
        """Send a request, as of second ``arrival``."""
        request, output_tokens = self._maker.make(index, arrival)
        self.sent += 1
        request = request._replace(cached_tokens=0)
        self._executor.submit(request, self._make(request, output_tokens))

    def send_next(self, now: float) -> float:
        """See `loratory.serving.run_end.Clients`."""
        due = self.next_at
        now = now if due == inf else max(now, due)
        if self._turns is None:
            self.send(self.sent, now)
        else:
            self.deliver(now)
        return now

    def _ended(self, event: Ended) -> None:
        assert self._turns is not None
        self._turns.ended(int(event.request.request_id), event.now)


def drive(
    workload: Workload,
    executor: Executor,
    make: MakeGeneration,
    *,
    time_scale: float = 1.0,
    cutoff_s: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> RunEnd:
    """Run a workload to its end, or to second ``cutoff_s`` of the executor's clock, where the rest is aborted.

    The executor's clock starts at 0. Requests that are left waiting when nothing can happen any more end as failed.
    ``progress(sent)`` is told how many requests have been sent. Raises `PolicyError` when the policy fails.
    """
    clients = _Clients(workload, executor, make, time_scale)
    engine = executor.engine
    stall, cut_off = "", False
    try:
        while clients.unsent or engine.unfinished:
            now = executor.now()
            cut_off = cutoff_s is not None and now >= cutoff_s
            if cut_off:
                break
            clients.deliver(now)
            if progress is not None:
                progress(clients.sent)
            if executor.step(now):
                continue
            until = min(clients.next_at, engine.wake_at or inf, cutoff_s or inf)
            if until == inf and not executor.tiers.in_flight:
                if not engine.unfinished and clients.unsent:
                    continue  # a closed loop: the last of them has just ended
                break
            executor.rest(until)
    except StalledError as error:
        stall = str(error)
    return end_run(clients, [engine], executor.now(), cut_off=cut_off, stalled=stall)
