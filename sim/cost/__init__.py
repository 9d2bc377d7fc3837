"""Cost and memory models: what a step, an adapter load and an adapter slot cost on given hardware.

* `cost_model(kind, model, gpu, engine, options)` builds one of `RooflineCost` (datasheet and stated efficiencies),
  `KernelsCost` (measured kernels), `LinearCost` (published or fitted constants) and `ProfileCost` (fitted to measured
  steps). All are `CostModel`.
* `kv_blocks(model, gpu, engine, target_modules)` sizes the KV pool as vLLM does, or names the settings to lower.
* `fit(samples)` turns measured steps into a `Profile`; `cold_load_seconds` adds up an adapter's hops.

docs/cost-models.md has the formulae, sources and accuracies.
"""

from __future__ import annotations

from collections.abc import Mapping

from loratory.serving.config import EngineConfig
from loratory.sim.catalogue import GPU, ModelSpec
from loratory.sim.catalogue.names import unknown_name
from loratory.sim.cost.base import CostModel, DecodeLine
from loratory.sim.cost.fit import evaluate, fit
from loratory.sim.cost.linear import LinearCost, LinearOptions
from loratory.sim.cost.memory import MemoryOptions, MemoryPlan, adapter_tokens, kv_blocks, oversized
from loratory.sim.cost.options import TransferOptions, parse
from loratory.sim.cost.profile import Profile, ProfileCost, load_profile, profile_names
from loratory.sim.cost.roofline import RooflineCost
from loratory.sim.cost.roofline_options import RooflineOptions
from loratory.sim.cost.transfer import TransferModel, cold_load_seconds

KINDS: tuple[str, ...] = ("roofline", "kernels", "linear", "profile")
"""What ``cost: {kind: ...}`` may be in a scenario."""


def cost_model(
    kind: str, model: ModelSpec, gpu: GPU, engine: EngineConfig, options: Mapping[str, object] | None = None
) -> CostModel:
    """The cost model of ``kind`` with the other keys of a scenario's ``cost:`` mapping as ``options``.

    Raises `InputError` for an unknown kind or key (nearest offered), a bad value, a profile that is not there, and
    for kernels that were not measured.
    """
    given = options or {}
    if kind == "roofline":
        return RooflineCost.from_options(model, gpu, engine, given)
    if kind == "kernels":
        from loratory.sim.cost.kernels import KernelsCost  # here, as it needs pandas and pyarrow, slow to import

        return KernelsCost.from_options(model, gpu, engine, given)
    if kind == "linear":
        return LinearCost.from_options(given, engine.max_loras)
    if kind == "profile":
        return ProfileCost.from_options(given)
    raise unknown_name("cost kind", kind, KINDS)


__all__ = [
    "KINDS",
    "CostModel",
    "DecodeLine",
    "LinearCost",
    "LinearOptions",
    "MemoryOptions",
    "MemoryPlan",
    "Profile",
    "ProfileCost",
    "RooflineCost",
    "RooflineOptions",
    "TransferModel",
    "TransferOptions",
    "adapter_tokens",
    "cold_load_seconds",
    "cost_model",
    "evaluate",
    "fit",
    "kv_blocks",
    "load_profile",
    "oversized",
    "parse",
    "profile_names",
]
