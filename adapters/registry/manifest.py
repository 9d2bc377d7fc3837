"""Manifest: a registry's adapters as YAML, in order of registration, to be read, edited and imported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import yaml

from loratory.adapters.ids import id_strategies
from loratory.adapters.record import check_labels, check_name, check_text
from loratory.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from loratory.adapters.registry.registry import Registry

FORMAT = 1
"""The manifest's own version, in its first key."""

_HEAD = """\
# Adapters of a Loratory registry, in order of registration: loratory adapters import FILE
# An entry needs a name and a source; digest, lora_int_id and version are checked where they are given.
"""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a registry keeps of an adapter whose files may be gone; in manifests, of removed ones only."""

    rank: int
    target_modules: tuple[str, ...]
    alpha: float
    use_rslora: bool
    base_model: str | None
    dtype: str
    bytes: int
    parameters: int


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """One version of an adapter. ``removed``: a tombstone, which keeps its version and id taken."""

    name: str
    source: str
    version: int | None = None
    lora_int_id: int | None = None
    digest: str | None = None
    tenant: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    default: bool = False
    removed: bool = False
    facts: Facts | None = None

    @property
    def ref(self) -> str:
        """Its name in messages: ``name@version``, or the name."""
        return self.name if self.version is None else f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """Entries in order of registration, and the id strategy of the registry they come from, if any."""

    entries: tuple[ManifestEntry, ...]
    ids: str | None = None


def manifest_of(registry: Registry) -> Manifest:
    """The whole registry: every version ever registered, with tombstones, so that an import gives the same ids."""
    records = {(record.name, record.version): record for record in registry.list(removed=True)}
    order = [(change.name, change.version) for change in registry.changes() if change.action == "add"]
    defaults = registry.defaults()
    entries = []
    for key in order:
        record = records.get(key)
        if record is None:  # registered after the records were read
            continue
        facts = Facts(**{each.name: getattr(record, each.name) for each in fields(Facts)}) if record.removed else None
        entries.append(
            ManifestEntry(
                name=record.name,
                source=record.source,
                version=record.version,
                lora_int_id=record.lora_int_id,
                digest=record.digest,
                tenant=record.tenant,
                labels=dict(record.labels),
                default=defaults.get(record.name) == record.version,
                removed=record.removed,
                facts=facts,
            )
        )
    return Manifest(tuple(entries), registry.ids)


def dump_manifest(manifest: Manifest) -> str:
    """The manifest as YAML; `parse_manifest` gives an equal one."""
    ids = {} if manifest.ids is None else {"ids": manifest.ids}
    content = {"loratory_adapters": FORMAT, **ids, "adapters": [_plain(entry) for entry in manifest.entries]}
    return _HEAD + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)


def parse_manifest(text: str, where: str = "the manifest") -> Manifest:
    """The manifest in a YAML text; ``where`` names it in errors. Raises `InputError`."""
    try:
        content = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f":{mark.line + 1}"
        raise InputError(f"{where}{line}: is not YAML ({error.problem or error.context}): correct the line") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"{where}: is not YAML ({' '.join(str(error).split())}): correct it") from None
    if not isinstance(content, dict) or "adapters" not in content:
        raise InputError(f"{where}: has no key adapters: give a list of {{name, source}} under it")
    _keys(content, ("loratory_adapters", "ids", "adapters"), where)
    if content.get("loratory_adapters", FORMAT) != FORMAT:
        raise InputError(
            f"{where}: has format {content['loratory_adapters']!r}, but this Loratory reads {FORMAT}: upgrade Loratory"
        )
    ids = content.get("ids")
    if ids is not None and ids not in id_strategies():
        raise InputError(f"{where}: ids is {ids!r}: use one of {', '.join(id_strategies())}")
    listed = content["adapters"]
    if not isinstance(listed, list):
        raise InputError(f"{where}: adapters is no list: give one of {{name, source}}")
    entries = tuple(_entry(value, f"{where}: adapters[{place}]") for place, value in enumerate(listed))
    _check_order(entries, where)
    return Manifest(entries, ids)


def _plain(entry: ManifestEntry) -> dict[str, Any]:
    """An entry's values without those that equal the default."""
    plain: dict[str, Any] = {}
    for each in fields(ManifestEntry):
        value = getattr(entry, each.name)
        if value in (None, False) or value == {}:
            continue
        if isinstance(value, Facts):
            value = {f.name: getattr(value, f.name) for f in fields(Facts)}
            value["target_modules"] = list(value["target_modules"])
        plain[each.name] = dict(value) if isinstance(value, Mapping) else value
    return plain


def _entry(value: Any, where: str) -> ManifestEntry:
    if not isinstance(value, dict):
        raise InputError(f"{where}: is no mapping: give {{name: ..., source: ...}}")
    _keys(value, tuple(each.name for each in fields(ManifestEntry)), where)
    for key in ("name", "source"):
        if not isinstance(value.get(key), str):
            raise InputError(f"{where}: {key} is {value.get(key)!r}: give a text")
    labels = value.get("labels", {})
    if not isinstance(labels, dict) or not all(isinstance(x, str) for pair in labels.items() for x in pair):
        raise InputError(f"{where}: labels is {labels!r}: give a mapping of texts to texts, numbers in quotes")
    for key in ("default", "removed"):
        if not isinstance(value.get(key, False), bool):
            raise InputError(f"{where}: {key} is {value[key]!r}: write true or false")
    for key in ("version", "lora_int_id"):
        number = value.get(key)
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            raise InputError(f"{where}: {key} is {number!r}: give a whole number of at least 1")
    for key in ("digest", "tenant"):
        if value.get(key) is not None and not isinstance(value[key], str):
            raise InputError(f"{where}: {key} is {value[key]!r}: give a text, in quotes if it looks like a number")
    facts = None if value.get("facts") is None else _facts(value["facts"], f"{where}: facts")
    entry = ManifestEntry(**{**value, "labels": labels, "facts": facts})
    try:
        check_name(entry.name)
        check_labels(f"adapter {entry.name!r}", labels)
        check_text("its source", entry.source, 2000)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    if entry.removed and (facts is None or entry.version is None or entry.digest is None or entry.default):
        raise InputError(f"{where}: is removed, which needs version, digest and facts, and is no default: correct it")
    return entry


def _facts(value: Any, where: str) -> Facts:
    kinds: dict[str, tuple[type, ...]] = {
        "rank": (int,), "target_modules": (list,), "alpha": (int, float), "use_rslora": (bool,),
        "base_model": (str, type(None)), "dtype": (str,), "bytes": (int,), "parameters": (int,),
    }  # fmt: skip
    if not isinstance(value, dict):
        raise InputError(f"{where}: is no mapping: leave it as the export wrote it")
    _keys(value, tuple(kinds), where)
    for key, kind in kinds.items():
        given = value.get(key)
        if not isinstance(given, kind) or (isinstance(given, bool) and bool not in kind):
            raise InputError(f"{where}: {key} is {given!r}: leave it as the export wrote it")
    if not all(isinstance(module, str) for module in value["target_modules"]):
        raise InputError(f"{where}: target_modules has one that is no text: leave it as the export wrote it")
    return Facts(**{"base_model": None, **value, "target_modules": tuple(value["target_modules"])})


def _keys(value: Mapping[Any, Any], known: tuple[str, ...], where: str) -> None:
    for key in value:
        if key not in known:
            remedy = did_you_mean(str(key), known, f"known keys: {', '.join(known)}")
            raise InputError(f"{where}: unknown key {key!r}; {remedy}")


def _check_order(entries: Iterable[ManifestEntry], where: str) -> None:
    """One default a name; versions, where they are given, in ascending order."""
    defaults: set[str] = set()
    last: dict[str, int] = {}
    for entry in entries:
        if entry.default:
            if entry.name in defaults:
                raise InputError(f"{where}: {entry.name!r} has two defaults: keep one")
            defaults.add(entry.name)
        if entry.version is not None:
            if entry.version <= last.get(entry.name, 0):
                raise InputError(f"{where}: {entry.ref!r} comes after version {last[entry.name]}: put them in order")
            last[entry.name] = entry.version
