"""Registry: maps names to adapters with permanent ids, versions and defaults, in SQLite or PostgreSQL."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from sqlalchemy import func, select

from loratory.adapters.files.description import AdapterDescription
from loratory.adapters.ids import MAX_ID, IdStrategy, SemanticIds, id_strategies, id_strategy
from loratory.adapters.record import AdapterRecord, Change, Registration, check_name, split_ref
from loratory.adapters.registry.database import Database
from loratory.adapters.registry.rows import Statements, to_change, to_record
from loratory.adapters.registry.tables import SCHEMA_VERSION, Tables
from loratory.adapters.registry.writer import RegistryWriter
from loratory.errors import InputError, RemovedAdapter, UnknownAdapter
from loratory.serving.lora import LoRARequest

LOG = logging.getLogger("loratory.adapters")


@dataclass(frozen=True, slots=True)
class IdMeaning:
    """The meaning of a semantic id, in words."""

    task: str
    domain: str
    version: int


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Registry:
    """A registry at ``where``: a file, ``sqlite:///FILE``, ``:memory:``, or ``postgresql://USER@HOST/DATABASE``.

    Opened at the first use, and created if it does not exist (with ``create=False`` that is an error). ``ids`` is the
    `IdStrategy` of a new registry or its name (by default ``sequential``); a registry keeps the strategy it began with.
    ``hold``: see `Database`. ``clock`` gives the time written into records. Threads may share it; processes share it
    by ``where``.

    Every method raises `InputError`, one sentence with the remedy, for bad arguments and for a database that cannot be
    reached, read or written.

    >>> with Registry(":memory:") as registry:
    ...     registry.names()
    ()
    """

    def __init__(
        self,
        where: str | os.PathLike[str],
        ids: str | IdStrategy | None = None,
        *,
        create: bool = True,
        hold: bool = True,
        clock: Callable[[], datetime] = _utc_now,
    ) -> None:
        self._database = Database(where, hold=hold)
        self._sql = Statements(Tables())
        self._wanted = id_strategy(ids) if isinstance(ids, str) else ids
        self._strategy: IdStrategy | None = None
        self._create = create
        self._clock = clock

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """Connects, creates missing tables, and checks the schema; every method does it when needed.

        A SQLite file that was replaced is opened anew; one that is gone is an `InputError`.
        """
        self._ready()

    def close(self) -> None:
        """Closes the connections. A registry in memory is lost."""
        self._strategy = None
        self._database.close()

    @property
    def where(self) -> str:
        """The path or the URL, without its password."""
        return self._database.shown

    @property
    def ids(self) -> str:
        """The name of the registry's id strategy."""
        return self._ready().name

    @property
    def exists(self) -> bool:
        """Whether the registry exists; does not create it."""
        return self._sql.tables.registry.name in self._database.table_names()

    def add(
        self,
        name: str,
        source: str,
        description: AdapterDescription,
        *,
        tenant: str | None = None,
        labels: Mapping[str, str] | None = None,
        lora_int_id: int | None = None,
        new_version: bool = False,
    ) -> AdapterRecord:
        """Registers an adapter and gives it an id, or returns the record of the same content under this name.

        The same content is the same source and digest; tenant and id must then agree, and new labels change nothing.
        Raises `InputError` when the name has other content, unless ``new_version``: then it becomes the next version,
        and the default only if the name has none. A removed adapter, too, returns as a new version.
        """
        registration = Registration(name, source, description, tenant, dict(labels or {}), lora_int_id, new_version)
        return self.add_many([registration])[0]

    def add_many(self, registrations: Iterable[Registration]) -> tuple[AdapterRecord, ...]:
        """`add` for each, in order, in one transaction: all are registered, or none."""
        with self._writing() as writer:
            return tuple([writer.add(registration) for registration in registrations])

    def writing(self) -> AbstractContextManager[RegistryWriter]:
        """Several changes in one transaction: all of them are kept when the block ends, none when it raises."""
        return self._writing()

    def promote(self, name: str, version: int) -> AdapterRecord:
        """Makes ``name`` resolve to that version from now on, everywhere."""
        check_name(name)
        _, checked = split_ref(f"{name}@{version}")
        assert checked is not None
        with self._writing() as writer:
            return writer.promote(name, checked)

    def rollback(self, name: str) -> AdapterRecord:
        """Undoes the last `promote` of the name that is not undone yet; versions removed since are passed over."""
        check_name(name)
        with self._writing() as writer:
            return writer.rollback(name)

    def remove(self, ref: str) -> tuple[AdapterRecord, ...]:
        """Removes ``name@version``, or ``name`` with all versions; their ids and version numbers are never used again.

        A default version is refused while others remain, since `remove` does not choose what is served instead.
        """
        with self._writing() as writer:
            return writer.remove(*split_ref(ref))

    def resolve(self, ref: str) -> AdapterRecord:
        """The record ``name`` (its default version) or ``name@version`` means now. Nothing is cached.

        Raises `UnknownAdapter` when the name was never registered, `RemovedAdapter` when what it means is removed.
        """
        name, version = split_ref(ref)
        self.open()
        with self._database.reading() as connection:
            if version is None:
                row = connection.execute(self._sql.default, {"name": name}).first()
            else:
                row = connection.execute(self._sql.version, {"name": name, "version": version}).first()
            if row is not None and not row.removed:
                return to_record(row)
            sentence = self._sql.no_version(connection, name, version)
            known = connection.execute(self._sql.name, {"name": name}).first() is not None
        raise RemovedAdapter(sentence) if known else UnknownAdapter(sentence)

    def lora_request(self, ref: str, path: str | None = None) -> LoRARequest:
        """`resolve` as a request carries it; ``path`` is where the files are here, the source when left out."""
        return self.resolve(ref).lora_request(path)

    def by_id(self, lora_int_id: int) -> AdapterRecord:
        """The only record that ever had the id, even if it has been removed."""
        self.open()
        row = None
        if 1 <= lora_int_id <= MAX_ID:  # a database's integers end there
            with self._database.reading() as connection:
                row = connection.execute(self._sql.by_id, {"number": lora_int_id}).first()
        if row is None:
            raise InputError(
                f"lora_int_id {lora_int_id} was never given in registry {self.where}: list those there are"
            )
        return to_record(row)

    def decode(self, lora_int_id: int) -> IdMeaning:
        """The meaning of a semantic id, in the words of this registry's code books."""
        if self.ids != SemanticIds().name:
            raise InputError(
                f"registry {self.where} has {self.ids} ids, which have no meaning: use one with semantic ids"
            )
        fields = SemanticIds.decode(lora_int_id)
        codes = self._sql.tables.codes
        with self._database.reading() as connection:
            words = {(row.kind, row.code): row.word for row in connection.execute(select(codes))}
        try:
            return IdMeaning(words["task", fields.task], words["domain", fields.domain], fields.version)
        except KeyError as error:
            kind, code = error.args[0]
            raise InputError(
                f"{kind} code {code} of id {lora_int_id} is not in registry {self.where}: check it"
            ) from None

    def list(
        self,
        *,
        prefix: str = "",
        tenant: str | None = None,
        base_model: str | None = None,
        labels: Mapping[str, str] | None = None,
        removed: bool = False,
    ) -> tuple[AdapterRecord, ...]:
        """Every version that fits all filters, by name and version; with ``removed``, tombstones too."""
        self.open()
        query = self._sql.listing(prefix, tenant, base_model, labels or {}, removed)
        with self._database.reading() as connection:
            return tuple([to_record(row) for row in connection.execute(query)])

    def names(self) -> tuple[str, ...]:
        """The names that resolve, sorted."""
        return tuple(self.defaults())

    def defaults(self) -> dict[str, int]:
        """The default version of every name that resolves, by name in order."""
        self.open()
        names = self._sql.tables.names
        query = select(names.c.name, names.c.default_version).where(names.c.default_version.is_not(None))
        with self._database.reading() as connection:
            return {row[0]: row[1] for row in connection.execute(query.order_by(names.c.name))}

    def history(self, name: str) -> tuple[Change, ...]:
        """Every change of a name, oldest first; a removed name has one, too."""
        check_name(name)
        self.open()
        with self._database.reading() as connection:
            rows = connection.execute(self._sql.history, {"name": name}).all()
            if not rows:
                raise InputError(self._sql.unknown(connection, name))
        return tuple([to_change(row) for row in rows])

    def changes(self) -> tuple[Change, ...]:
        """The history of every name, oldest first."""
        self.open()
        with self._database.reading() as connection:
            return tuple([to_change(row) for row in connection.execute(self._sql.changes)])

    def name_rows(self) -> dict[str, tuple[int, int | None]]:
        """For every name ever used: how many versions it has had, and its default version, None if all are removed."""
        self.open()
        with self._database.reading() as connection:
            rows = connection.execute(select(self._sql.tables.names))
            return {row.name: (row.versions, row.default_version) for row in rows}

    def damage(self) -> tuple[str, ...]:
        """Faults that the database finds in its own file; a PostgreSQL server checks its files itself."""
        self.open()
        return tuple(self._database.damage())

    def __len__(self) -> int:
        """Versions that are not removed."""
        self.open()
        adapters = self._sql.tables.adapters
        with self._database.reading() as connection:
            return connection.execute(
                select(func.count()).select_from(adapters).where(adapters.c.removed.is_(False))
            ).scalar_one()

    @contextmanager
    def _writing(self) -> Iterator[RegistryWriter]:
        strategy = self._ready()
        with self._database.writing() as connection:
            writer = RegistryWriter(self._sql, connection, strategy, self._clock)
            yield writer
            writer.finish()

    def _ready(self) -> IdStrategy:
        replaced = self._database.follow()
        if replaced:
            LOG.warning("registry %s is another file than before, and is read anew", self.where)
            self._strategy = None
        strategy = self._strategy
        if strategy is None:
            strategy = self._opened()
            self._database.follow()
            self._strategy = strategy
        return strategy

    def _opened(self) -> IdStrategy:
        database, tables = self._database, self._sql.tables
        present = database.table_names()
        if tables.registry.name not in present:
            if not self._create:
                raise InputError(f"there is no registry at {self.where}: check the path, or register an adapter there")
            if database.is_sqlite and present:
                raise InputError(f"{self.where} is a database without a registry: give another file")
            database.use_wal()
            with database.writing() as connection:
                database.create(tables.all, connection)
                if connection.execute(self._sql.settings).first() is None:
                    name = self._wanted.name if self._wanted else "sequential"
                    first = {"one": 1, "schema_version": SCHEMA_VERSION, "strategy": name, "last_id": 0}
                    connection.execute(tables.registry.insert(), first)
        with database.reading() as connection:
            settings = connection.execute(self._sql.settings).one()
        if settings.schema_version != SCHEMA_VERSION:
            raise InputError(
                f"registry {self.where} has schema {settings.schema_version}, but this Loratory reads "
                f"{SCHEMA_VERSION}: upgrade Loratory"
            )
        if self._wanted and self._wanted.name != settings.strategy:
            raise InputError(
                f"registry {self.where} gives {settings.strategy!r} ids, not {self._wanted.name!r}: "
                "leave the strategy out, or create another registry"
            )
        if self._wanted is None and settings.strategy not in id_strategies():
            raise InputError(
                f"registry {self.where} has ids of a strategy {settings.strategy!r} that is not Loratory's: give the "
                "IdStrategy object it was made with"
            )
        return self._wanted or id_strategy(settings.strategy)
