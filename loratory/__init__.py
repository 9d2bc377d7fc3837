"""loratory: the front door. The command line, and a short public API.

>>> from loratory import load_scenario, run_scenario
>>> summary = run_scenario(load_scenario("quickstart"))        # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from loratory.run import run_scenario
    from loratory.specs import policy_factory, policy_names
    from reports.compare import compare
    from scenarios.load import load_scenario
    from sim.cluster import simulate

__all__ = ["__version__", "compare", "load_scenario", "policy_factory", "policy_names", "run_scenario", "simulate"]

_WHERE = {
    "run_scenario": "loratory.run",
    "policy_factory": "loratory.specs",
    "policy_names": "loratory.specs",
    "compare": "reports.compare",
    "load_scenario": "scenarios.load",
    "simulate": "sim.cluster",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when first used, so that ``loratory --help`` need not load pandas."""
    if name == "__version__":
        from importlib.metadata import version

        return version("loratory")
    if name not in _WHERE:
        raise AttributeError(f"module 'loratory' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)
