"""NoiseSpec: how the times of real steps scatter around those of the cost model, and stall."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from loratory.errors import shortened
from loratory.scenarios.schema_types import NotNegative, Section, wrong

NOISE = "scatter and stalls of step times, drawn for each seed: a mapping, or residuals; by default none"

LARGEST_CV, LARGEST_RATE_HZ, LARGEST_FACTOR = 1e6, 1e9, 1e3
"""What noise can be drawn at all, also with `--unbounded`. The last one: how many times as long stalls make steps."""


class NoiseSpec(Section):
    """Scatter and stalls of step times, drawn for each seed. `residuals` may be written alone.

    All but the stalls keep the mean step time as it is. A `cv` of 0 is no noise.
    """

    cv: NotNegative = Field(
        0.0,
        le=LARGEST_CV,
        description="standard deviation over mean of a step's time: lognormal, each step apart from the others",
    )
    run_cv: NotNegative = Field(
        0.0,
        le=LARGEST_CV,
        description="the same of one factor on all steps of a run: how far the cost model's level may be off",
    )
    stall_rate_hz: NotNegative = Field(
        0.0, le=LARGEST_RATE_HZ, description="stalls that begin per second of step time (Poisson)"
    )
    stall_s: NotNegative = Field(
        0.0, description="duration of a stall, s; steps take 1 + stall_rate_hz * stall_s times as long on average"
    )
    residuals: bool = Field(
        False, description="for cost.kind profile, in place of cv: the scatter that was measured with the profile"
    )

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, data: Any) -> Any:
        if data == "residuals":
            return {"residuals": True}
        if not isinstance(data, dict | NoiseSpec):
            raise wrong(f"should be a mapping such as {{cv: 0.05}}, or residuals, not {shortened(repr(data), 60)}")
        return data

    @model_validator(mode="after")
    def _has_an_effect(self) -> NoiseSpec:
        if self.residuals and self.cv:
            raise wrong("is not used, because noise.residuals replaces it: remove one of them", "cv")
        for one, other in (("stall_rate_hz", "stall_s"), ("stall_s", "stall_rate_hz")):
            if getattr(self, one) and not getattr(self, other):
                raise wrong(f"needs {other} above 0: add it, or remove {one}", one)
        if self.stall_rate_hz * self.stall_s > LARGEST_FACTOR:
            factor = self.stall_rate_hz * self.stall_s
            raise wrong(
                f"is {self.stall_s:g}, and times stall_rate_hz that makes steps {factor:,.4g} times as long: lower one "
                f"of them, so that it is at most {LARGEST_FACTOR:,.0f}",
                "stall_s",
            )
        if not self.has_an_effect and not self.model_fields_set & {"cv", "run_cv"}:
            raise wrong("has no effect: give cv, run_cv, stall_rate_hz with stall_s, or residuals, or remove it")
        return self

    @property
    def has_an_effect(self) -> bool:
        """Whether any step takes another time; not with a ``cv`` of 0 alone, as one value of a sweep may be."""
        return bool(self.cv or self.run_cv or self.stall_s or self.residuals)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core_schema))
        wide = {"anyOf": [dict(schema), {"enum": ["residuals"]}], "description": schema.get("description", "")}
        schema.clear()
        schema.update(wide)
        return schema


def _has_none_measured(noise: NoiseSpec | None) -> NoiseSpec | None:
    if noise is not None and noise.residuals:
        raise wrong("needs cost.kind profile, whose file holds what was measured: give cv instead", "residuals")
    return noise


UnmeasuredNoise = Annotated[NoiseSpec | None, AfterValidator(_has_none_measured)]
"""Noise of a cost model that holds no residuals."""
