"""loratory: the front door. The command line, and a short public API.

>>> from loratory import load_scenario, run_scenario
>>> summary = run_scenario(load_scenario("quickstart"))        # doctest: +SKIP
"""

from __future__ import annotations

import os.path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loratory.experiment.policy_spec import policy_factory, policy_names
    from loratory.experiment.run import run_scenario
    from loratory.reports.compare import compare
    from loratory.scenarios.load import load_scenario
    from loratory.sim.cluster import simulate

__all__ = ["__version__", "compare", "load_scenario", "policy_factory", "policy_names", "run_scenario", "simulate"]

__version__ = "0.1.0"

_WHERE = {
    "run_scenario": "loratory.experiment.run",
    "policy_factory": "loratory.experiment.policy_spec",
    "policy_names": "loratory.experiment.policy_spec",
    "compare": "loratory.reports.compare",
    "load_scenario": "loratory.scenarios.load",
    "simulate": "loratory.sim.cluster",
}


if not os.path.isdir(os.path.join(os.path.dirname(__file__), "serving")):
    raise ImportError(
        "loratory/serving is not a folder: this checkout has no symbolic links. Clone it again with "
        "`git clone -c core.symlinks=true` (on Windows with developer mode on), or install a built wheel"
    )


def __getattr__(name: str) -> Any:
    """The public names, imported when first used, so that ``loratory --help`` need not load pandas."""
    if name not in _WHERE:
        raise AttributeError(f"module 'loratory' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)
