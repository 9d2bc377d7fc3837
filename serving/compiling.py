"""compiling: whether the core is compiled, and what mypyc is told of a class where it compiles one.

``mypyc_attr`` is no more than a mark in plain Python. ``serializable=True``: the class can be copied and pickled.
``allow_interpreted_subclasses=True``: classes in plain Python may inherit from it; mypyc 2.4 makes objects of a
serializable class without calling ``__init__`` where this is not said as well. ``native_class=False``: a class of
Python's own, whose methods alone are compiled; a frozen dataclass has to be one, as it cannot be unpickled otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.machinery import SOURCE_SUFFIXES
from importlib.util import find_spec
from typing import TypeVar

__all__ = ["core", "mypyc_attr"]

T = TypeVar("T")

try:
    from mypy_extensions import mypyc_attr
except ImportError:

    def mypyc_attr(*_: str, **__: object) -> Callable[[T], T]:
        """Changes nothing: in plain Python every class is like this."""
        return lambda kind: kind


def is_compiled() -> bool:
    """Whether this Loratory's core is compiled."""
    spec = find_spec("loratory.serving.engine")
    return spec is not None and not str(spec.origin).endswith(tuple(SOURCE_SUFFIXES))


def core() -> str:
    """In words, for ``loratory --version``."""
    return "compiled core" if is_compiled() else "pure Python; LORATORY_MYPYC=1 pip install compiles the core"
