"""SloSpec: the service levels that a fleet must meet."""

from __future__ import annotations

from pydantic import Field

from loratory.scenarios.schema_types import Positive, Section, Share

Target = Positive | None


class SloSpec(Section):
    """Upper limits, seconds, named ``<metric>_<statistic>_s``.

    TTFT runs from arrival to the first token, TPOT is (finish - first token) / (output tokens - 1), ITL the time
    between two tokens, E2E from arrival to the last token, queue from arrival to the first admission.
    """

    ttft_mean_s: Target = None
    ttft_p50_s: Target = None
    ttft_p90_s: Target = None
    ttft_p95_s: Target = None
    ttft_p99_s: Target = None
    tpot_mean_s: Target = None
    tpot_p50_s: Target = None
    tpot_p90_s: Target = None
    tpot_p95_s: Target = None
    tpot_p99_s: Target = None
    itl_mean_s: Target = None
    itl_p50_s: Target = None
    itl_p90_s: Target = None
    itl_p95_s: Target = None
    itl_p99_s: Target = None
    e2e_mean_s: Target = None
    e2e_p50_s: Target = None
    e2e_p90_s: Target = None
    e2e_p95_s: Target = None
    e2e_p99_s: Target = None
    queue_mean_s: Target = None
    queue_p50_s: Target = None
    queue_p90_s: Target = None
    queue_p95_s: Target = None
    queue_p99_s: Target = None
    attainment: Share | None = Field(None, description="share of requests that must each meet every limit above")

    def targets(self) -> dict[str, float]:
        """The given limits by key, seconds."""
        return {k: v for k, v in self.model_dump(exclude_none=True).items() if k != "attainment"}
