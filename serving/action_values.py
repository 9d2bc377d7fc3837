"""action_values: what a policy's action holds, as values of Python's own types.

A subclass of ``int`` may compare as it likes, one of ``str`` may have a hash of its own, and an object with a
``request_id`` may give another at each look. So nothing but Python's own ``int``, ``float`` and ``str`` gets from an
action to the ledger or to the records. What a policy yields is read once, here.
"""

from __future__ import annotations

from operator import index
from typing import Any

from loratory.serving.actions import Admit, Preempt, Reject, Wake
from loratory.serving.views import RequestView


def exact(action: Any) -> Any:
    """The same action with values of Python's own types.

    A whole number or a real number becomes an ``int`` or a ``float``, whatever its class (numpy's, for one), and a
    ``str`` of a subclass becomes a ``str``. What is no `RequestView`, or no name, becomes None, which is refused
    ("unknown"); what is no number of tokens becomes 0, which is refused ("budget").

    Raises what an author must mend: TypeError, ValueError or OverflowError for values that mean nothing, and whatever
    the code of a value of the policy's own class raises.
    """
    kind = type(action)
    if kind is Admit:
        request, tokens = action
        return Admit(_request(request), None if tokens is None else _tokens(tokens))
    if kind is Wake:
        at, steps = action
        return Wake(None if at is None else real(at), None if steps is None else _steps(steps))
    if kind is Preempt:
        (request,) = action
        return Preempt(_request(request))
    if kind is Reject:
        request, why = action
        if not issubclass(type(why), str):
            raise TypeError(f"its why is of type {type(why).__name__}: give a text")
        return Reject(_request(request), str.__str__(why))
    (name,) = action
    return action if type(name) is str else kind(_name(name))


def _request(value: Any) -> Any:
    return value if type(value) is RequestView else None


def _name(value: Any) -> str | None:
    kind = type(value)
    if issubclass(kind, str):
        return str.__str__(value)
    if kind.__hash__ is None:
        raise TypeError(f"its adapter is of type {kind.__name__}: give a name")
    return None


def _tokens(value: Any) -> Any:
    kind = type(value)
    if hasattr(kind, "__index__"):
        return whole(value)
    return real(value) if hasattr(kind, "__float__") else 0


def _steps(value: Any) -> int:
    return whole(value) if hasattr(type(value), "__index__") else int(real(value))


# `loratory.serving.policy_calls` knows these two by name: a value of a policy's own class runs its code in them.


def whole(value: Any) -> int:
    """A whole number as an ``int``: what a subclass overrides does not count."""
    return int.__index__(value) if issubclass(type(value), int) else index(value)


def real(value: Any) -> float:
    """A real number as a ``float``. Raises TypeError for what is no number, texts included."""
    kind = type(value)
    if issubclass(kind, float):
        return float.__float__(value)
    if issubclass(kind, int):
        return int.__float__(value)
    if not hasattr(kind, "__float__"):
        raise TypeError(f"a value of type {kind.__name__} is no number")
    return float(value)
