"""Regret: how far policies are from one that knows the future, and from what none can beat, as plain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from loratory.experiment.run import run_scenario
from loratory.scenarios.schema import Scenario

METRICS: Mapping[str, str] = {
    "ttft_mean_s": "ttft_s.mean",
    "e2e_mean_s": "e2e_s.mean",
    "ttft_p99_s": "ttft_s.p99",
    "loads": "adapters.loads",
    "attainment": "slo.attainment",
}
"""What is compared, and its name in summary.json."""

Metrics = dict[str, float | None]


def regret(scenario: Scenario, policies: Iterable[str], seeds: Iterable[int], jobs: int = 1) -> list[dict[str, Any]]:
    """Simulate policies and the clairvoyant with the same seeds; one dict for each policy, in order.

    ``policy``: its spec. ``metrics`` and ``clairvoyant``: means over the seeds, by the names of `METRICS`, None where
    there is no value (``attainment`` without an SLO). ``lower_bound``: what no policy can go below on the requests that
    this one served; None where there is no bound. ``ratio``: ``metrics`` over ``clairvoyant``, below 1 where the policy
    has less. Raises as `loratory.experiment.run.run_scenario` does.
    """
    chosen = scenario.model_copy(update={"policies": [*policies], "seeds": [*seeds]})
    summary = run_scenario(chosen, jobs=jobs, decisions=False, regret=True)
    found = summary["regret"]
    return [
        {
            "policy": policy["policy"],
            "metrics": _means(policy["metrics"]),
            "clairvoyant": _means(found["clairvoyant"]["metrics"]),
            "lower_bound": {name: other["lower_bound"].get(path) for name, path in METRICS.items()},
            "ratio": {name: other["ratio"].get(path) for name, path in METRICS.items()},
        }
        for policy, other in zip(summary["policies"], found["policies"], strict=True)
    ]


def _means(metrics: Mapping[str, Mapping[str, float | None]]) -> Metrics:
    return {name: metrics[path]["mean"] if path in metrics else None for name, path in METRICS.items()}
