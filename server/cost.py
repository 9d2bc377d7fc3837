"""server_cost: what policies are told of step and load seconds: a profile of this machine that never changes."""

from __future__ import annotations

import logging

from loratory.executor.machine import Machine
from loratory.server.engine_settings import target_modules
from loratory.server.quick_profile import quick_profile
from loratory.server.settings import ServerSettings
from loratory.sim.cost.profile import LoadTime, Profile, ProfileCost, load_profile

LOG = logging.getLogger("loratory.server")

ASSUMED = Profile(
    name="assumed",
    coefficients={"step": 0.02, "tokens": 0.001},
    load=LoadTime(fixed_s=0.005, per_byte_s=1e-9),
    disk=LoadTime(fixed_s=0.02, per_byte_s=1e-9),
    usable=False,
)
"""Where nothing was measured: 20 ms a step and 1 ms a token, 5 ms a load to a slot and 20 ms one from disk, 1 GB/s."""


def server_cost(settings: ServerSettings, machine: Machine) -> ProfileCost:
    """The cost model of a server: ``settings.profile`` where it is given, else ``measure_s`` seconds of measuring.

    Call it before the server's executor is made: both use the machine's cache and slots. What it returns never changes,
    and `ProfileCost.profile` is all of it, so that a recording can hold it. A machine that is too slow for the seconds
    has `ASSUMED` times, with a line in the log. Raises `InputError` for a bad profile.
    """
    if settings.profile is not None:
        return ProfileCost(load_profile(settings.profile))
    if settings.measure_s <= 0:
        return ProfileCost(ASSUMED)
    measured = quick_profile(machine, target_modules(settings), ProfileCost(ASSUMED), settings.measure_s)
    if measured is not None:
        return ProfileCost(measured)
    LOG.warning(
        "policies are told assumed times of steps and loads, because %g s were too short to measure this machine: "
        "give the server a --profile that `loratory profile` wrote",
        settings.measure_s,
    )
    return ProfileCost(ASSUMED)
