"""Reservation: LightLLM's admission rule, for what fits until it ends."""

from __future__ import annotations

from bisect import insort

from loratory.errors import InputError
from loratory.serving.compiling import mypyc_attr
from loratory.serving.engine_view import View
from loratory.serving.views import RequestView


@mypyc_attr(allow_interpreted_subclasses=True)
class Reservation:
    """A request is admitted if it and all running requests fit the KV pool until the last of them ends, even if each
    generates its ``max_tokens``.

    The router looks at the queue when nothing runs, and once ``decode_steps`` decode steps have passed since it last
    admitted a request; from then on it looks at every step until it admits one. One look admits prompts of at most
    max(pool / 6, ``min_prefill_tokens``) tokens together, and at most ``max_requests`` run. Tokens are set aside for
    the adapters in use: what they take of the pool, or ``tokens_per_rank`` for each unit of rank where that is given.

        if not reservation.steps_left(view):
            reservation.look(view)
            for request in ...:
                if not reservation.fits(view, request): break
                ...admit it...
                reservation.add(view, request)

    Source: the router of LightLLM, S-LoRA and VTC (slora/server/router/manager.py and req_queue.py).
    """

    __slots__ = (
        "_added",
        "_bound",
        "_last",
        "_max_prompt_tokens",
        "_prompt_tokens",
        "_sets_aside",
        "_sizes",
        "_steps",
        "_total",
        "max_requests",
        "min_prefill_tokens",
        "tokens_per_rank",
    )

    def __init__(
        self,
        decode_steps: int = 10,
        max_requests: int = 1000,
        min_prefill_tokens: int = 3072,
        tokens_per_rank: int | None = None,
    ) -> None:
        if decode_steps < 1 or max_requests < 1:
            raise InputError(f"decode_steps is {decode_steps} and max_requests {max_requests}: give 1 or more for each")
        if min_prefill_tokens < 0 or (tokens_per_rank is not None and tokens_per_rank < 0):
            raise InputError(
                f"min_prefill_tokens is {min_prefill_tokens} and tokens_per_rank {tokens_per_rank}: give 0 or more"
            )
        self._steps = decode_steps
        self.max_requests: int = max_requests
        """Requests that run at once, at most."""
        self.min_prefill_tokens: int = min_prefill_tokens
        """Prompt tokens that one look may always bring together, however small the pool."""
        self.tokens_per_rank: int | None = tokens_per_rank
        """KV tokens set aside for each unit of rank of the adapters in use; None: what they take of the pool."""
        self._last: int | None = None
        """The decode step of the last admission; None before the first look."""
        self._total = 0
        """Tokens that the KV pool holds."""
        self._max_prompt_tokens = 0
        """Prompt tokens that one look admits, at most."""
        self._sets_aside = tokens_per_rank is not None
        """Whether tokens are set aside for adapters."""
        self._prompt_tokens = 0
        """Prompt tokens admitted in this look."""
        self._bound = 0
        """An upper limit of the KV tokens of the running requests; some of those counted may have ended since."""
        self._sizes: list[tuple[int, int]] | None = None
        """(minus the tokens left, tokens held) of the running requests, sorted; None until this look needs them."""
        self._added: list[RequestView] = []
        """The requests admitted in this look."""

    def steps_left(self, view: View) -> int:
        """Decode steps until the router looks at the queue again; 0 when it is to look now."""
        if self._last is None:
            return 0
        left = self._last + self._steps - view.decode_steps
        return left if left > 0 and view.running else 0

    def look(self, view: View) -> None:
        """Begin a look at the queue: what the last one admitted is forgotten."""
        self._prompt_tokens = 0
        self._sizes = None
        self._added = []
        if self._last is None:  # the first look, perhaps at an engine that has been running
            self._total = view.kv_total_tokens
            self._max_prompt_tokens = max(self._total // 6, self.min_prefill_tokens)
            self._sets_aside = self._sets_aside or view.memory == "unified"
            self._bound = self._at_largest(view)
            self._last = view.decode_steps - self._steps

    def fits(self, view: View, new: RequestView) -> bool:
        """Whether a waiting request fits beside those that run, until all of them end."""
        if len(view.running) >= self.max_requests:
            return False
        prompt = new.prompt_tokens
        if self._prompt_tokens + prompt > self._max_prompt_tokens:
            return False
        room = self._total - self._set_aside(view, new.adapter) if self._sets_aside else self._total
        if self._bound + prompt + new.max_tokens < room:
            return True  # even if all are at their largest at once
        if self._sizes is None:
            self._bound = self._at_largest(view)
            added = {request.request_id for request in self._added}
            running = [
                (r.generated_tokens + 1 - r.max_tokens, r.prompt_tokens + r.generated_tokens)
                for r in view.running
                if r.request_id not in added
            ]
            self._sizes = sorted([*running, *map(_joining, self._added)])
        return self._peak(_joining(new)) < room

    def add(self, view: View, request: RequestView) -> None:
        """Count a request that was admitted in this look."""
        self._added.append(request)
        if self._sizes is not None:
            insort(self._sizes, _joining(request))
        prompt = request.prompt_tokens
        self._bound += prompt + request.max_tokens
        self._prompt_tokens += prompt
        self._last = view.decode_steps

    def _peak(self, new: tuple[int, int]) -> int:
        """The most KV tokens held at one time until all have ended, with one more request.

        Every request grows by one token a step, so the sum is largest just before one of them ends. Sorted by the
        tokens left, most first, the requests that still run when the i-th ends are the first i:

            tokens left, held     A: 5, 10     B: 3, 4     C: 1, 7
            C ends in 1 step      A, B and C hold (10 + 4 + 7) + 3 * 1 = 24     the peak
            B ends in 3 steps     A and B hold        (10 + 4) + 2 * 3 = 20
            A ends in 5 steps     A holds                   10 + 1 * 5 = 15
        """
        assert self._sizes is not None
        sizes = self._sizes.copy()
        insort(sizes, new)
        peak = held = 0
        for count, (minus_left, length) in enumerate(sizes, start=1):
            held += length
            if held - minus_left * count > peak:
                peak = held - minus_left * count
        return peak

    def _at_largest(self, view: View) -> int:
        """KV tokens of all running requests, if each were at its largest."""
        return sum([request.prompt_tokens + request.max_tokens for request in view.running])

    def _set_aside(self, view: View, new: str | None) -> int:
        """KV tokens to set aside for the adapters in use and a new one."""
        names = [name for name, adapter in view.on_gpu.items() if adapter.references]
        if new is not None and not view.adapters[new].references:
            names.append(new)
        if self.tokens_per_rank is not None:
            return self.tokens_per_rank * sum([view.adapters[name].rank for name in names])
        return sum([view.adapters[name].kv_tokens for name in names])


def _joining(request: RequestView) -> tuple[int, int]:
    """(minus the tokens left, tokens held) of a request right after its prefill."""
    done = request.generated_tokens + 1
    return done - request.max_tokens, request.prompt_tokens + done
