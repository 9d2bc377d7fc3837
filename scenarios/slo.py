"""SloSpec: the service levels that a fleet must meet."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from loratory.scenarios.schema_types import Positive, Section, Share, wrong
from loratory.scenarios.slo_targets import TargetSpec

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
    targets: Annotated[list[TargetSpec], Field(min_length=1)] | None = Field(
        None, description="further targets: any percentile, of one tenant, of a class of adapters, or of the worst"
    )

    @model_validator(mode="after")
    def _each_once(self) -> SloSpec:
        seen: dict[tuple[object, ...], str] = {
            TargetSpec(metric=key.split("_")[0], mark=key.split("_")[1], at_most_s=limit).subject: key
            for key, limit in self.limits().items()
        }
        for place, target in enumerate(self.targets or ()):
            if target.subject in seen:
                raise wrong(
                    f"repeats {seen[target.subject]} with a limit of its own: keep one of them", "targets", place
                )
            seen[target.subject] = f"targets.{place}"
        return self

    @property
    def ttft_limit(self) -> float | None:
        """The limit on TTFT at the highest percentile that has one, else on its mean, seconds; None without any."""
        keys = ("ttft_p99_s", "ttft_p95_s", "ttft_p90_s", "ttft_p50_s", "ttft_mean_s")
        return next((limit for key in keys if (limit := getattr(self, key)) is not None), None)

    def limits(self) -> dict[str, float]:
        """The given limits on all requests by key, seconds."""
        return self.model_dump(exclude_none=True, exclude={"attainment", "targets"})

    @property
    def given(self) -> bool:
        """Whether there is anything to meet."""
        return bool(self.limits() or self.targets)
