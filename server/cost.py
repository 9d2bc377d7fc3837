"""server_cost: what policies are told of step and load seconds."""

from __future__ import annotations

from loratory.executor.machine import Machine
from loratory.server.settings import ServerSettings
from loratory.serving.plan import CostView
from loratory.sim.cost.profile import LoadTime, Profile, ProfileCost, load_profile


def server_cost(settings: ServerSettings, machine: Machine) -> CostView:
    """The measured profile of the settings, else assumed times: 20 ms a step, 1 ms a token, 1 GB/s of loads."""
    if settings.profile is not None:
        return ProfileCost(load_profile(settings.profile))
    return ProfileCost(
        Profile(
            name="assumed",
            coefficients={"step": 0.02, "tokens": 0.001},
            load=LoadTime(fixed_s=0.005, per_byte_s=1e-9),
            disk=LoadTime(fixed_s=0.02, per_byte_s=1e-9),
            usable=False,
        )
    )
