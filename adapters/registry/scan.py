"""scan: registers the adapters below a folder or prefix; reports bad ones and continues with the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from loratory.adapters.fetch import AdapterFetcher, absolute
from loratory.adapters.record import AdapterRecord, Registration
from loratory.adapters.sources.source import AdapterSource, list_source
from loratory.errors import InputError

if TYPE_CHECKING:
    from loratory.adapters.registry.registry import Registry

ScanOutcome = Literal["added", "known", "valid", "refused"]


@dataclass(frozen=True, slots=True)
class ScanResult:
    """The result for one source: ``record`` when it is in the registry now, ``why`` when it was refused.

    ``known``: it was registered before. ``valid``: it would be accepted, but no registry was given.
    """

    name: str
    source: str
    outcome: ScanOutcome
    record: AdapterRecord | None = None
    why: str = ""


def scan(
    prefix: str,
    registry: Registry | None,
    fetcher: AdapterFetcher,
    *,
    tenant: str | None = None,
    labels: Mapping[str, str] | None = None,
    new_version: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[ScanResult, ...]:
    """Registers every valid adapter at or below ``prefix`` (see `list_source`), in one transaction at the end.

    An adapter is called after its path below the prefix (`adapter_names`); ``new_version`` allows names that have
    other content already. Without a registry, only reports what would be accepted. Raises `InputError` for a prefix
    that cannot be listed, and for a registry that cannot be written to; a bad adapter is a finding.
    """
    sources = list_source(prefix if "://" in prefix else str(absolute(prefix)))
    names = adapter_names(prefix, sources)
    findings: list[ScanResult] = []
    registrations: dict[int, Registration] = {}
    for place, (name, source) in enumerate(zip(names, sources, strict=True)):
        finding = ScanResult(name, str(source), "valid")
        try:
            registrations[place] = fetcher.registration(
                name, str(source), tenant=tenant, labels=labels, new_version=new_version
            )
        except InputError as error:
            finding = replace(finding, outcome="refused", why=str(error))
        findings.append(finding)
        if progress is not None:
            progress(name, place + 1, len(sources))
    if registry is not None and registrations:
        _register(registry, registrations, findings)
    return tuple(findings)


def adapter_names(prefix: str, sources: list[AdapterSource]) -> list[str]:
    """What adapters found below a prefix are called: the path below it, or its own last part for what is at it.

    >>> from loratory.adapters.sources.source import parse_source
    >>> adapter_names("s3://acme/lora", [parse_source("s3://acme/lora/sql/v2"), parse_source("s3://acme/lora")])
    ['sql/v2', 'lora']
    """
    root = prefix.rstrip("/") if "://" in prefix else str(absolute(prefix))
    names = []
    for source in sources:
        text = str(source).rstrip("/")
        below = text.removeprefix(root).strip("/") if text.startswith(root) else text
        names.append(below or text.rpartition("/")[2])
    return names


def _register(registry: Registry, registrations: Mapping[int, Registration], findings: list[ScanResult]) -> None:
    known = {(record.name, record.source, record.digest): record for record in registry.list()}
    with registry.writing() as writer:
        for place, registration in registrations.items():
            there = known.get((registration.name, registration.source, registration.description.digest))
            if there is not None and registration.tenant in (None, there.tenant):
                findings[place] = replace(findings[place], outcome="known", record=there)
                continue
            try:
                findings[place] = replace(findings[place], outcome="added", record=writer.add(registration))
            except InputError as error:
                findings[place] = replace(findings[place], outcome="refused", why=str(error))
