"""Punica's host time: the one constant with which the `identical` case gives the published 1,044 tokens/s.

python -m loratory.reproduce.fit.punica
"""

from __future__ import annotations

from loratory.reproduce.cases import Case, run_case

SCENARIO = "published/punica-a100"
IDENTICAL = "adapters.count=1"
TOKENS_PER_S = 1044.0
"""Punica (MLSys 2024), section 7.2, Llama-2-7B."""


def tokens_per_s(*changes: str) -> float:
    """Output tokens/s of the scenario under changes."""
    (run,) = run_case(Case(SCENARIO, changes))
    return float(run["throughput"]["output_tokens_per_s"])


def fitted(steps: int = 16) -> float:
    """``cost.host_layer_s`` by bisection, to four digits."""
    low, high = 0.0, 0.002
    for _ in range(steps):
        middle = (low + high) / 2
        if tokens_per_s(IDENTICAL, f"cost.host_layer_s={middle}") > TOKENS_PER_S:
            low = middle
        else:
            high = middle
    return float(f"{(low + high) / 2:.4g}")


if __name__ == "__main__":
    print(f"cost.host_layer_s {fitted()} s")
