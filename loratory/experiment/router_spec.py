"""Router specs: ``least_loaded``, ``lora_affinity:queue=2``, ``my_module:MyRouter``, ``path/file.py:MyRouter``."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable

import loratory.sim.routers
from loratory.errors import InputError
from loratory.sim.router import Router


def router_names() -> list[str]:
    """Names of the routers that come with Loratory."""
    return sorted(module.name for module in pkgutil.iter_modules(loratory.sim.routers.__path__))


def router_factory(spec: str) -> Callable[[], Router]:
    """Parse a spec; each call of the result makes a fresh router. Raises `InputError` for an unknown one."""
    name = spec.partition(":")[0]
    if name not in router_names():
        raise InputError(f"cluster.router {name!r} is unknown: choose one of {', '.join(router_names())}")
    module = importlib.import_module(f"loratory.sim.routers.{name}")
    classes = (value for value in vars(module).values() if inspect.isclass(value) and issubclass(value, Router))
    return next(each for each in classes if each.__module__ == module.__name__)
