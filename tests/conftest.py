"""Hypothesis profiles, and tests/support on the path."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings

sys.path.insert(0, str(Path(__file__).parent / "support"))

_quiet = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": False}
_quiet["phases"] = [Phase.explicit, Phase.generate, *([] if os.environ.get("NOSHRINK") else [Phase.shrink])]
settings.register_profile("ci", derandomize=True, database=None, **_quiet)
settings.register_profile("deep", **_quiet)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
