"""server_cost: what policies are told of step and load seconds: a profile of this machine that never changes."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from loratory.adapters.sources.cache import AdapterCache
from loratory.errors import InputError, LoratoryError
from loratory.executor.machine import Machine
from loratory.executor.profiler import LEAST_PHASES, Design, measure
from loratory.experiment.calibrate import profile_of
from loratory.experiment.machine import SYNTHETIC, adapter_files
from loratory.experiment.policy_spec import policy_factory
from loratory.server.engine_settings import target_modules
from loratory.server.settings import ServerSettings
from loratory.serving.lora import Adapter, LoRARequest
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

_MOST_SEQS, _MOST_CONTEXT, _MOST_TOKENS, _MOST_RANK, _ADAPTERS = 8, 256, 256, 16, 2
"""What a measurement of a few seconds can cover."""


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
    try:
        return ProfileCost(_measured(settings.measure_s, machine, target_modules(settings)))
    except LoratoryError:
        LOG.warning(
            "policies are told assumed times of steps and loads, because %g s were too short to measure this machine: "
            "give the server a --profile that `loratory profile` wrote",
            settings.measure_s,
        )
        return ProfileCost(ASSUMED)


def _measured(seconds: float, machine: Machine, targets: Sequence[str]) -> Profile:
    """A profile from a few small batches, with random adapters; its name says how little it rests on."""
    config = machine.config
    context = min(_MOST_CONTEXT, config.max_model_len or _MOST_CONTEXT, config.require_blocks() * config.block_size)
    if context < 8:
        raise InputError(f"contexts of at most {context} tokens are too short to measure: give a --profile")
    design = Design(
        min(_MOST_SEQS, config.max_num_seqs),
        context,
        min(_MOST_TOKENS, config.max_num_batched_tokens),
        LEAST_PHASES,
        seconds,
    )
    rank = min(_MOST_RANK, config.max_lora_rank)
    numbers = range(1, 1 + min(_ADAPTERS, config.max_loras))
    made = [Adapter(LoRARequest(f"measured-{n}", n, f"{SYNTHETIC}measured-{n}"), rank, 1) for n in numbers]
    with tempfile.TemporaryDirectory(prefix="loratory-measure-") as scratch:
        cache = AdapterCache(Path(scratch) / "cache")
        files = adapter_files(made, machine.model, Path(scratch), targets, cache, config.max_lora_rank)
        item = machine.model.dtype.itemsize
        adapters = [replace(each, bytes=files[each.name].description.parameters * item) for each in made]
        machine.files.update(files)
        try:
            measured = measure(machine, adapters, policy_factory("fifo"), ProfileCost(ASSUMED), design)
        finally:
            for name in files:
                del machine.files[name]
    return profile_of(measured, f"measured at start, {seconds:g} s", "", machine.about())
