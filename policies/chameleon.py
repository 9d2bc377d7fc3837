"""chameleon: queues by weighted request size with a quota of tokens each, and idle adapters kept as a cache."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, NamedTuple

from loratory.policy import (
    Action,
    AdapterView,
    Arrived,
    Ended,
    Event,
    Evict,
    InputError,
    Lanes,
    Load,
    Outcome,
    Policy,
    Preempted,
    Prefetch,
    RequestView,
    Schedule,
    View,
    cut_offs,
    want,
)


class Size(NamedTuple):
    """What a request is expected to need: prompt and output in tokens, its adapter in bytes (0 for the base model)."""

    prompt: int
    output: float
    adapter: int
    charge: float
    """KV tokens of its queue's quota that it uses while it runs."""


@dataclass(eq=False)
class Queue:
    """Requests of similar weighted size: those that wait, in order of arrival, and the KV tokens of those that run."""

    quota: float
    charged: float = 0.0
    running: int = 0
    lanes: Lanes[RequestView] = field(default_factory=Lanes)


class Claim(NamedTuple):
    """The slot that a blocked request waits for: the adapter in it, and when that is expected to be idle."""

    adapter: str
    free_at: float


class Chameleon(Policy):
    """Small requests first, within quotas: one queue for each range of sizes; idle adapters stay on the GPU as a cache.

    Size: (input_weight * prompt + output_weight * output) * adapter bytes, each divided by the largest so far. The
    output is the request's prediction, or else the mean output of its adapter, or of all adapters, so far.

    Queues: every refresh_s seconds K-means groups the sizes of the last `window` requests. Each group is a queue, first
    come, first served, with a quota of KV tokens. A running request uses prompt + output + adapter tokens of its quota,
    at least kv_total_tokens / max_num_seqs. A queue with r arrivals per second, which run for D seconds and use S
    tokens, needs S * D * (r + 1 / slo_s) tokens: D * (r + 1 / slo_s) requests at once are what an M/M/1 queue needs to
    answer within slo_s. S and D are the queue's means. Quotas divide the whole memory in proportion to these needs.

    Admission: from the smallest queue to the largest, each within its quota. Then the queues, in the same order, borrow
    what is left, unless a request that is within its quota found no room. So neither small nor large requests starve.

    Bypass: a request whose adapter finds no slot lets younger ones pass. After patience_s it claims the slot that is
    expected to be free first; on that slot only requests pass that are expected to end before then. The paper's
    adapters share memory with the KV cache and lack no slots; its rule is patience_s=0.

    Cache: the idle adapter with the lowest score leaves its slot first. The score is frequency * (arrivals for it) +
    recency * (how recently it was used) + size * (bytes), each from 0 to 1; adapters of waiting requests stay longest.
    The adapters of the next `ahead` waiting requests are fetched to host memory, and if loads are asynchronous to the
    GPU.

    The formulas and default weights were written from memory of the paper, and have not been compared with its text:
    check them before you cite a result as Chameleon's.

    Not modelled:
        prefetches by predicted arrivals; preemption of a request that passed another and outlasts its prediction (a
        claim only stops new ones); the paper's output predictor (give the workload predicted_tokens). Its refresh_s is
        minutes; scenarios are shorter.

    Parameters:
        input_weight: weight of the prompt in a request's size.
        output_weight: weight of the output in a request's size.
        queues: the most queues.
        refresh_s: seconds after which cut-offs and quotas are computed again.
        window: number of last requests that they are computed from.
        samples: arrivals before they are first computed; until then there is one queue.
        slo_s: seconds within which a request should be answered; sizes the quotas.
        lend: what queues may borrow. "free": every free KV block (the engine preempts when they run out); "whole": only
            what holds a request to its end, as in S-LoRA, which the paper builds on.
        shortage: whose quota is cut when memory does not satisfy all queues. "small_first" meets the needs of small
            queues first, but leaves each larger one room for a request; "shared" cuts all alike.
        patience_s: seconds that a blocked request waits before it claims a slot; "none": it never does.
        ahead: waiting requests whose adapters are fetched; 0 fetches none.
        frequency: weight of arrivals in an adapter's score.
        recency: weight of its last use in an adapter's score.
        size: weight of its bytes in an adapter's score.
    """

    only_waiting = True
    observes: tuple[type, ...] = (Arrived, Preempted, Ended)
    decides_by = ("adapter", "predicted_tokens")
    source = "Chameleon, MICRO 2025 (arXiv 2411.17741)"

    def __init__(
        self,
        input_weight: float = 0.4,
        output_weight: float = 0.6,
        queues: int = 4,
        refresh_s: float = 30.0,
        window: int = 512,
        samples: int = 32,
        slo_s: float = 3.0,
        lend: Literal["free", "whole"] = "free",
        shortage: Literal["small_first", "shared"] = "small_first",
        patience_s: float | None = 3.0,
        ahead: int = 4,
        frequency: float = 0.45,
        recency: float = 0.10,
        size: float = 0.45,
    ) -> None:
        if min(queues, window, samples) < 1 or ahead < 0:
            given = f"queues is {queues}, window {window}, samples {samples} and ahead {ahead}"
            raise InputError(f"chameleon: {given}: give an ahead of 0 or more, and the others 1 or more")
        if min(refresh_s, slo_s) <= 0 or (patience_s or 0.0) < 0:
            given = f"refresh_s is {refresh_s:g}, slo_s {slo_s:g} and patience_s {patience_s}"
            raise InputError(f"chameleon: {given}: give a patience_s of 0 or more, or none, and the others above 0")
        if min(input_weight, output_weight, frequency, recency, size) < 0 or input_weight + output_weight == 0:
            given = f"input_weight is {input_weight:g}, output_weight {output_weight:g}, frequency {frequency:g}"
            remedy = "give 0 or more, and an input_weight or an output_weight above 0"
            raise InputError(f"chameleon: {given}, recency {recency:g} and size {size:g}: {remedy}")
        self._weights, self._score = (input_weight, output_weight), (frequency, recency, size)
        self._most_queues, self._samples, self._ahead = queues, samples, ahead
        self._refresh_s, self._slo_s, self._patience_s = refresh_s, slo_s, patience_s
        self._whole, self._shared = lend == "whole", shortage == "shared"

        self.queues: list[Queue] = []
        """From the smallest sizes to the largest."""
        self._cuts: list[float] = []  # weighted sizes between them
        self._refresh_at = 0.0
        self._new: dict[RequestView, None] = {}
        """Come since the last call. `observe` cannot see a request's adapter, so `schedule` puts it into a queue."""
        self._sizes: dict[RequestView, Size] = {}
        self._queue_of: dict[RequestView, Queue] = {}
        self._admitted_at: dict[RequestView, float] = {}  # of running requests
        self._claims: dict[RequestView, Claim] = {}
        self._recent: deque[tuple[float, Size]] = deque(maxlen=window)  # arrival and size of the last requests
        self._largest = (1, 1.0, 1)  # prompt, output and adapter
        self._scale = self._largest  # as it was when the cut-offs were computed: sizes are compared on that scale
        self._least_bytes = 1  # of an adapter; requests for the base model count as much
        self._outputs: dict[str | None, float] = {}  # mean output tokens by adapter
        self._output = 0.0  # mean output tokens of all
        self._token_s = 0.02  # mean seconds from admission to end, divided by output tokens
        self._asked: dict[str, float] = {}  # arrivals by adapter, halved every refresh_s
        self._most_asked = 1.0
        self._asynchronous = False  # whether loads run in the background: known once one has been seen

    def observe(self, event: Event) -> None:
        """Note requests that come; forget those that end, and learn from them."""
        assert isinstance(event, (Arrived, Preempted, Ended))
        request = event.request
        if isinstance(event, Arrived) and request.adapter is not None:
            asked = self._asked.get(request.adapter, 0.0) + 1.0
            self._asked[request.adapter] = asked
            self._most_asked = max(self._most_asked, asked)
        if isinstance(event, Ended):
            if event.status == "completed":
                self._learn(request, event.now)
            self._new.pop(request, None)
        else:
            self._new[request] = None
        self._forget(request)

    def schedule(self, view: View) -> Schedule:
        """Queue new requests, compute cut-offs and quotas when they are due, admit, and fetch adapters."""
        if not self.queues:
            self.queues = [Queue(view.kv_total_tokens)]
        for request in self._new:
            self._file(request, view)
        self._new.clear()
        if view.now >= self._refresh_at and len(self._recent) >= self._samples:
            self._refresh(view)
        if view.can_admit:
            yield from self._serve(view)
        yield from self._fetch(view)

    def evict(self, adapter: AdapterView, view: View) -> float:
        """The score of an idle adapter; those of waiting requests score higher than all others."""
        frequency, recency, size = self._score
        asked = self._asked.get(adapter.name or "", 0.0) / self._most_asked
        lately = max(0.0, 1.0 - (view.now - adapter.last_used) / self._refresh_s)
        worth = frequency * asked + recency * lately + size * min(1.0, adapter.bytes / self._largest[2])
        return worth + (frequency + recency + size if adapter.waiting else 0.0)

    def _size(self, request: RequestView, view: View) -> Size:
        adapter = view.adapter(request)
        output: float = request.predicted_tokens or self._outputs.get(request.adapter, self._output)
        output = max(min(output or request.max_tokens, request.max_tokens), request.generated_tokens + 1)
        share = view.kv_total_tokens / (view.seq_budget + len(view.running))
        charge = max(request.prompt_tokens + output + adapter.kv_tokens, share)
        return Size(request.prompt_tokens, output, adapter.bytes, charge)

    def _weighted(self, size: Size) -> float:
        prompt, output, adapter = self._scale
        input_weight, output_weight = self._weights
        work = input_weight * size.prompt / prompt + output_weight * size.output / output
        return work * max(size.adapter, self._least_bytes) / adapter

    def _file(self, request: RequestView, view: View) -> None:
        size = self._size(request, view)
        self._sizes[request] = size
        if not request.preemptions:
            self._recent.append((request.arrival, size))
            prompt, output, adapter = self._largest
            self._largest = (max(prompt, size.prompt), max(output, size.output), max(adapter, size.adapter))
        self._put(request)

    def _put(self, request: RequestView) -> None:
        """Put a request into the queue of its size: into a lane if it waits, into the books if it runs."""
        size = self._sizes[request]
        queue = self.queues[bisect_left(self._cuts, self._weighted(size))]
        self._queue_of[request] = queue
        if request in self._admitted_at:
            queue.charged += size.charge
            queue.running += 1
        else:  # preempted requests come first, as in view.waiting
            queue.lanes.push(request, (not request.preemptions, request.arrival), request.adapter)

    def _forget(self, request: RequestView) -> None:
        queue = self._queue_of.pop(request, None)
        if queue is None:
            return
        size = self._sizes.pop(request)
        self._claims.pop(request, None)
        if self._admitted_at.pop(request, None) is None:
            queue.lanes.discard(request)
        else:
            queue.running -= 1
            queue.charged = queue.charged - size.charge if queue.running else 0.0

    def _learn(self, request: RequestView, now: float) -> None:
        tokens = max(1, request.generated_tokens)
        self._outputs[request.adapter] = 0.9 * self._outputs.get(request.adapter, tokens) + 0.1 * tokens
        self._output = 0.98 * (self._output or tokens) + 0.02 * tokens
        since = self._admitted_at.get(request)
        if since is not None and not request.preemptions:
            self._token_s = 0.95 * self._token_s + 0.05 * (now - since) / tokens

    def _refresh(self, view: View) -> None:
        """Compute cut-offs and quotas, and move every request to its new queue."""
        self._refresh_at = view.now + self._refresh_s
        self._scale = self._largest
        sizes = [size for _, size in self._recent]
        self._least_bytes = min((size.adapter for size in sizes if size.adapter), default=1)
        self._cuts = cut_offs(sorted(map(self._weighted, sizes)), self._most_queues)
        self.queues = [Queue(quota) for quota in self._quotas(view, sizes)]
        for request in self._sizes:
            self._put(request)
        self._asked = {name: asked / 2 for name, asked in self._asked.items() if name in view.adapters}
        self._outputs = {n: mean for n, mean in self._outputs.items() if n is None or n in view.adapters}
        self._most_asked = max(self._asked.values(), default=1.0)

    def _quotas(self, view: View, sizes: list[Size]) -> list[float]:
        """KV tokens for each queue. Their sum is the whole pool."""
        groups: list[list[Size]] = [[] for _ in range(len(self._cuts) + 1)]
        for size in sizes:
            groups[bisect_left(self._cuts, self._weighted(size))].append(size)
        span = max(view.now - self._recent[0][0], 1e-3)
        needs = []
        for group in groups:
            tokens = sum(size.charge for size in group) / max(1, len(group))
            seconds = self._token_s * sum(size.output for size in group) / max(1, len(group))
            needs.append(tokens * seconds * (len(group) / span + 1.0 / self._slo_s))
        pool, need = float(view.kv_total_tokens), sum(needs)
        if self._shared or need <= pool:
            return [pool * part / need for part in needs]
        least = [min(pool / len(groups), max((size.charge for size in group), default=0.0)) for group in groups]
        left = pool - sum(least)
        quotas = []
        for part, start in zip(needs, least, strict=True):
            more = min(left, max(0.0, part - start))
            left -= more
            quotas.append(start + more)
        return quotas

    def _serve(self, view: View) -> Schedule:
        closed: set[str | None] = set()
        self._claim(view)
        for request in list(self._claims):  # first, so that no other takes the slot that has become free
            if view.slot_obtainable and self._within(request) and not (yield from self._admit(view, request, closed)):
                return
        for lent in (False, True):
            for queue in self.queues:
                passed_over: set[str | None] = set()
                while (found := queue.lanes.pick(view, closed | passed_over)) is not None:
                    (request,) = found
                    if not (self._room(view, request) if lent else self._within(request)):
                        break
                    if not self._may_pass(view, request):
                        passed_over.add(request.adapter)
                    elif not (yield from self._admit(view, request, closed)):
                        return

    def _within(self, request: RequestView) -> bool:
        """Whether a request fits into its queue's quota. A queue may always run one."""
        queue = self._queue_of[request]
        return not queue.running or queue.charged + self._sizes[request].charge <= queue.quota

    def _room(self, view: View, request: RequestView) -> bool:
        """Whether a request's queue can borrow enough for it."""
        if not self._whole or not view.running:
            return True
        return sum(queue.charged for queue in self.queues) + self._sizes[request].charge <= view.kv_total_tokens

    def _admit(self, view: View, request: RequestView, closed: set[str | None]) -> Generator[Action, Outcome, bool]:
        """Try to admit a request. False if no other is to be tried in this step."""
        outcome = yield from want(view, request)
        if outcome:
            queue = self._queue_of[request]
            queue.lanes.discard(request)
            queue.charged += self._sizes[request].charge
            queue.running += 1
            self._admitted_at[request] = view.now
            self._claims.pop(request, None)
            return True
        closed.add(request.adapter)
        self._asynchronous = self._asynchronous or view.adapter(request).tier == "loading"
        return outcome.why in ("slots", "adapter", "in_use")

    def _claim(self, view: View) -> None:
        """Drop claims that are settled; let the first request of each queue claim a slot when it is time."""
        for request, claim in list(self._claims.items()):
            on_its_way = view.adapter(request).tier in ("gpu", "loading")
            holder = view.on_gpu.get(claim.adapter)  # None: an operator removed it
            if on_its_way or (not view.slot_obtainable and (holder is None or not holder.references)):
                del self._claims[request]
        if self._patience_s is None or view.slot_obtainable:
            return
        ends: dict[str, float] | None = None
        for queue in self.queues:
            first = queue.lanes.first()
            if first is None or first[1] in self._claims or view.now - first[1].arrival < self._patience_s:
                continue
            request = first[1]
            if view.adapter(request).tier in ("gpu", "loading") or not self._within(request):
                continue
            ends = self._ends(view) if ends is None else ends
            claimed = {claim.adapter for claim in self._claims.values()}
            open_ends = [(end, name) for name, end in ends.items() if name not in claimed]
            if open_ends:
                end, name = min(open_ends)
                self._claims[request] = Claim(name, end)

    def _ends(self, view: View) -> dict[str, float]:
        """Second at which the running requests of an adapter are expected to have ended, by adapter."""
        ends: dict[str, float] = {}
        for request in view.running:
            if request.adapter is not None and not view.adapters[request.adapter].pinned:
                size = self._sizes.get(request)  # None: it ran before this policy was put in
                output = request.max_tokens if size is None else size.output
                left = max(1.0, output - request.generated_tokens)
                ends[request.adapter] = max(ends.get(request.adapter, 0.0), view.now + self._token_s * left)
        return ends

    def _may_pass(self, view: View, request: RequestView) -> bool:
        """Whether a request delays no claim: its slot is not claimed, or it is expected to end in time."""
        end = view.now + self._token_s * self._sizes[request].output
        return all(
            claim.adapter != request.adapter or holder is request or end <= claim.free_at
            for holder, claim in self._claims.items()
        )

    def _fetch(self, view: View) -> Schedule:
        """Bring the adapters of the requests that have waited longest one tier nearer."""
        for request in list(islice(view.first_waiting("off"), self._ahead)):
            adapter, name = view.adapter(request), request.adapter
            if name is None or adapter.prefetching:
                continue
            if adapter.tier != "host":
                yield Prefetch(name)
            elif self._asynchronous and view.kv_free_tokens >= adapter.kv_tokens + request.prompt_tokens:
                unwanted = [(self.evict(idle, view), str(idle.name)) for idle in view.idle() if not idle.waiting]
                if not view.free_slots and unwanted:
                    yield Evict(min(unwanted)[1])
                if view.free_slots:
                    yield Load(name)
