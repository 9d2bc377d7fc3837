"""Member calls: what is wrong with how a guest's method is written: its arguments, a yield, async."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from loratory.serving.misspelt_members import can_take


def takes_other(key: str, call: Callable[..., Any], *arguments: str) -> str:
    """What is wrong where a method cannot be called with ``arguments``, in a sentence; else empty."""
    if can_take(call, len(arguments)):
        return ""
    given = ", ".join(arguments)
    there = ", ".join(inspect.signature(getattr(call, "__func__", call), follow_wrapped=False).parameters)
    wrong = "lacks self" if there == given else f"is called as {key}({given})"
    return f"its {key}({there}) {wrong}: write def {key}(self, {given})"


def runs_no_code(key: str, call: Callable[..., Any]) -> str:
    """What is wrong with a generator or a coroutine: it would be made and thrown away, and none of its code run."""
    if inspect.isgeneratorfunction(call) or inspect.isasyncgenfunction(call):
        return f"its {key}() has a yield, so that calling it runs none of its code: take the yield out"
    if inspect.iscoroutinefunction(call):
        return f"its {key}() is async, so that calling it runs none of its code: write def without async"
    return ""
