"""WithReservation: any policy behind LightLLM's admission rule."""

from __future__ import annotations

from typing import Any

from loratory.serving.actions import Admit, Outcome, Schedule, Wake
from loratory.serving.engine_view import View
from loratory.serving.policy import PolicyLike
from loratory.serving.reservation import Reservation
from loratory.serving.views import RequestView

_REFUSED = Outcome(False, "reserve")


class WithReservation:
    """A policy whose admissions are refused ("reserve") unless the router looks at the queue now and the request fits
    until it ends (see `Reservation`). A request that is too large for the rule runs alone.

    Everything else is the policy's own: which request is next, the events it is told, its victim, its bound. It is
    asked as often as without the rule, so that it sees arrivals when they come.

        policy = WithReservation(FairShare())      # as a spec: fair_share:reserve=true
    """

    def __init__(self, policy: PolicyLike, reservation: Reservation | None = None) -> None:
        self._policy = policy
        self._reservation = Reservation() if reservation is None else reservation

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def schedule(self, view: View) -> Schedule:
        """The policy's actions, without the admissions that the rule refuses."""
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
            if type(action) is not Admit or type(action.request) is not RequestView:  # the engine refuses such a one
                outcome = yield action
            elif looks and (not view.running or reservation.fits(view, action.request)):
                outcome = yield action
                if outcome.ok:
                    reservation.add(view, action.request)
            else:
                outcome, refused = _REFUSED, True
        if refused:  # it may fit at the next look, when the running requests have fewer tokens left
            yield Wake(after_steps=max(1, reservation.steps_left(view)))
