"""Members: what a policy has beside `schedule`, read and checked once, when it is loaded or given to an engine."""

from __future__ import annotations

import ast
import dis
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from operator import index
from textwrap import dedent
from types import FunctionType, MethodType
from typing import Any, NoReturn, get_args

from loratory.errors import InputError, PolicyError, did_you_mean, several, shortened
from loratory.serving.engine_view import View
from loratory.serving.events import EVENTS, TOLD
from loratory.serving.eviction import SCORERS, Scorer
from loratory.serving.fairness import FairnessLimits
from loratory.serving.guest_errors import guest
from loratory.serving.member_calls import runs_no_code, takes_other
from loratory.serving.misspelt_members import can_take, held_by, misspelt
from loratory.serving.policy import Decisive, Policy

_METHODS = {"schedule": "view", "observe": "event", "victim": "view", "bound": "limits"}
"""The methods of a policy, and the one argument of each."""

_TOLD = {kind.__name__: kind for kind in TOLD}


@dataclass(frozen=True, slots=True)
class Members:
    """What a policy has beside `schedule`. ``observe``, ``victim`` and ``bound`` are None where it has none of its own;
    ``observes`` is None where it names no types; the others are as in `Policy`."""

    observe: Callable[[Any], None] | None
    observes: frozenset[type] | None
    victim: Callable[[View], Any] | None
    bound: Callable[[FairnessLimits], Any] | None
    evict: str | Scorer | None
    prefetch: int
    only_waiting: bool
    decides_by: tuple[Decisive, ...] | None
    source: str


class LoadedSpec(str):
    """The spec that a policy was loaded by, as its attribute ``spec``: its members have been checked."""

    __slots__ = ()


def members_of(policy: object, name: str = "") -> Members:
    """Read and check what a policy has; ``name`` is what to call it in errors, by default its spec or its class.

    Raises `InputError`, one sentence, for a member that cannot be meant: a method that is called with other arguments
    than it takes, a value of the wrong type, an unknown word, a name that is a member's but for one slip
    (`loratory.serving.misspelt_members`). Raises `PolicyError` where a property exits or does not come back.
    """
    reader = _Reader(policy, name)
    return guest(reader.name, "one of its members", reader.members)


class _Reader:
    """Reads the members of one policy."""

    def __init__(self, policy: object, name: str) -> None:
        self._policy = policy
        self._loading = bool(name)
        self.name = name or type(policy).__name__
        spec = None if name else self._read("spec")
        if isinstance(spec, str) and spec:
            self.name = spec

    def members(self) -> Members:
        if wrong := misspelt(type(self._policy), self._held()):
            self._refuse(wrong)
        if self._method("schedule") is None:
            self._refuse(f"{type(self._policy).__name__} has no schedule method: write def schedule(self, view)")
        observe = self._method("observe")
        return Members(
            observe=observe,
            observes=self._observes(observe is not None),
            victim=self._method("victim"),
            bound=self._method("bound"),
            evict=self._evict(),
            prefetch=self._prefetch(),
            only_waiting=self._only_waiting(),
            decides_by=self._decides_by(),
            source=self._source(),
        )

    def _held(self) -> Mapping[str, Any]:
        """The attributes of the policy's object. An engine's policy with a spec was checked when the spec was loaded.

        There they are not read again: once its ``__dict__`` is read, CPython 3.11 and 3.12 look up every attribute of
        an object more slowly (with fair_share it is 4 % of a simulation).
        """
        loaded = not self._loading and type(self._read("spec")) is LoadedSpec
        return {} if loaded else held_by(self._policy)

    def _read(self, key: str) -> Any:
        return guest(self.name, f"its {key}", getattr, self._policy, key, None)

    def _refuse(self, what: str) -> NoReturn:
        raise InputError(shortened(f"policy {shortened(self.name, 100)!r}: {what}"))

    # -- methods -------------------------------------------------------------------------------------------------

    def _method(self, key: str) -> Callable[[Any], Any] | None:
        found = self._read(key)
        if found is None or getattr(found, "__func__", None) is getattr(Policy, key):
            return None
        argument = _METHODS[key]
        if not callable(found):
            self._refuse(f"its {key} is {_text(found)}: write a method, def {key}(self, {argument})")
        if key == "schedule":
            self._yields(found)
        else:
            self._answers(key, found)
        self._takes(key, found, argument)
        call: Callable[[Any], Any] = found
        return call

    def _takes(self, key: str, call: Callable[..., Any], *arguments: str) -> None:
        if wrong := takes_other(key, call, *arguments):
            self._refuse(wrong)

    def _answers(self, key: str, call: Callable[..., Any]) -> None:
        if wrong := runs_no_code(key, call):
            self._refuse(wrong)

    def _yields(self, call: Callable[..., Any]) -> None:
        if inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call):
            self._refuse("its schedule() is async, not a generator: write def without async, and yield actions in it")
        if not inspect.isgeneratorfunction(call) and _returns_no_generator(getattr(call, "__func__", call)):
            self._refuse("its schedule() is not a generator: yield actions in it, as in yield from want(view, request)")

    def _evict(self) -> str | Scorer | None:
        found = self._read("evict")
        if found is None:
            return None
        names = several(SCORERS)
        if isinstance(found, str):
            if found not in SCORERS:
                otherwise = f"choose one of {names}, or give a function of (adapter, view)"
                hint = did_you_mean(found.lower(), SCORERS, otherwise)
                self._refuse(f"its evict is {_text(found)}; {hint}")
            return found
        if not callable(found) or isinstance(found, type):
            self._refuse(f"its evict is {_text(found)}: give one of {names}, or a function of (adapter, view)")
        scorer: Scorer = found
        if (
            isinstance(found, MethodType)
            and isinstance(found.__func__, FunctionType)
            and self._is_scorer(found.__func__)
        ):
            scorer = found.__func__
        self._answers("evict", scorer)
        self._takes("evict", scorer, "adapter", "view")
        return scorer

    def _is_scorer(self, function: FunctionType) -> bool:
        """Whether a function in the class is a scorer, ``def evict(adapter, view)``, and no method.

        What takes two arguments only, or three only, leaves no doubt; nor do the names of its first parameters.
        """
        if not can_take(function, 2):
            return False
        parameters = [*inspect.signature(function, follow_wrapped=False).parameters.values()]
        names = [parameter.name for parameter in parameters]
        if names[:1] in (["self"], ["cls"]) or parameters[0].kind is parameters[0].VAR_POSITIONAL:
            return False
        if not can_take(function, 3) or names[:2] == ["adapter", "view"]:
            return True
        if names[1:2] != ["adapter"]:
            given = ", ".join(map(str, parameters))
            remedy = "name its first parameter self, or write @staticmethod above it"
            self._refuse(f"its evict({given}) may be a method, or a function of (adapter, view): {remedy}")
        return False

    # -- values --------------------------------------------------------------------------------------------------

    def _observes(self, told: bool) -> frozenset[type] | None:
        found = self._read("observes")
        if found is None or found is Policy.observes:
            return None
        if isinstance(found, type):
            self._refuse(f"its observes is {found.__name__}, not a tuple: write observes = ({found.__name__},)")
        if not isinstance(found, tuple | list | set | frozenset):
            self._refuse(f"its observes is {_text(found)}: give a tuple of event types, such as (Arrived, Ended)")
        for kind in found:
            if not isinstance(kind, type):
                hint = "name the event type itself, without quotes"
                if isinstance(kind, str) and kind not in _TOLD:
                    hint = did_you_mean(kind, _TOLD, f"choose among {several(_TOLD, 12)}") + f" {hint}"
                self._refuse(f"its observes has {_text(kind)}, which is no event type; {hint}")
            if not any(kind is each for each in TOLD):
                name = kind.__name__
                if any(kind is each for each in EVENTS):
                    self._refuse(f"its observes has {name}, which is for records only and told to no policy: remove it")
                hint = did_you_mean(name, _TOLD, f"choose among {several(_TOLD, 12)}")
                self._refuse(f"its observes has {name}, which is no event type; {hint}")
        if found and not told:
            self._refuse("it has observes but no observe method: write def observe(self, event), or remove observes")
        return frozenset(found)

    def _prefetch(self) -> int:
        found = self._read("prefetch")
        if found is None:
            return 0
        try:
            number = None if isinstance(found, bool) else index(found)
        except TypeError:
            number = None
        if number is None:
            self._refuse(f"its prefetch is {_text(found)}: give a whole number of waiting requests")
        if number < 0:
            self._refuse(f"its prefetch is {number}: give 0 or more")
        return number

    def _only_waiting(self) -> bool:
        found = self._read("only_waiting")
        if found is None:
            return False
        if not isinstance(found, bool):
            self._refuse(f"its only_waiting is {_text(found)}: give True or False")
        return found

    def _decides_by(self) -> tuple[Decisive, ...] | None:
        found = self._read("decides_by")
        if found is None:
            return None
        words = get_args(Decisive)
        if isinstance(found, str):
            self._refuse(f"its decides_by is {_text(found)}, not a tuple: write decides_by = ({found!r},)")
        if not isinstance(found, tuple | list):
            self._refuse(f"its decides_by is {_text(found)}: give a tuple of words from {several(words, 12)}")
        for word in found:
            if not isinstance(word, str) or word not in words:
                hint = f"choose among {several(words, 12)}"
                hint = did_you_mean(word, words, hint) if isinstance(word, str) else hint
                self._refuse(f"its decides_by has {_text(word)}; {hint}")
        return tuple(found)

    def _source(self) -> str:
        found = self._read("source")
        if found is None:
            return ""
        if not isinstance(found, str):
            self._refuse(f"its source is {_text(found)}: give a text")
        return found


def promised(policy: str, bound: Callable[[FairnessLimits], Any], limits: FairnessLimits) -> float | None:
    """The service gap, in weighted tokens, that ``bound`` of a policy promises; None: it promises none.

    Raises `InputError` where that raises, and `PolicyError` where it returns what is no gap.
    """
    found = guest(policy, "its bound()", bound, limits)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float) or not isfinite(found) or found < 0:
        what = f"its bound() returned {_text(found)}: return a finite number of weighted tokens, 0 or more, or None"
        raise PolicyError(shortened(f"policy {shortened(policy, 100)}: {what}"))
    return float(found)


def _text(value: object) -> str:
    """A value that can be shown safely, or else its type."""
    if isinstance(value, str | bool | int | float | bytes):
        return shortened(repr(value), 60)
    return f"the class {value.__name__}" if type(value) is type else f"a value of type {type(value).__name__}"


_NO_GENERATOR = (ast.Constant, ast.List, ast.ListComp, ast.Tuple, ast.Set, ast.SetComp, ast.Dict, ast.DictComp)


def _returns_no_generator(function: object) -> bool:
    """Whether each return of a function, as it is written, gives back nothing, a constant, a list or the like.

    False where a call is returned, which may make a generator; where the function never returns, as it raises; and
    where its source is not at hand.
    """
    if not isinstance(function, FunctionType) or hasattr(function, "__wrapped__"):
        return False
    if not any(step.opname.startswith("RETURN") for step in dis.get_instructions(function)):
        return False
    try:
        (written,) = ast.parse(dedent(inspect.getsource(function))).body
    except (OSError, TypeError, ValueError, SyntaxError):
        return False
    if not isinstance(written, ast.FunctionDef):
        return False
    return all(node.value is None or isinstance(node.value, _NO_GENERATOR) for node in _returns(written))


def _returns(function: ast.AST) -> list[ast.Return]:
    """The return statements of a function, without those of functions in it."""
    found: list[ast.Return] = []
    for child in ast.iter_child_nodes(function):
        if isinstance(child, ast.Return):
            found.append(child)
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            found += _returns(child)
    return found
