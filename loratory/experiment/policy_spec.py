"""Policy specs: ``fifo``, ``fair_share:by=tenant``, ``my_module:MyPolicy``, ``path/file.py:MyPolicy:quantum=4``."""

from __future__ import annotations

import inspect
import typing
from typing import Any, Literal

import loratory.policies
import loratory.policy
from loratory.errors import InputError
from loratory.experiment.class_parameters import own, signature
from loratory.experiment.class_spec import ClassSpec, Description, shown
from loratory.serving.eviction import SCORERS
from loratory.serving.misspelt_members import POLICY_NAMES
from loratory.serving.policy import Policy, PolicyLike
from loratory.serving.policy_members import LoadedSpec, members_of
from loratory.serving.policy_watch import POLICY_TIMEOUT_S, PolicyWatch
from loratory.serving.reserved import WithReservation

_COMMON = {
    "evict": (Literal[tuple(SCORERS)], "lru", "which idle adapter leaves the GPU first"),
    "prefetch": (int, 0, "waiting requests from the front whose adapters are fetched to host memory in advance"),
    "reserve": (bool, False, "admit only what fits until it ends, and look only as often as LightLLM's router does"),
}

_POLICIES = ClassSpec(
    word="policy",
    package=loratory.policies,
    entry_points="loratory.policies",
    method="schedule",
    members=POLICY_NAMES,
    imports=(loratory.policy, "View, want"),
    common=_COMMON,
)


class PolicyFactory:
    """A spec that has been parsed: each call makes a fresh policy with the spec's parameters.

    ``settings``: every parameter of the policy with its value under this spec, the policy's own first.
    ``decides_by``: the attribute ``decides_by`` of its policies; None where they have none. One policy has been made
    already, and its members were checked (`members_of`).

    >>> policy_factory("fifo:strict=true").settings
    {'strict': True, 'evict': 'lru', 'prefetch': 0, 'reserve': False}
    """

    __slots__ = ("_class", "_common", "_parameters", "decides_by", "settings", "source", "spec")

    def __init__(self, spec: str) -> None:
        _POLICIES.guest(spec, "its class", self._read, spec)

    def _read(self, spec: str) -> None:
        policy_class, given = _POLICIES.find(spec)
        values = _POLICIES.read_parameters(spec, policy_class, given)
        if values.get("prefetch", 0) < 0:
            raise InputError(f"policy {shown(spec)}: prefetch is {values['prefetch']}: give 0 or more")
        parameters = own(policy_class)
        self.spec = spec
        self._class = policy_class
        self._common = {name: value for name, value in values.items() if name in _COMMON and name not in parameters}
        self._parameters = {name: value for name, value in values.items() if name not in self._common}
        members = members_of(self(), spec)
        self.decides_by = members.decides_by
        self.source = members.source
        common = {"evict": _scorer_text(members.evict), "prefetch": members.prefetch, "reserve": False}
        defaults = {name: default for name, (_, default) in parameters.items()}
        common = {name: value for name, value in common.items() if name not in parameters}
        self.settings: dict[str, Any] = {**defaults, **common, **values}

    def __call__(self) -> PolicyLike:
        policy: Any = _POLICIES.make(self.spec, self._class, self._parameters)
        has = _POLICIES.guest(self.spec, "its spec", getattr, policy, "spec", None)
        if has is not None and has is not Policy.spec:
            remedy = "Loratory sets spec, to how the policy was asked for: choose another name"
            raise InputError(f"policy {shown(self.spec)}: it has a spec of its own; {remedy}")
        for key, value in {**self._common, "spec": LoadedSpec(self.spec)}.items():
            self._set(policy, key, value)
        return WithReservation(policy) if self._common.get("reserve") else typing.cast(PolicyLike, policy)

    def _set(self, policy: object, key: str, value: object) -> None:
        try:
            _POLICIES.guest(self.spec, "its __setattr__()", setattr, policy, key, value)
        except InputError as error:
            if not isinstance(error.__cause__, AttributeError):
                raise
            if key != "spec":
                raise InputError(f"policy {shown(self.spec)}: {_no_room(policy, key)}") from error.__cause__


def _no_room(policy: object, key: str) -> str:
    """Why an attribute of a policy cannot be set, and the remedy."""
    if isinstance(inspect.getattr_static(type(policy), key, None), property):
        return f"its {key} is a property without a setter, so a spec cannot give it: write {key} as an attribute"
    if "__dict__" not in dir(type(policy)):
        return f"it has no room for {key}: do not use __slots__, or have {key!r} in them"
    return f"its {key} cannot be set, so a spec cannot give it: let its objects be changed"


def policy_factory(spec: str, timeout_s: float = POLICY_TIMEOUT_S) -> PolicyFactory:
    """Parse a spec; each call of the result makes a fresh policy with the spec's parameters.

    Raises `InputError` for an unknown policy, file, class or parameter, a value of the wrong type, and a policy that
    raises when it is imported or made; `PolicyError` for one that exits or takes longer than ``timeout_s`` then.
    """
    with PolicyWatch(spec, timeout_s):
        return PolicyFactory(spec)


def describe(spec: str) -> Description:
    """What a policy does, what of its source it lacks, its parameters, from its docstring and signature.

    Raises as `policy_factory` does, but not for a policy that needs parameters.
    """
    with PolicyWatch(spec):
        return _POLICIES.guest(spec, "its class", _describe, spec)


def _describe(spec: str) -> Description:
    policy_class, _ = _POLICIES.find(spec)
    if any(parameter.default is parameter.empty for parameter in signature(policy_class).values()):
        source = getattr(policy_class, "source", "")
        return _POLICIES.description(spec, policy_class, source, _of_class(policy_class))
    factory = PolicyFactory(spec)
    return _POLICIES.description(spec, policy_class, factory.source, factory.settings)


def _of_class(policy_class: type) -> dict[str, Any]:
    """The defaults of the parameters that every policy takes, as far as a class sets them."""
    prefetch = getattr(policy_class, "prefetch", 0)
    return {"evict": _scorer_text(getattr(policy_class, "evict", None)), "prefetch": prefetch, "reserve": False}


def _scorer_text(evict: object) -> str:
    """An ``evict`` in words: a scorer's name, or that it is the policy's own function."""
    if evict is None or isinstance(evict, str):
        return evict or "lru"
    return next((name for name, scorer in SCORERS.items() if scorer is evict), "its own function")


def policy_names() -> list[str]:
    """Names of the policies that come with Loratory and of those other packages offer as entry points."""
    return _POLICIES.names()
