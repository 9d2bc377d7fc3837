"""problems: finds contradictions in a registry's tables by recomputing them from its history."""

from __future__ import annotations

from loratory.adapters.ids import MAX_ID
from loratory.adapters.record import Change
from loratory.adapters.registry.registry import Registry


def problems(registry: Registry) -> list[str]:
    """One sentence a problem; the list is empty where history, records, defaults and ids agree.

    Reads the tables one after another, so registrations at the same time can appear as problems.
    """
    faults = [*registry.damage()]
    records = registry.list(removed=True)
    by_name: dict[str, dict[int, bool]] = {}
    for record in records:
        by_name.setdefault(record.name, {})[record.version] = record.removed
        if not 1 <= record.lora_int_id <= MAX_ID:
            faults.append(f"{record.ref} has the id {record.lora_int_id}, out of range")
    if len({record.lora_int_id for record in records}) < len(records):
        faults.append("an id belongs to two adapters")
    stored = registry.name_rows()
    if set(stored) != set(by_name):
        faults.append(f"names without versions, or versions without a name: {sorted(set(stored) ^ set(by_name))}")
    changes: dict[str, list[Change]] = {}
    for change in registry.changes():
        changes.setdefault(change.name, []).append(change)
    for name, versions in by_name.items():
        given, default = stored.get(name, (0, None))
        if sorted(versions) != list(range(1, given + 1)):
            faults.append(f"{name} has versions {sorted(versions)}, but its row counts {given}")
        replayed = _replay(changes.get(name, []))
        if replayed != (versions, default):
            faults.append(f"{name} is {(versions, default)}, but its history gives {replayed}")
        if (default is None) != all(versions.values()) or (default is not None and versions.get(default, True)):
            faults.append(f"{name} has the default {default} among {versions} (True: removed)")
    return faults


def _replay(changes: list[Change]) -> tuple[dict[int, bool], int | None]:
    versions: dict[int, bool] = {}
    default: int | None = None
    for change in changes:
        if change.action in ("add", "remove"):
            versions[change.version] = change.action == "remove"
        default = change.default
    return versions, default
