"""Reserved: any policy behind LightLLM's admission, which lets in only what will fit until it ends."""

from __future__ import annotations

from typing import Any

from loratory.serving.policy import Admit, Outcome, Policy, Schedule, View, Wake
from loratory.serving.reservation import Reservation

_REFUSED = Outcome(False, "reserve")


class Reserved:
    """The wrapped policy decides who is next; what it wants to admit is refused ("reserve") unless the router looks at
    the queue now and the request fits to its end (see `Reservation`). A request too large for the rule runs alone.

    Everything else is the policy's own: what it is told, its victim, its bound. It is asked as often as without, so
    that it sees arrivals when they come.

        policy = Reserved(FairShare())      # as a spec: fair_share:reserve=true
    """

    def __init__(self, policy: Policy, reservation: Reservation | None = None) -> None:
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
