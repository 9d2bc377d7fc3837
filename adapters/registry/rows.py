"""Statements: the queries of a registry, each built once; to_record and to_change turn rows into values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, bindparam, func, select

from loratory.adapters.record import AdapterRecord, Change
from loratory.adapters.registry.tables import Tables
from loratory.errors import did_you_mean


def timestamp(moment: datetime) -> str:
    """UTC as text that sorts by time."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def to_record(row: Row[Any]) -> AdapterRecord:
    """The record of a row whose columns are the record's fields, in order."""
    values = list(row)
    values[_MODULES] = tuple(values[_MODULES])
    values[_CREATED] = datetime.fromisoformat(values[_CREATED])
    return AdapterRecord(*values)


def to_change(row: Row[Any]) -> Change:
    """The entry of history in a row of its table."""
    return Change(datetime.fromisoformat(row.at), row.name, row.action, row.version, row.default_version)


_FIELDS = tuple(each.name for each in fields(AdapterRecord))
_MODULES, _CREATED = _FIELDS.index("target_modules"), _FIELDS.index("created")


class Statements:
    """The statements over ``tables``; SQLAlchemy compiles each at its first use and keeps the result."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        adapters, names = tables.adapters, tables.names
        name, version = adapters.c.name == bindparam("name"), adapters.c.version == bindparam("version")
        self.record = select(*(adapters.c[each] for each in _FIELDS))
        self.default = self.record.join_from(
            names, adapters, (adapters.c.name == names.c.name) & (adapters.c.version == names.c.default_version)
        ).where(names.c.name == bindparam("name"))
        self.version = self.record.where(name, version)
        self.versions = self.record.where(name).order_by(adapters.c.version)
        self.by_id = self.record.where(adapters.c.lora_int_id == bindparam("number"))
        self.same_content = (
            self.record.where(name, adapters.c.source == bindparam("source"), adapters.c.digest == bindparam("digest"))
            .where(adapters.c.removed.is_(False))
            .order_by(adapters.c.version.desc())
            .limit(1)
        )
        self.owner = select(adapters.c.name, adapters.c.version).where(adapters.c.lora_int_id == bindparam("number"))
        self.name = select(names).where(names.c.name == bindparam("name"))
        self.insert_adapter = adapters.insert()
        self.insert_name = names.insert()
        self.update_name = (
            names.update()
            .where(names.c.name == bindparam("of"))
            .values(versions=bindparam("versions"), default_version=bindparam("default"))
        )
        self.insert_change = tables.changes.insert().inline()
        self.settings = select(tables.registry)
        self.lock = select(tables.registry.c.last_id).with_for_update()
        former = tables.defaults.c.name == bindparam("name")
        self.depth = select(func.coalesce(func.max(tables.defaults.c.depth), 0)).where(former)
        self.former = select(tables.defaults).where(former).order_by(tables.defaults.c.depth.desc())
        self.changes = select(tables.changes).order_by(tables.changes.c.number)
        self.history = self.changes.where(tables.changes.c.name == bindparam("name"))

    def listing(
        self,
        prefix: str,
        tenant: str | None,
        base_model: str | None,
        labels: Mapping[str, str],
        removed: bool,
    ) -> Select[Any]:
        """The records that fit every filter, by name and version."""
        adapters = self.tables.adapters
        query = self.record.order_by(adapters.c.name, adapters.c.version)
        if not removed:
            query = query.where(adapters.c.removed.is_(False))
        if prefix:
            query = query.where(func.substr(adapters.c.name, 1, len(prefix)) == prefix)
        if tenant is not None:
            query = query.where(adapters.c.tenant == tenant)
        if base_model is not None:
            query = query.where(adapters.c.base_model == base_model)
        for key, value in labels.items():
            query = query.where(adapters.c.labels[key].as_string() == value)
        return query

    def unknown(self, connection: Connection, name: str) -> str:
        """The error text for a name that is not registered, with the nearest of the 600 names around it."""
        column = self.tables.names.c.name
        below = select(column).where(column <= name).order_by(column.desc()).limit(300)
        above = select(column).where(column > name).order_by(column).limit(300)
        around = [row[0] for query in (below, above) for row in connection.execute(query)]
        remedy = did_you_mean(name, around, "register it first, or list the names")
        return f"no adapter is called {name!r}: {remedy}"

    def no_version(self, connection: Connection, name: str, version: int | None) -> str:
        """The error text for a name or version that does not resolve."""
        records = [to_record(row) for row in connection.execute(self.versions, {"name": name})]
        if not records:
            return self.unknown(connection, name)
        live = [record.ref for record in records if not record.removed]
        ref = name if version is None else f"{name}@{version}"
        what = "was removed" if version is None or version <= len(records) else "is not registered"
        remedy = f"there is {', '.join(live[-5:])}" if live else f"register a new version, {name}@{len(records) + 1}"
        return f"adapter {ref!r} {what}: {remedy}"
