"""policy_calls: whose code is at work on a stack: where a policy or router is called, and what is inside that call."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from loratory.errors import shortened
from loratory.serving.guest_errors import guest

_OURS = "loratory"
"""The package whose code is no policy's."""

_ASKS = "loratory.serving.policy_asks"

_ENTRIES = {
    _ASKS: {"schedule_of", "answer_all", "victim_of"},
    "loratory.serving.action_values": {"whole", "real"},
    "loratory.serving.event_dispatch": {
        "Announcer.policy_handler.<locals>.tell_policy",
        "Announcer.scorer.<locals>.score",
    },
    "loratory.serving.guest_errors": {"guest"},
    "loratory.sim.gateway": {"Gateway.route", "Gateway._index", "Gateway._changed", "Gateway._apply"},
}
"""The functions that call a policy's code, or a router's, by module."""

_ROUTERS_CALLER = "loratory.sim.gateway"

_PASSING = tuple(
    f"loratory.serving.{name}"
    for name in ("reservation", "reserved", "sorted_queue", "lanes", "fairness", "want", "wait_index", "engine_view")
)
_PASSING += ("loratory.serving.policy_members", "loratory.serving.misspelt_members", "loratory.serving.names_read")
_PASSING += ("loratory.serving.member_calls",)
_PASSING += tuple(f"loratory.experiment.{name}" for name in ("policy_spec", "router_spec", "class_spec"))
_PASSING += tuple(f"loratory.experiment.{name}" for name in ("class_parameters", "router_members"))
"""Modules of ours whose functions pass the call on: what reads a policy's members when it is loaded, and tools that a
policy may hand out as its own ``schedule``, and that call its code again, such as a comparison of its orders. They call
no sink and no backend."""

PolicyCall = tuple[FrameType, FrameType, object]
"""Who called, what is running, how many answers came before."""


def policy_call(frames: Iterable[FrameType]) -> PolicyCall | None:
    """The call of a policy's code that is in progress, or None.

    ``frames`` from the innermost out. A function of `_ENTRIES` is among them, and right inside it code that is not
    ours. Generators of ours and functions of `_PASSING` between the two pass the call on. Where the policy calls us,
    and we call it again (its evict in `want`), the outermost call counts: that is the one without an answer.
    """
    inside: list[FrameType] = []
    found: PolicyCall | None = None
    for frame in frames:
        module = frame.f_globals.get("__name__", "")
        if module in _ENTRIES and frame.f_code.co_qualname in _ENTRIES[module] and frame.f_locals.get("at_work", True):
            for inner in reversed(inside):
                if not _is_ours(inner):
                    found = frame, inner, frame.f_locals.get("actions")
                    break
                if not inner.f_code.co_flags & inspect.CO_GENERATOR and inner.f_globals.get("__name__") not in _PASSING:
                    break
        inside.append(frame)
    return found


def consultation(frames: Iterable[FrameType]) -> FrameType | None:
    """Where the actions of one schedule() are carried out, whoever is at work inside; None where none is."""
    for frame in frames:
        if frame.f_code.co_qualname == "answer_all" and frame.f_globals.get("__name__") == _ASKS:
            return frame
    return None


def named(call: PolicyCall, otherwise: str) -> str:
    """Whose code a call is of: ``policy fifo``, ``router mine.py:Mine``; ``otherwise`` where the call does not tell."""
    frame = call[0]
    module = frame.f_globals.get("__name__")
    if module == _ROUTERS_CALLER:
        return f"router {shortened(frame.f_locals['self']._name, 100)}"
    if module == guest.__module__ and frame.f_locals["word"] == "router":
        return f"router {shortened(frame.f_locals['policy'], 100)}"
    return otherwise


def is_shipped(spec: str, word: str = "policy") -> bool:
    """Whether a spec names a policy or router that comes with Loratory."""
    head = spec.partition(":")[0]
    room = Path("sim", "routers") if word == "router" else Path("policies")
    with suppress(OSError):  # a name that is too long for a file
        return any((folder / room / f"{head}.py").is_file() for folder in _folders())
    return False


def is_our_class(kind: type) -> bool:
    """Whether a class is Loratory's own."""
    return kind.__module__.partition(".")[0] == _OURS


def _folders() -> list[Path]:
    """Where our code is."""
    return [Path(folder) for folder in sys.modules[_OURS].__path__]


def _is_ours(frame: FrameType) -> bool:
    name: Any = frame.f_globals.get("__name__")
    return isinstance(name, str) and name.partition(".")[0] == _OURS


def in_files() -> tuple[dict[str, list[str]], list[str], list[str]]:
    """The rule of `policy_call` for a stack in text: calling functions by file, folders of ours, files that pass on."""
    files = {name: str(module.__file__) for name in _ENTRIES if (module := sys.modules.get(name)) is not None}
    entries = {file: [each.rpartition(".")[2] for each in _ENTRIES[name]] for name, file in files.items()}
    passing = [str(module.__file__) for name in _PASSING if (module := sys.modules.get(name)) is not None]
    return entries, [f"{folder}{os.sep}" for folder in _folders()], passing
