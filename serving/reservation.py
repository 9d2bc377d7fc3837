"""Reservation: LightLLM's admission, which lets in only what will fit until it ends; Reserved: any policy behind it."""

from __future__ import annotations

from bisect import insort
from typing import Any

from loratory.errors import InputError
from loratory.serving.actions import Admit, Outcome, Schedule, Wake
from loratory.serving.engine_view import View
from loratory.serving.policy import PolicyLike
from loratory.serving.views import RequestView


class Reservation:
    """A request is admitted when the KV pool holds all running requests at their largest, each going to max_tokens.

    The router looks at the queue when nothing runs, and from ``decode_steps`` decode steps after it last admitted; from
    then on at every step until it admits. One look brings prompts of at most max(pool / 6, ``min_prefill_tokens``)
    tokens together, and at most ``max_requests`` run. Adapters in use are set aside: what they take of the pool, or
    ``tokens_per_rank`` for a unit of their ranks where that is given.

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
        "_brings",
        "_brought",
        "_last",
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
        self._total = 0
        """Tokens the KV pool holds, and of them the most prompt tokens of one look."""
        self._brings = 0
        self._sets_aside = tokens_per_rank is not None
        """Whether adapters are set aside."""
        self._brought = 0
        self._bound = 0
        """At least what those who run hold if each is at its largest; who has ended since may still count."""
        self._sizes: list[tuple[int, int]] | None = None
        self._added: list[RequestView] = []
        """Those admitted at this look."""

    def steps_left(self, view: View) -> int:
        """Decode steps until the router looks at the queue again; 0 when it is to look now."""
        if self._last is None:
            return 0
        left = self._last + self._steps - view.decode_steps
        return left if left > 0 and view.running else 0

    def look(self, view: View) -> None:
        """Begin a look at the queue: what the last one admitted is forgotten."""
        self._brought = 0
        self._sizes = None
        self._added = []
        if self._last is None:  # the first look, perhaps at an engine that has been running
            self._total = view.kv_total_tokens
            self._brings = max(self._total // 6, self.min_prefill_tokens)
            self._sets_aside = self._sets_aside or view.memory == "unified"
            self._bound = self._at_largest(view)
            self._last = view.decode_steps - self._steps

    def fits(self, view: View, new: RequestView) -> bool:
        """Whether a waiting request fits beside those that run, until all of them end."""
        if len(view.running) >= self.max_requests:
            return False
        prompt = new.prompt_tokens
        if self._brought + prompt > self._brings:
            return False
        room = self._total - self._set_aside(view, new.adapter) if self._sets_aside else self._total
        if self._bound + prompt + new.max_tokens < room:
            return True  # even with all at their largest at once
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
        self._brought += prompt
        self._last = view.decode_steps

    def _peak(self, new: tuple[int, int]) -> int:
        """The most KV tokens held at one time until all have ended, with one more request.

        When the i-th longest to run ends, the i that run hold their lengths now and i times what it had left.
        """
        assert self._sizes is not None
        sizes = self._sizes.copy()
        insort(sizes, new)
        largest = held = 0
        for count, (minus_left, length) in enumerate(sizes, start=1):
            held += length
            if held - minus_left * count > largest:
                largest = held - minus_left * count
        return largest

    def _at_largest(self, view: View) -> int:
        """KV tokens of all that run, if each were at its largest."""
        return sum([request.prompt_tokens + request.max_tokens for request in view.running])

    def _set_aside(self, view: View, new: str | None) -> int:
        """KV tokens not to be counted on: those of the adapters in use and a new one."""
        names = [name for name, adapter in view.on_gpu.items() if adapter.references]
        if new is not None and not view.adapters[new].references:
            names.append(new)
        if self.tokens_per_rank is not None:
            return self.tokens_per_rank * sum([view.adapters[name].rank for name in names])
        return sum([view.adapters[name].kv_tokens for name in names])


def _joining(request: RequestView) -> tuple[int, int]:
    """(minus the tokens left, length) right after the prefill that a request is admitted to."""
    done = request.generated_tokens + 1
    return done - request.max_tokens, request.prompt_tokens + done


_REFUSED = Outcome(False, "reserve")


class Reserved:
    """The wrapped policy decides who is next; what it wants to admit is refused ("reserve") unless the router looks at
    the queue now and the request fits to its end (see `Reservation`). A request too large for the rule runs alone.

    Everything else is the policy's own: what it is told, its victim, its bound. It is asked as often as without, so
    that it sees arrivals when they come.

        policy = Reserved(FairShare())      # as a spec: fair_share:reserve=true
    """

    def __init__(self, policy: PolicyLike, reservation: Reservation | None = None) -> None:
        self._policy = policy
        self._reservation = Reservation() if reservation is None else reservation

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def schedule(self, view: View) -> Schedule:
        """The policy's actions, without the admissions that must wait."""
        reservation = self._reservation
        looks = not reservation.steps_left(view)
        if looks:
            reservation.look(view)
        actions = self._policy.schedule(view)
        outcome: Outcome | None = None
        refused = False
        while True:
            try:
                action = actions.send(outcome)  # type: ignore[arg-type]
            except StopIteration:
                break
            if not isinstance(action, Admit):
                outcome = yield action
            elif looks and (not view.running or reservation.fits(view, action.request)):
                outcome = yield action
                if outcome:
                    reservation.add(view, action.request)
            else:
                outcome, refused = _REFUSED, True
        if refused:  # at the next look it may fit: the ends of those who run are nearer by then
            yield Wake(after_steps=max(1, reservation.steps_left(view)))
