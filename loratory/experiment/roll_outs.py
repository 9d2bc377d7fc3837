"""roll_outs: the new versions that a scenario's adapters get, and when."""

from __future__ import annotations

from collections.abc import Sequence

from loratory.errors import InputError
from loratory.scenarios.cluster_spec import ClusterSpec
from loratory.scenarios.roll_out_spec import roll_out_problem
from loratory.serving.lora import Adapter, LoRARequest, RestingTier
from loratory.sim.fleet_options import RollOut


def roll_outs(cluster: ClusterSpec, adapters: Sequence[Adapter]) -> tuple[RollOut, ...]:
    """In order of time. A new version is an artefact of its own: its id has never been used, and it is on disk, or on
    remote storage where the adapter began there. Raises `InputError` for a roll-out that cannot be.
    """
    events = cluster.roll_outs
    if not events:
        return ()
    names = [adapter.name for adapter in adapters]
    if (problem := roll_out_problem(events, names)) is not None:
        raise InputError(f"cluster.events.{problem[0]}.roll_out {problem[1]}")
    asked = []
    for at_s, spec in events.values():
        asked += [(at_s + turn * spec.apart_s, name, spec) for turn, name in enumerate(spec.chosen(names))]
    taken, number = set(names), max(adapter.lora.lora_int_id for adapter in adapters)
    first = {adapter.name: adapter for adapter in adapters}
    latest = dict(first)
    found = []
    for at_s, name, spec in sorted(asked, key=lambda each: each[0]):
        old, number = latest[name], number + 1
        new = latest[name] = _successor(old, number, spec.rank or old.rank, taken)
        taken.add(new.name)
        moving = (spec.shares, spec.every_s or 0.0, spec.over_s or 0.0, spec.preload)
        found.append(RollOut(at_s, name, old, new, *moving, first[name].pinned))
    return tuple(found)


def _successor(old: Adapter, number: int, rank: int, taken: set[str]) -> Adapter:
    """The next version of an adapter, ``name@version`` as a registry writes it; a first version is 1."""
    version = (old.version or 1) + 1
    base = old.name.removesuffix(f"@{old.version}")
    while f"{base}@{version}" in taken:
        version += 1
    name, path = f"{base}@{version}", old.lora.lora_path.removesuffix(f"@{old.version}")
    lora = LoRARequest(name, number, f"{path}@{version}", old.lora.base_model_name)
    tier: RestingTier = "remote" if old.tier == "remote" else "disk"
    return Adapter(lora, rank, round(old.bytes * rank / old.rank), False, tier, None, version)
