"""policy_asks: where the engine asks a policy: one plain function for each question.

`loratory.serving.policy_calls` finds these functions on a stack, and reads their variables. So this file is never
compiled: a compiled function is on no stack.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, Protocol

from loratory.serving.actions import Outcome
from loratory.serving.engine_view import View
from loratory.serving.policy import PolicyLike


class Answerer(Protocol):
    """Carries out what a policy yields."""

    def answer(self, now: float, action: Any, number: int) -> Outcome:
        """Carry out one action, the one of this ``number`` since the policy was asked."""

    def blame(self, now: float, error: BaseException) -> NoReturn:
        """Raise what an exception out of the policy's code means."""


def schedule_of(policy: PolicyLike, view: View) -> Any:
    """What the policy's ``schedule`` returns."""
    return policy.schedule(view)


def victim_of(victim: Callable[[View], Any], view: View) -> Any:
    """What the policy's ``victim`` returns."""
    return victim(view)


def answer_all(send: Callable[[Any], Any], answerer: Answerer, now: float) -> None:
    """Carry out the actions of a schedule, by its ``send``, and send it the outcome of each, until it ends."""
    answer = answerer.answer
    outcome: Any = None
    actions = 0
    at_work = True  # the policy is; else the engine, its sinks and its backend
    while True:
        try:
            action = send(outcome)
        except StopIteration:
            return
        except BaseException as error:
            answerer.blame(now, error)
        actions += 1
        at_work = False
        outcome = answer(now, action, actions)
        at_work = True  # noqa: F841 - read from outside, as `actions` is
