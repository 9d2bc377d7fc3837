"""slora: S-LoRA's router, which admits only what will fit until the end."""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection

from serving.policy import Evict, InputError, Reject, RequestView, Schedule, View, Wake, want


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
        self._since = 0
        self._woken = False

    def schedule(self, view: View) -> Schedule:
        """Drop unused adapters; when it is time, admit from the front while requests fit."""
        for adapter in view.idle():
            if adapter.name is not None and not adapter.waiting:
                yield Evict(adapter.name)
        steps = view.decode_steps - self._since
        if view.running and steps < self.decode_steps:
            if not self._woken:
                self._woken = True
                yield Wake(after_steps=self.decode_steps - steps)
            return
        self._since = view.decode_steps
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
        brought = 0
        most = max(view.kv_total_tokens // 6, self.min_prefill_tokens)
        peak = _Peak(view.running)
        for request in reversed(list(view.waiting)) if overloaded else view.waiting:
            brought += request.prompt_tokens
            room = view.kv_total_tokens - self._adapter_tokens(view, request.adapter)
            fits = len(view.running) < self.max_requests and brought <= most and peak.fits(request, room)
            if not fits and view.running:
                break
            outcome = yield from want(view, request)
            if not outcome:
                break
            peak.add(request)
        self._woken = True
        yield Wake(after_steps=self.decode_steps)

    def _adapter_tokens(self, view: View, new: str | None) -> int:
        """KV tokens that the adapters in use and a new one take."""
        if view.memory != "unified":
            return 0
        used = sum(a.kv_tokens for a in view.on_gpu.values() if a.references)
        if new is None or view.adapters[new].references:
            return used
        return used + view.adapters[new].kv_tokens


class _Peak:
    """The most KV tokens that running requests can need at one time until all have ended, each at its max_tokens."""

    def __init__(self, running: Collection[RequestView]) -> None:
        self._running = list(running)
        self._added: list[RequestView] = []
        self._bound = sum([request.prompt_tokens + request.max_tokens for request in self._running])
        self._sizes: list[tuple[int, int]] | None = None

    def fits(self, new: RequestView, room: int) -> bool:
        """Whether a new request's peak beside them is below ``room``."""
        if self._bound + new.prompt_tokens + new.max_tokens < room:
            return True  # even if all were at their largest at once
        if self._sizes is None:
            now = [(r.generated_tokens - r.max_tokens, r.prompt_tokens + r.generated_tokens) for r in self._running]
            self._sizes = sorted(now + [self._first(request) for request in self._added])
        trial = self._sizes.copy()
        insort(trial, self._first(new))
        largest = total = 0
        for count, (left, length) in enumerate(trial, start=1):
            total += length
            largest = max(largest, total - left * count)
        return largest < room

    def add(self, request: RequestView) -> None:
        """A request was admitted."""
        self._added.append(request)
        self._bound += request.prompt_tokens + request.max_tokens
        if self._sizes is not None:
            insort(self._sizes, self._first(request))

    def _first(self, request: RequestView) -> tuple[int, int]:
        """(-tokens left, length) after its first token."""
        return 1 - request.max_tokens, request.prompt_tokens + 1
