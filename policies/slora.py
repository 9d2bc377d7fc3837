"""slora: S-LoRA's router, which admits only what will fit until the end."""

from __future__ import annotations

from loratory.policy import Decisive, Evict, InputError, Policy, Reject, Reservation, Schedule, View, Wake, want


class SLora(Policy):
    """First come, first served; stops at the first request that does not fit until it ends (see `Reservation`). No
    adapter cache: an adapter leaves when no running request uses it. A request that is too large for the rule, which
    S-LoRA would not accept, runs alone.

    Not modelled:
        the prefetch of the next batch's adapters to the GPU; prefetch=N brings them to host memory.

    Parameters:
        decode_steps: decode steps after an admission before the router looks at the queue again.
        max_requests: most running requests.
        min_prefill_tokens: prompt tokens that one look may admit: this, or a sixth of the pool if that is more.
        tokens_per_rank: KV tokens set aside for each unit of rank of the adapters in use; by default what they take of
            the pool. S-LoRA sets aside 4 even where adapters have memory of their own.
        abort: reject what has waited too long, and serve the newest first while more requests come than are admitted.
        objective_s: time to the first token that ``abort`` tries to keep, in seconds.
        margin_s: seconds before that time at which a waiting request is rejected.
    """

    source = "S-LoRA, MLSys 2024, slora/server/router: req_queue.py, abort_req_queue.py and manager.py"
    decides_by: tuple[Decisive, ...] = ()

    def __init__(
        self,
        decode_steps: int = 10,
        max_requests: int = 1000,
        min_prefill_tokens: int = 3072,
        tokens_per_rank: int | None = None,
        abort: bool = False,
        objective_s: float = 6.0,
        margin_s: float = 0.5,
    ) -> None:
        self.reservation = Reservation(decode_steps, max_requests, min_prefill_tokens, tokens_per_rank)
        if objective_s <= 0 or margin_s < 0:
            raise InputError(
                f"slora: objective_s is {objective_s:g} and margin_s {margin_s:g}: give an objective_s above 0 and a "
                "margin_s of 0 or more"
            )
        self.abort = abort
        self.objective_s = objective_s
        self.margin_s = margin_s
        self.load = _Load()
        self._woken = 0
        """The decode step of the last `Wake`."""

    def schedule(self, view: View) -> Schedule:
        """Drop unused adapters; when it is time, admit from the front while requests fit."""
        for adapter in view.idle():
            if adapter.name is not None and not (adapter.fresh and adapter.waiting):
                yield Evict(adapter.name)
        reservation = self.reservation
        wait = reservation.steps_left(view)
        if wait:
            if view.waiting and self._wakes(view, wait):
                yield Wake(after_steps=wait)
            return
        if self.abort:
            yield from self._give_up(view)
        if not view.waiting:
            return
        reservation.look(view)
        newest_first = self.abort and self.load.high
        admitted = 0
        for request in reversed(list(view.waiting)) if newest_first else view.waiting:
            if not reservation.fits(view, request) and view.running:
                break
            outcome = yield from want(view, request)
            if not outcome:
                break
            reservation.add(view, request)
            admitted += 1
        self.load.admitted(admitted, len(view.waiting))
        if view.waiting:
            wait = reservation.steps_left(view) if admitted else 0
            if self._wakes(view, wait or 1):
                yield Wake(after_steps=wait or 1)

    def _wakes(self, view: View, steps: int) -> bool:
        """Whether to ask for a call after ``steps`` decode steps; false if that call was asked for already."""
        woken = view.decode_steps + steps
        if woken == self._woken:
            return False
        self._woken = woken
        return True

    def _give_up(self, view: View) -> Schedule:
        """Reject what has waited too long, after measuring the load."""
        self.load.look(view)
        for request in view.waiting:
            waited = view.now - request.arrival
            if waited + self.margin_s < self.objective_s:
                break
            yield Reject(request, f"waited {waited:.1f} s of {self.objective_s:g}")


class _Load:
    """How S-LoRA's early abort detects overload: it compares smoothed arrivals per look with smoothed admissions.

    The router looks at every step it may admit at, and every 10 ms when idle. Both averages are cut to whole numbers.
    """

    idle_s = 0.01

    def __init__(self) -> None:
        self._rate = self._batch = 1
        self._left = 0
        self._at = 0.0
        self._steps = 0

    @property
    def high(self) -> bool:
        """Whether more requests have come than the router admits at a time."""
        return self._rate >= self._batch

    def look(self, view: View) -> None:
        """The router looks at the queue; before that it looked at an empty one as often as it could."""
        missed = view.decode_steps - self._steps if view.running else int((view.now - self._at) / self.idle_s)
        for _ in range(min(missed - 1, 20)):  # by then the rate changes no more
            self._arrive(0)
        self._arrive(len(view.waiting))
        self._at, self._steps = view.now, view.decode_steps

    def _arrive(self, waiting: int) -> None:
        self._rate = int(0.7 * (waiting - self._left) + 0.3 * self._rate)

    def admitted(self, count: int, left: int) -> None:
        """Count a look: ``count`` requests were admitted, ``left`` still wait."""
        if count:
            self._batch = max(int(0.7 * count + 0.3 * self._batch), 1)
            self._left = left
