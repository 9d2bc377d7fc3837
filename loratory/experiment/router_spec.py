"""Router specs: ``least_loaded``, ``lora_affinity:queue=2``, ``my_module:MyRouter``, ``path/file.py:MyRouter``."""

from __future__ import annotations

import typing
from typing import Any

import loratory.router
import loratory.sim.routers
from loratory.experiment.class_parameters import own, signature
from loratory.experiment.class_spec import ClassSpec, Description
from loratory.experiment.router_members import ROUTER_NAMES, check_router
from loratory.serving.policy_watch import POLICY_TIMEOUT_S, PolicyWatch
from loratory.sim.router import Router

_ROUTERS = ClassSpec(
    word="router",
    package=loratory.sim.routers,
    entry_points="loratory.routers",
    method="route",
    members=ROUTER_NAMES,
    imports=(loratory.router, "Fleet, Router"),
)


class RouterFactory:
    """A spec that has been parsed: each call makes a fresh router with the spec's parameters.

    ``settings``: every parameter of the router with its value under this spec. ``source`` and ``reads_reports`` are
    those of its routers: one has been made already, and its members were checked (`check_router`).

    >>> router_factory("lora_affinity:queue=2").settings
    {'lora': 1.0, 'queue': 2.0, 'kv': 1.0}
    """

    __slots__ = ("_class", "_parameters", "reads_reports", "settings", "source", "spec")

    def __init__(self, spec: str) -> None:
        _ROUTERS.guest(spec, "its class", self._read, spec)

    def _read(self, spec: str) -> None:
        self.spec = spec
        self._class, given = _ROUTERS.find(spec)
        self._parameters: dict[str, Any] = _ROUTERS.read_parameters(spec, self._class, given)
        router = self()
        check_router(router, spec)
        self.source: str = getattr(router, "source", "")
        self.reads_reports: bool = getattr(router, "reads_reports", True)
        defaults = {name: default for name, (_, default) in own(self._class).items()}
        self.settings: dict[str, Any] = {**defaults, **self._parameters}

    def __call__(self) -> Router:
        return typing.cast(Router, _ROUTERS.make(self.spec, self._class, self._parameters))


def router_factory(spec: str, timeout_s: float = POLICY_TIMEOUT_S) -> RouterFactory:
    """Parse a spec; each call of the result makes a fresh router with the spec's parameters.

    Raises `InputError` for an unknown router, file, class or parameter, a value of the wrong type, a class that is no
    router, and one that raises when it is imported or made; `PolicyError` for one that exits or takes longer than
    ``timeout_s`` then.
    """
    with PolicyWatch(spec, timeout_s, word="router"):
        return RouterFactory(spec)


def describe_router(spec: str) -> Description:
    """What a router does, its parameters and its source, from its docstring and signature.

    Raises as `router_factory` does, but not for a router that needs parameters.
    """
    with PolicyWatch(spec, word="router"):
        return _ROUTERS.guest(spec, "its class", _describe, spec)


def _describe(spec: str) -> Description:
    kind, _ = _ROUTERS.find(spec)
    needs_parameters = any(parameter.default is parameter.empty for parameter in signature(kind).values())
    source = getattr(kind, "source", "") if needs_parameters else RouterFactory(spec).source
    return _ROUTERS.description(spec, kind, source, {})


def router_names() -> list[str]:
    """Names of the routers that come with Loratory and of those that other packages offer as entry points."""
    return _ROUTERS.names()
