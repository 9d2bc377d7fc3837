"""Hypothesis profiles, tests/support on the path, and Triton's interpreter where there is no GPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings

sys.path.insert(0, str(Path(__file__).parent / "support"))

# Triton reads this when it is imported, which transformers does.
os.environ.setdefault("TRITON_INTERPRET", "0" if Path("/dev/nvidiactl").exists() else "1")

_quiet = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": False}
_quiet["phases"] = [Phase.explicit, Phase.generate, *([] if os.environ.get("NOSHRINK") else [Phase.shrink])]
settings.register_profile("ci", derandomize=True, database=None, **_quiet)
settings.register_profile("deep", **_quiet)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
