"""Clairvoyant: a policy that knows the future, to measure others by. It cannot be deployed."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from math import inf

from loratory.experiment.future import Future
from loratory.policy import (
    AdapterView,
    Arrived,
    BatchShape,
    CostView,
    Decisive,
    Ended,
    Event,
    Policy,
    Preempted,
    RequestView,
    Schedule,
    View,
    want,
)
from loratory.serving.config import EngineConfig
from loratory.serving.workload import Workload

CLAIRVOYANT = "clairvoyant (knows the future)"
"""Its name wherever its results are shown."""

_RETURN = 3.0
"""Mean outputs for which an adapter is taken to stay away: 2 to 5 do about equally well in the library's scenarios."""

_FRONT = 64
"""Requests of an adapter that `Clairvoyant._worth` looks at."""

_Entry = tuple[float, float, int, RequestView]
"""A waiting request: (seconds of work, arrival, number, request)."""


class Clairvoyant(Policy):
    """Shortest remaining work first on true output lengths; evicts by Belady's rule with cost.

    *Order.* Work is the seconds of a request's prefill alone plus those of its decode steps in a batch that is half
    full. Requests whose adapter is on the GPU go by it. Of the adapters that need a slot, that one is next which has
    the most requests a second to offer: the largest k / (seconds of its load and of its k shortest requests), where
    those run side by side as far as there are seats.

    *Hold.* While other adapters wait for a slot, a request is admitted only if that is worth more than it costs. It
    costs nothing if the requests that run keep the slot longer than it would. Otherwise it keeps the requests of the
    adapter that would get the slot waiting for the difference; against that stands its own wait until its adapter is
    back.

    *Eviction.* The idle adapter that has the least seconds of reload a second until its next use goes first (a ratio,
    as in Greedy-Dual). With equal reload times it is the one whose next use is furthest away, which is Belady's MIN.

    *Preemption.* Where KV blocks run out, the running request with the most remaining work gives way.

    It is no lower bound: scheduling with loads and batches is NP-hard, and a policy may beat it.
    """

    only_waiting = True
    observes = (Arrived, Preempted, Ended)
    source = "Schrage 1968 (shortest remaining work); Belady 1966 (MIN); Cao and Irani 1997 (cost)"
    decides_by: tuple[Decisive, ...] | None = ()

    def __init__(self, workload: Workload, cost: CostView, config: EngineConfig) -> None:
        self._future = future = Future(workload)
        self._cost = cost
        by_kv = config.require_blocks() * config.block_size / future.mean_context
        self._seats = max(1.0, min(config.max_num_seqs, by_kv))
        """Requests that run at once, at most."""
        batch = max(1, int(self._seats / 2))
        self._batch = BatchShape(decode_seqs=batch, kv_tokens=int((batch - 1) * future.mean_context))
        """The batch in which a request is taken to decode, without its own tokens."""
        self._prefill_s: dict[tuple[int, int], float] = {}
        self._lanes: dict[str | None, list[_Entry]] = {}
        """The waiting requests of each adapter, the shortest first."""
        self._entries: dict[RequestView, _Entry] = {}
        self._number = 0
        self._worths: dict[str, float] = {}
        """What `_worth` found, until the lane changes."""
        self._until: dict[str, int] = {}
        """The decode step at which the last running request of each adapter ends."""
        self._recount = False

    def observe(self, event: Event) -> None:
        """Keep the waiting requests in order of their work."""
        if isinstance(event, Ended):
            self._drop(event.request)
            self._recount = self._recount or event.status != "completed"
        elif isinstance(event, Arrived):
            self._future.arrived(event.request)
            self._put(event.request)
        elif isinstance(event, Preempted):
            self._recount = True
            self._put(event.request)

    def victim(self, view: View) -> RequestView | None:
        """The running request with the most remaining work."""
        return max(view.running, key=self._work_s)

    def evict(self, adapter: AdapterView, view: View) -> float:
        """Seconds of its reload over the distance of its next use; the lowest goes first."""
        if adapter.spec is None or adapter.name is None:
            return inf
        distance = 0.0 if adapter.waiting else self._future.next_use(adapter.name, view.now)
        return (view.cost.load_seconds(adapter.spec, "host") + 1e-9) / (distance + 1e-9)

    def schedule(self, view: View) -> Schedule:
        """Admit in order, as far as `_is_worth_its_slot` allows."""
        if self._recount:
            self._recount = False
            self._until.clear()
            for running in view.running:
                self._extend(view, running)
        closed: set[str | None] = set()
        while view.can_admit and (request := self._first(view, closed)) is not None:
            if not self._is_worth_its_slot(view, request):
                closed.add(request.adapter)
                continue
            outcome = yield from want(view, request)
            if outcome:
                self._drop(request)
                self._extend(view, request)
            elif outcome.why in ("slots", "adapter", "in_use"):
                closed.add(request.adapter)
            else:
                return

    # -- the waiting requests ------------------------------------------------------------------------------------

    def _put(self, request: RequestView) -> None:
        self._number += 1
        entry = self._entries[request] = (self._work_s(request), request.arrival, self._number, request)
        insort(self._lanes.setdefault(request.adapter, []), entry)
        self._forget_worth(request.adapter)

    def _drop(self, request: RequestView) -> None:
        entry = self._entries.pop(request, None)
        if entry is None:
            return
        lane = self._lanes[request.adapter]
        del lane[bisect_left(lane, entry)]
        if not lane:
            del self._lanes[request.adapter]
        self._forget_worth(request.adapter)

    def _forget_worth(self, adapter: str | None) -> None:
        if adapter is not None:
            self._worths.pop(adapter, None)

    def _first(self, view: View, closed: set[str | None]) -> RequestView | None:
        """The request to admit next: the shortest on the GPU, or the shortest of the adapter to load next."""
        on_gpu, lanes = view.on_gpu, self._lanes
        heads = [lane[0] for name, lane in lanes.items() if (name is None or name in on_gpu) and name not in closed]
        if view.slot_obtainable:
            off = [name for name in self._off_gpu(view) if name not in closed]
            if off:
                heads.append(lanes[max(off, key=lambda name: (self._worth(view, name), -lanes[name][0][2]))][0])
        return min(heads)[3] if heads else None

    def _off_gpu(self, view: View) -> list[str]:
        """Adapters that requests wait for, and that are neither on the GPU nor on the way there."""
        on_gpu, adapters = view.on_gpu, view.adapters
        return [n for n in self._lanes if n is not None and n not in on_gpu and adapters[n].tier != "loading"]

    def _worth(self, view: View, name: str) -> float:
        """Requests a second that a slot would serve with an adapter."""
        worth = self._worths.get(name)
        if worth is None:
            spec = view.adapters[name].spec
            load_s = 0.0 if spec is None else view.cost.load_seconds(spec, "host")
            worth = work_s = 0.0
            for number, (seconds, *_) in enumerate(self._lanes[name][:_FRONT], 1):
                work_s += seconds
                worth = max(worth, number / (load_s + max(seconds, work_s / self._seats) + 1e-12))
            self._worths[name] = worth
        return worth

    # -- work, and how long adapters are held --------------------------------------------------------------------

    def _left(self, request: RequestView) -> int:
        """Output tokens still to come."""
        return self._future.output_tokens(request) - request.generated_tokens

    def _work_s(self, request: RequestView) -> float:
        """Seconds of prefill and decode that are left of a request; those that run have been prefilled."""
        steps, own = self._left(request), request.prompt_tokens + request.generated_tokens
        prefill_s = 0.0
        if not request.running:
            prefill_s, steps = self._prefill(own, request.cached_tokens), steps - 1
        batch = self._batch
        shape = batch._replace(kv_tokens=batch.kv_tokens + own + max(steps, 0) // 2)
        return prefill_s + max(steps, 0) * self._cost.step_seconds(shape)

    def _prefill(self, tokens: int, cached: int) -> float:
        seconds = self._prefill_s.get((tokens, cached))
        if seconds is None:
            new = tokens - cached
            shape = BatchShape(new, new * (cached + (new + 1) * 0.5), 1)
            seconds = self._prefill_s[tokens, cached] = self._cost.step_seconds(shape)
        return seconds

    def _extend(self, view: View, request: RequestView) -> None:
        """A request runs: it holds its adapter until its output ends."""
        name = request.adapter
        if name is not None:
            self._until[name] = max(self._until.get(name, 0), view.decode_steps + self._left(request))

    def _is_worth_its_slot(self, view: View, request: RequestView) -> bool:
        """Whether the admission of a request is worth the longer wait for its adapter's slot; see *Hold* above.

        The slots become free in the order in which their adapters' last requests end, and go to the adapters with the
        most waiting requests:

            a  ==========|                 a ends first, so c, with 7 requests, gets that slot
            b  ==================|         and d, with 3, gets b's
               now       ^ a request of a that ends here costs nothing, a longer one keeps 7 requests waiting

        All in decode steps, since every running request takes part in each of them.
        """
        name = request.adapter
        if name is None or view.slot_obtainable or not view.adapters[name].references:
            return True
        clock, until = view.decode_steps, self._until
        held = max(until.get(name, 0), clock)
        longer = clock + self._left(request) - held
        off = self._off_gpu(view) if longer > 0 else []
        before = sum(1 for other in view.on_gpu if other != name and max(until.get(other, 0), clock) < held)
        if before >= len(off):
            return True
        waiting = sorted((len(self._lanes[other]) for other in off), reverse=True)[before]
        return waiting * longer <= held - clock + _RETURN * self._future.mean_output


@dataclass(frozen=True, slots=True)
class ClairvoyantFactory:
    """Makes the clairvoyant of a run, one for each replica, where `PolicyFactory` makes a policy from its spec."""

    workload: Workload
    cost: CostView
    config: EngineConfig
    spec: str = CLAIRVOYANT
    decides_by: tuple[Decisive, ...] | None = ()

    def __call__(self) -> Clairvoyant:
        return Clairvoyant(self.workload, self.cost, self.config)
