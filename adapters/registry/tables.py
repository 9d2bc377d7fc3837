"""Tables: the tables that store a registry, the same in SQLite and PostgreSQL."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKeyConstraint,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from loratory.adapters.ids import MAX_ID

SCHEMA_VERSION = 1
"""Grows when the tables change; a registry with a higher number was written by a newer Loratory."""

_Word = Text().with_variant(Text(collation="C"), "postgresql")
"""Text ordered by code points on both databases, whatever the server's locale."""


class Tables:
    """The tables of one `MetaData`; every name begins with ``loratory_``, so a database can be shared with others."""

    def __init__(self) -> None:
        self.all = MetaData()
        self.registry = Table(
            "loratory_registry",
            self.all,
            Column("one", Integer, CheckConstraint("one = 1"), primary_key=True, autoincrement=False),
            Column("schema_version", Integer, nullable=False),
            Column("strategy", String(64), nullable=False),
            Column("last_id", BigInteger, nullable=False),
            comment="One row, which every writing transaction locks first: so writers take turns.",
        )
        self.adapters = Table(
            "loratory_adapters",
            self.all,
            Column(
                "lora_int_id",
                Integer,
                CheckConstraint(f"lora_int_id BETWEEN 1 AND {MAX_ID}"),
                primary_key=True,
                autoincrement=False,
            ),
            Column("name", _Word, nullable=False),
            Column("version", Integer, CheckConstraint("version >= 1"), nullable=False),
            Column("source", Text, nullable=False),
            Column("digest", Text, nullable=False),
            Column("rank", Integer, nullable=False),
            Column("target_modules", JSON, nullable=False),
            Column("alpha", Float(53), nullable=False),
            Column("use_rslora", Boolean, nullable=False),
            Column("base_model", Text),
            Column("dtype", String(64), nullable=False),
            Column("bytes", BigInteger, nullable=False),
            Column("parameters", BigInteger, nullable=False),
            Column("created", String(40), nullable=False, comment="UTC, ISO 8601 with microseconds"),
            Column("tenant", Text),
            Column("labels", JSON, nullable=False),
            Column("removed", Boolean, nullable=False),
            UniqueConstraint("name", "version"),
        )
        self.names = Table(
            "loratory_names",
            self.all,
            Column("name", _Word, primary_key=True),
            Column("versions", Integer, nullable=False, comment="given so far, removed ones included"),
            Column("default_version", Integer, comment="NULL when every version is removed"),
            ForeignKeyConstraint(["name", "default_version"], ["loratory_adapters.name", "loratory_adapters.version"]),
        )
        self.defaults = Table(
            "loratory_defaults",
            self.all,
            Column("name", _Word, primary_key=True),
            Column("depth", Integer, primary_key=True, autoincrement=False),
            Column("version", Integer, nullable=False),
            ForeignKeyConstraint(["name", "version"], ["loratory_adapters.name", "loratory_adapters.version"]),
            comment="Former defaults of a name, a stack: what rollback returns to is deepest.",
        )
        self.changes = Table(
            "loratory_changes",
            self.all,
            Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
            Column("at", String(40), nullable=False),
            Column("name", _Word, nullable=False, index=True),
            Column("action", String(16), nullable=False),
            Column("version", Integer, nullable=False),
            Column("default_version", Integer),
            ForeignKeyConstraint(["name", "version"], ["loratory_adapters.name", "loratory_adapters.version"]),
        )
        self.codes = Table(
            "loratory_codes",
            self.all,
            Column("kind", String(16), primary_key=True),
            Column("word", _Word, primary_key=True),
            Column("code", Integer, nullable=False),
            UniqueConstraint("kind", "code"),
        )
