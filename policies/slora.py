"""slora: S-LoRA's router, which admits only what will fit until the end."""

from __future__ import annotations

from bisect import insort

from serving.policy import Event, Evict, InputError, Reject, RequestView, Schedule, Served, View, Wake, want


class SLora:
    """First come, first served; stops at the first request that does not fit. A request fits when the KV pool holds all
    running requests at their largest, assuming each runs to max_tokens. Admission is considered when the batch is empty
    and after every few decode steps. No adapter cache: an adapter leaves when no running request uses it. A request too
    large for the rule, which S-LoRA would not take, runs alone.

    Parameters:
        decode_steps: decode steps between two admissions.
        max_requests: most running requests.
        min_prefill_tokens: prompt tokens one admission may bring are this or a sixth of the pool, whichever is more.
        abort: under overload serve the newest first and reject what has waited too long.
        objective_s: the first-token objective behind ``abort``.
        margin_s: seconds before the objective at which a waiting request is given up.
    """

    observes = (Served,)
    source = "S-LoRA, MLSys 2024, slora/server/router/req_queue.py and manager.py; admission rule from LightLLM"

    def __init__(
        self,
        decode_steps: int = 10,
        max_requests: int = 1000,
        min_prefill_tokens: int = 3072,
        abort: bool = False,
        objective_s: float = 6.0,
        margin_s: float = 0.5,
    ) -> None:
        if decode_steps < 1 or max_requests < 1:
            raise InputError("slora: decode_steps and max_requests are at least 1")
        self.decode_steps = decode_steps
        self.max_requests = max_requests
        self.min_prefill_tokens = min_prefill_tokens
        self.abort = abort
        self.objective_s = objective_s
        self.margin_s = margin_s
        self._steps = 0
        self._woken = False

    def observe(self, event: Event) -> None:
        """Count decode steps."""
        if isinstance(event, Served):
            self._steps += event.steps

    def schedule(self, view: View) -> Schedule:
        """Drop unused adapters; when it is time, admit from the front while requests fit."""
        for adapter in view.idle():
            if adapter.name is not None and not adapter.waiting:
                yield Evict(adapter.name)
        if len(view.running) and self._steps < self.decode_steps:
            if not self._woken:
                self._woken = True
                yield Wake(after_steps=self.decode_steps - self._steps)
            return
        self._steps = 0
        self._woken = False
        if not view.waiting:
            return
        overloaded = False
        if self.abort:
            for request in view.waiting:
                if view.now - request.arrival + self.margin_s < self.objective_s:
                    break
                overloaded = True
                yield Reject(request, f"waited {view.now - request.arrival:.1f} s of {self.objective_s:g}")
        sizes = [(request.generated_tokens - request.max_tokens, self._length(request)) for request in view.running]
        sizes.sort()
        cells = {name: view.adapters[name].kv_tokens for name in self._adapters(view)}
        brought = 0
        most = max(view.kv_total_tokens // 6, self.min_prefill_tokens)
        for request in reversed(list(view.waiting)) if overloaded else view.waiting:
            new = dict(cells)
            if request.adapter is not None:
                new[request.adapter] = view.adapters[request.adapter].kv_tokens
            trial = list(sizes)
            insort(trial, (1 - request.max_tokens, request.prompt_tokens + 1))
            brought += request.prompt_tokens
            fits = len(trial) <= self.max_requests and brought <= most
            fits = fits and self._largest(trial) < view.kv_total_tokens - sum(new.values())
            if not fits and view.running:
                break
            outcome = yield from want(view, request)
            if not outcome:
                break
            sizes, cells = trial, new
        self._woken = True
        yield Wake(after_steps=self.decode_steps)

    def _adapters(self, view: View) -> set[str]:
        return {request.adapter for request in view.running if request.adapter is not None}

    def _length(self, request: RequestView) -> int:
        return request.prompt_tokens + request.generated_tokens

    def _largest(self, sizes: list[tuple[int, int]]) -> int:
        """The most KV tokens at any time until all have ended; ``sizes`` are (-tokens left, length now), sorted."""
        largest = total = 0
        for count, (left, length) in enumerate(sizes, start=1):
            total += length
            largest = max(largest, -left * count + total)
        return largest
