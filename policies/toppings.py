"""toppings: batches of like ranks: a request that slows the others waits until enough of its rank share that cost."""

from __future__ import annotations

from dataclasses import dataclass, field

from loratory.policy import (
    Arrived,
    BatchShape,
    Decisive,
    Ended,
    Event,
    InputError,
    Policy,
    Preempted,
    RequestView,
    Schedule,
    View,
    Wake,
    want,
)


@dataclass(eq=False)
class RankQueue:
    """The waiting requests whose adapters have one rank."""

    waiting: dict[RequestView, None] = field(default_factory=dict)
    """In order of arrival, those that were preempted last."""
    names: dict[str, int] = field(default_factory=dict)
    """How many of them wait for each adapter; "" is the base model."""
    arrivals: float = 0.0
    """The sum of the seconds at which they arrived."""
    preempted: int = 0
    joined: int | None = None
    """The decode step at which the last request of the rank was admitted."""


class Toppings(Policy):
    """First come, first served with skip, but ranks that would slow the running requests wait to come together.

    Where kernels pad every adapter to the largest rank of the batch (Punica's BGMV), one request of rank 64 makes all
    others decode as slowly as itself. The cost of a rank is CaraServe's score of a request on a server, for what the
    rank adds: seconds that it adds to a decode step * steps for which it does * running requests of lower ranks. It
    hardly grows with the number of requests that come together. So requests of that rank wait until they have waited
    as long, all together, as their coming costs the others (rent or buy: at most twice the loss of the best time to
    come). Then all of them come. Others of their rank may join them: they prolong it only by the steps that the last
    one is ahead.

    Ranks that add no more than `slowdown` to a step never wait, nor do those above which nothing lower runs, nor
    preempted requests. By the cost models that pad to engine.max_lora_rank (vLLM's kernels) or price each adapter by
    its own rank (S-LoRA's), no rank slows others, and the policy is fifo.

    Nobody starves by rank: a request waits for others of its rank patience_s at most. As under fifo, adapters that find
    no slot may starve.

    Not modelled:
        CPU-assisted prefill, which hides loads (adapter_loading: async comes nearest); the paper's choice of a server
        for each request, where its score comes from (router least_cost); its target for decode latency. The paper
        batches in order of arrival: that ranks wait for each other inside a server is Loratory's use of its score,
        which was written from summaries of the paper.

    Parameters:
        patience_s: seconds that a request waits for others of its rank, at most; 0 is fifo.
        weight: what a second by which others decode longer counts for, in seconds of waiting; larger ones wait longer.
        slowdown: share of a decode step up to which a rank may slow it and come at any time.
    """

    only_waiting = True
    observes = (Arrived, Preempted, Ended)
    source = "CaraServe (arXiv 2401.11240), as Toppings at USENIX ATC 2025, rank-aware scheduling"
    decides_by: tuple[Decisive, ...] = ("adapter",)

    def __init__(self, patience_s: float = 10.0, weight: float = 1.0, slowdown: float = 0.02) -> None:
        if min(patience_s, weight, slowdown) < 0:
            given = f"patience_s is {patience_s:g}, weight {weight:g} and slowdown {slowdown:g}"
            raise InputError(f"toppings: {given}: give 0 or more")
        self.patience_s = patience_s
        self.weight = weight
        self.slowdown = slowdown
        self._ranks: dict[int, RankQueue] = {}
        self._new: dict[RequestView, None] = {}
        """Come since the last call: `observe` cannot see an adapter's rank."""
        self._rank_of: dict[RequestView, int] = {}
        """Of waiting requests."""
        self._output = 0.0
        """Mean output tokens of the requests that were completed, the last ones counting most."""
        self._woken = 0.0
        """The second of the last `Wake`."""

    def observe(self, event: Event) -> None:
        """Note requests that begin to wait, and those that are gone; learn how long outputs are."""
        if isinstance(event, (Arrived, Preempted)):
            self._new[event.request] = None
        elif isinstance(event, Ended):
            self._new.pop(event.request, None)
            self._leave(event.request)
            if event.status == "completed":
                tokens = max(1, event.request.generated_tokens)
                self._output = 0.98 * (self._output or tokens) + 0.02 * tokens

    def schedule(self, view: View) -> Schedule:
        """Admit in arrival order, without the ranks that wait for more of their kind."""
        for request in self._new:
            self._join(request, view)
        self._new.clear()
        if not view.can_admit:
            return
        held: list[float] = []
        apart: set[str] = set()
        for rank, queue in self._ranks.items():
            if queue.waiting and (due := self._due(view, rank, queue)) > view.now:
                held.append(due)
                apart.update(queue.names)
        for request in view.unblocked(without=apart):
            outcome = yield from want(view, request)
            if outcome:
                self._ranks[self._rank_of[request]].joined = view.decode_steps
                self._leave(request)
            elif outcome.why not in ("slots", "adapter"):
                break
        if held and not view.now < self._woken <= min(held):
            self._woken = min(held)
            yield Wake(at=self._woken)

    def _join(self, request: RequestView, view: View) -> None:
        rank = view.adapter(request).rank
        queue = self._ranks.setdefault(rank, RankQueue())
        self._rank_of[request] = rank
        queue.waiting[request] = None
        name = request.adapter or ""
        queue.names[name] = queue.names.get(name, 0) + 1
        queue.arrivals += request.arrival
        queue.preempted += request.preemptions > 0

    def _leave(self, request: RequestView) -> None:
        rank = self._rank_of.pop(request, None)
        if rank is None:
            return
        queue = self._ranks[rank]
        del queue.waiting[request]
        name = request.adapter or ""
        queue.names[name] -= 1
        if not queue.names[name]:
            del queue.names[name]
        queue.arrivals = queue.arrivals - request.arrival if queue.waiting else 0.0
        queue.preempted -= request.preemptions > 0

    def _due(self, view: View, rank: int, queue: RankQueue) -> float:
        """The second from which the waiting requests of a rank may be admitted, if nothing changes before."""
        now, waiting = view.now, queue.waiting
        oldest = next(iter(waiting))
        latest = oldest.arrival + self.patience_s
        if not rank or queue.preempted or now >= latest:
            return now
        ranks = [(a.rank, a.references) for a in view.on_gpu.values() if a.references]
        lower = view.base.references + sum(running for other, running in ranks if other < rank)
        if not lower:
            return now
        kv = view.kv_total_tokens - view.kv_free_tokens
        below = max((other for other, _ in ranks if other < rank), default=0)
        adapters = [other for other, _ in ranks if other < rank] + [below] * len(queue.names)
        lora = sum(running for other, running in ranks if other < rank) + len(waiting)
        without = BatchShape(
            decode_seqs=lower + len(waiting),
            kv_tokens=kv,
            distinct_adapters=len(adapters),
            sum_ranks=sum(adapters),
            max_rank=below,
            lora_tokens=lora,
            lora_token_ranks=sum(other * running for other, running in ranks if other < rank) + below * len(waiting),
        )
        step_s = self._step_s(view, without)
        added_s = self._step_s(view, without._replace(max_rank=rank)) - step_s
        if added_s <= self.slowdown * step_s:
            return now
        # Waited seconds grow by one a second for each request. The cost is that of all steps of an output, or of those
        # by which the last request of the rank is ahead, if these are fewer; they grow by one a step.
        waited, number = now * len(waiting) - queue.arrivals, len(waiting)
        step_cost = self.weight * added_s * lower
        wait_s = (step_cost * (self._output or oldest.max_tokens) - waited) / number
        if queue.joined is not None and any(other >= rank for other, _ in ranks):
            gained = number - step_cost / (step_s + added_s)
            missing = step_cost * (view.decode_steps - queue.joined) - waited
            if missing <= 0 or gained > 0:
                wait_s = min(wait_s, missing / gained if missing > 0 else 0.0)
        return min(latest, now + max(0.0, wait_s))

    def _step_s(self, view: View, shape: BatchShape) -> float:
        """Seconds of a decode step, by the engine's cost model."""
        return view.cost.step_seconds(shape)
