"""Adapters tables: records as JSON values, as lines and as table rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from loratory.models.linear_layers import BLOCKS, HEAD

if TYPE_CHECKING:
    from loratory.adapters.record import AdapterRecord, Change
    from loratory.adapters.registry.scan import ScanResult


def as_json(record: AdapterRecord, default: bool) -> dict[str, Any]:
    """All values of a record; ``default``: whether its name resolves to it."""
    values = {each.name: getattr(record, each.name) for each in fields(record)}
    values |= {"target_modules": list(record.target_modules), "labels": dict(record.labels)}
    return {"ref": record.ref, **values, "created": record.created.isoformat(), "default": default}


def change_json(change: Change) -> dict[str, Any]:
    """An entry of a name's history."""
    return {
        "at": change.at.isoformat(),
        "name": change.name,
        "action": change.action,
        "version": change.version,
        "default": change.default,
    }


def finding_json(finding: ScanResult) -> dict[str, Any]:
    """The result of a scan at one source."""
    record = finding.record
    return {
        "name": finding.name,
        "source": finding.source,
        "outcome": finding.outcome,
        "ref": None if record is None else record.ref,
        "lora_int_id": None if record is None else record.lora_int_id,
        "why": finding.why or None,
    }


def line(record: AdapterRecord) -> str:
    """A record on one line."""
    return (
        f"id {record.lora_int_id}, rank {record.rank}, {modules(record.target_modules)}, {size(record.bytes)} "
        f"({record.dtype})" + (f", for {record.base_model}" if record.base_model else "")
    )


def records_table(records: Iterable[AdapterRecord], defaults: Mapping[str, int], narrow: bool = False) -> Table:
    """One row per version; an asterisk marks the version its name resolves to. ``narrow``: only the main columns."""
    more = () if narrow else ("base model", "tenant", "labels")
    table = _table("adapter", "*id", "*rank", "modules", "*size", *more, "source")
    for record in records:
        mark = " *" if defaults.get(record.name) == record.version else "  "
        _row(
            table,
            record.ref + (" (removed)" if record.removed else mark),
            record.lora_int_id,
            record.rank,
            modules(record.target_modules),
            size(record.bytes),
            *(() if narrow else (record.base_model or "-", record.tenant or "-", _labels(record.labels))),
            record.source,
        )
    return table


def facts_table(record: AdapterRecord, default: int | None) -> Table:
    """All values of a record, one per row."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    resolves = "removed" if record.removed else "yes" if default == record.version else f"no, to @{default}"
    for name, value in (
        ("adapter", record.ref),
        ("lora_int_id", record.lora_int_id),
        (f"{record.name} resolves to it", resolves),
        ("source", record.source),
        ("digest", record.digest),
        ("base model", record.base_model or "-"),
        ("rank, alpha", f"{record.rank}, {record.alpha:g}" + (" (rsLoRA)" if record.use_rslora else "")),
        ("target modules", ", ".join(record.target_modules)),
        ("size", f"{size(record.bytes)} ({record.parameters:,} parameters, {record.dtype})"),
        ("tenant", record.tenant or "-"),
        ("labels", _labels(record.labels)),
        ("registered", record.created.strftime("%Y-%m-%d %H:%M:%S UTC")),
    ):
        _row(table, name, value)
    return table


def history_table(changes: Iterable[Change]) -> Table:
    """One row per change, oldest first."""
    table = _table("when (UTC)", "what", "version", "resolves to")
    for change in changes:
        default = "-" if change.default is None else f"@{change.default}"
        _row(table, change.at.strftime("%Y-%m-%d %H:%M:%S"), change.action, f"@{change.version}", default)
    return table


def findings_table(findings: Iterable[ScanResult]) -> Table:
    """One row per source."""
    table = _table("source", "outcome", "adapter", "*id", "why")
    for finding in findings:
        record = finding.record
        ref, number = ("-", "-") if record is None else (record.ref, record.lora_int_id)
        _row(table, finding.source, finding.outcome, ref if record else finding.name, number, finding.why or "-")
    return table


def modules(names: tuple[str, ...]) -> str:
    """Target modules in short: ``q k v o`` or ``all-linear``, and ``lm_head`` if it is among them."""
    layer = [name.removesuffix("_proj") for name in names if name != HEAD]
    short = ["all-linear"] if len(layer) == len(BLOCKS) else layer
    return " ".join([*short, *([HEAD] if HEAD in names else [])])


def size(count: int) -> str:
    """Bytes with a unit.

    >>> size(13_631_488)
    '13.6 MB'
    """
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def _labels(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels.items()) or "-"


def _table(*heads: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for head in heads:
        right = head.startswith("*")
        justify: Any = "right" if right else "left"
        table.add_column(head.removeprefix("*"), justify=justify, overflow="fold", no_wrap=right)
    return table


def _row(table: Table, *cells: object) -> None:
    # As Text, so that rich does not read brackets in a name as markup.
    table.add_row(*(Text(str(cell)) for cell in cells))
