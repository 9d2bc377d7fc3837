"""import_manifest: puts a manifest's adapters into a registry, all of them or none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Self

from loratory.adapters.fetch import AdapterFetcher
from loratory.adapters.files.description import AdapterDescription
from loratory.adapters.record import AdapterRecord, Registration
from loratory.adapters.registry.manifest import Facts, Manifest, ManifestEntry
from loratory.adapters.registry.vllm_lora_modules import ModulePath
from loratory.errors import InputError

if TYPE_CHECKING:
    from loratory.adapters.registry.registry import Registry
    from loratory.adapters.registry.writer import RegistryWriter


@dataclass(frozen=True, slots=True)
class Imported:
    """New records, the number of entries that existed already, and notes on ids that differ from the manifest's."""

    records: tuple[AdapterRecord, ...]
    known: int
    notes: tuple[str, ...]


def manifest_of_modules(modules: Iterable[ModulePath]) -> Manifest:
    """vLLM's list of modules as a manifest."""
    return Manifest(tuple(ManifestEntry(module.name, module.source) for module in modules))


def import_manifest(
    manifest: Manifest,
    registry: Registry,
    fetcher: AdapterFetcher,
    *,
    new_version: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Imported:
    """Fetches and validates every adapter, then registers all in one transaction, in the manifest's order.

    Into an empty registry with the same id strategy, a manifest of a whole registry gives the same names, versions,
    defaults and ids; an id that differs is a note (``user`` ids are taken from the manifest). Existing versions do not
    change. An entry without a version follows `Registry.add`, with ``new_version``. Raises `InputError` for the first
    adapter that is refused, and for a version that is another adapter in this registry.
    """
    entries = manifest.entries
    registrations: list[Registration] = []
    for place, entry in enumerate(entries):
        registrations.append(_registration(entry, fetcher, new_version))
        if progress is not None:
            progress(entry.ref, place + 1, len(entries))
    if registry.ids == "user":
        registrations = [
            replace(registration, lora_int_id=entry.lora_int_id)
            for entry, registration in zip(entries, registrations, strict=True)
        ]
    present = {(record.name, record.version): record for record in registry.list(removed=True)}
    added: list[AdapterRecord] = []
    defaults: list[AdapterRecord] = []
    notes: list[str] = []
    with registry.writing() as writer:
        for entry, registration in zip(entries, registrations, strict=True):
            record = present.get((entry.name, entry.version or 0))
            if record is None:
                record = _add(writer, entry, registration)
                if (record.name, record.version) not in present:
                    added.append(record)
            else:
                _same(entry, registration, record)
            if entry.lora_int_id not in (None, record.lora_int_id):
                notes.append(
                    f"{record.ref} has the id {record.lora_int_id} here, but {entry.lora_int_id} in the manifest"
                )
            if entry.default:
                defaults.append(record)
        for record in defaults:
            writer.promote(record.name, record.version)
    return Imported(tuple(added), len(entries) - len(added), tuple(notes))


@dataclass(frozen=True, slots=True)
class _Remembered(AdapterDescription):
    """The description of a removed adapter, from what a registry kept of it; its files are not needed."""

    numbers: int = 0

    @property
    def parameters(self) -> int:
        """As the registry kept it."""
        return self.numbers

    @classmethod
    def of(cls, facts: Facts, digest: str) -> Self:
        """The description of these facts."""
        kept = {each.name: getattr(facts, each.name) for each in fields(Facts) if each.name != "parameters"}
        return cls(**kept, digest=digest, modules=(), numbers=facts.parameters)


def _registration(entry: ManifestEntry, fetcher: AdapterFetcher, new_version: bool) -> Registration:
    again = new_version or entry.version is not None
    labels = dict(entry.labels)
    if entry.removed:
        assert entry.facts is not None and entry.digest is not None, "parse_manifest checks it"
        remembered = _Remembered.of(entry.facts, entry.digest)
        return Registration(entry.name, entry.source, remembered, entry.tenant, labels, new_version=again)
    try:
        registration = fetcher.registration(
            entry.name, entry.source, tenant=entry.tenant, labels=labels, new_version=again
        )
    except InputError as error:
        raise InputError(f"adapter {entry.ref!r} is refused, so nothing was imported: {error}") from error
    if entry.digest not in (None, registration.description.digest):
        raise InputError(
            f"adapter {entry.ref!r} has the digest {entry.digest} in the manifest, but {registration.source} holds "
            f"{registration.description.digest}: restore what was exported, or remove the digest; nothing was imported"
        )
    return registration


def _add(writer: RegistryWriter, entry: ManifestEntry, registration: Registration) -> AdapterRecord:
    record = writer.add(registration)
    if entry.version not in (None, record.version):
        raise InputError(
            f"adapter {entry.ref!r} would be {record.ref!r} in this registry: import it into an empty one, or remove "
            "the version from the manifest"
        )
    if entry.removed:
        # Now, while it is the newest version: a default version cannot be removed while later ones exist.
        writer.remove(record.name, record.version)
    return record


def _same(entry: ManifestEntry, registration: Registration, record: AdapterRecord) -> None:
    """Raises `InputError` unless the existing version is the one in the manifest."""
    here = (record.source, record.digest, record.removed)
    if here != (registration.source, registration.description.digest, entry.removed):
        differs = (
            "source"
            if here[0] != registration.source
            else "digest"
            if here[1] != registration.description.digest
            else "state"
        )
        raise InputError(
            f"adapter {record.ref!r} of this registry has another {differs} than the manifest's: import it into an "
            "empty registry, or remove the version from the manifest"
        )
