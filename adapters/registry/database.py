"""Database: where a registry's tables are: SQLite in a file or in memory, or PostgreSQL by URL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from threading import Lock
from time import sleep
from typing import Any

from sqlalchemy import Connection, Engine, MetaData, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError
from sqlalchemy.pool import NullPool, QueuePool

from loratory.errors import InputError
from loratory.git_lfs import refuse_pointer

BUSY_S = 60
"""Seconds that a write waits for another process's write before it gives up."""

_ADVISORY_KEY = 0x6C6F7261
"""PostgreSQL's advisory lock under which tables are created: ``CREATE TABLE IF NOT EXISTS`` alone is not atomic."""


class Database:
    """Connections to one database; opened at the first use, from any thread, in any process.

    ``where``: a path, ``sqlite:///path``, ``:memory:`` or ``sqlite://`` (gone when closed), ``postgresql://...`` or
    ``postgresql+psycopg://...``. ``hold``: whether connections to a SQLite file stay open between two uses; if not, the
    file may be replaced in between, with no write-ahead log of the old one beside it. Every failure of the database is
    an `InputError` of one sentence.
    """

    def __init__(self, where: str | os.PathLike[str], *, hold: bool = True) -> None:
        self.url = _url(where)
        self.shown = self.url.render_as_string(hide_password=True)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.path: Path | None = None
        if self.is_sqlite:
            self.path = None if self.url.database in (None, "", ":memory:") else Path(str(self.url.database))
            self.shown = str(self.path) if self.path else ":memory:"
        self._engine: Engine | None = None
        self._hold = hold
        self._making = Lock()
        self._file: tuple[int, int] | None = None
        """Device and number of the SQLite file, once it has been seen."""

    @property
    def engine(self) -> Engine:
        """SQLAlchemy's engine, made at its first use; making it connects to nothing."""
        if self._engine is None:
            with self._making:
                if self._engine is None:
                    self._engine = self._sqlite_engine() if self.is_sqlite else self._postgres_engine()
        return self._engine

    def follow(self) -> bool:
        """Whether another file than before is at the path; connections to the old one are closed then.

        SQLite would go on with the file that it has open, wherever that is by now. Raises `InputError` for a file that
        is gone; a file that has not been there yet is none.
        """
        if self.path is None:
            return False
        try:
            found = self.path.stat()
        except OSError as error:
            if self._file is None:
                return False
            raise InputError(
                f"registry {self.shown} was there before, and is gone now ({error.strerror}): put it back"
            ) from None
        file = (found.st_dev, found.st_ino)
        with self._making:
            before, self._file = self._file, file
            if before in (None, file):
                return False
            if self._engine is not None:
                self._engine.dispose()
            return True

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for one SELECT, which needs no transaction around it."""
        with self._explained(), self.engine.connect() as connection:
            yield connection if self.is_sqlite else connection.execution_options(isolation_level="AUTOCOMMIT")

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A connection in a transaction that commits when the block ends, and rolls back when it raises.

        SQLite: BEGIN IMMEDIATE, which admits one writer. PostgreSQL: READ COMMITTED; the transaction that locks the
        registry's row first is the only writer as well.
        """
        with self._explained(), self.engine.connect() as connection:
            if self.is_sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{BUSY_S}s'")
            yield connection
            connection.commit()

    def use_wal(self) -> None:
        """Puts a SQLite file in WAL mode, which stays with the file: readers and the writer do not block each other.

        Where the file system does not support it (no shared memory), SQLite's rollback journal is as safe.
        """
        if not self.path:
            return
        for _ in range(100):
            try:
                with self.engine.connect() as connection:
                    connection.exec_driver_sql("PRAGMA journal_mode = WAL")
                return
            except DBAPIError as error:
                # Unlike elsewhere, SQLite does not wait here for another process that uses the file.
                if "locked" not in str(error.orig):
                    raise InputError(self._sentence(error)) from error
            sleep(0.05)

    def create(self, tables: MetaData, connection: Connection) -> None:
        """Creates missing tables in the caller's writing transaction; one process at a time does so."""
        if not self.is_sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_KEY})
        tables.create_all(connection)

    def table_names(self) -> set[str]:
        """The names of existing tables (PostgreSQL: in the schema of new ones). Creates no SQLite file."""
        if self.path and not self.path.exists():
            return set()
        with self.reading() as connection:
            if not self.is_sqlite:
                encoding = connection.execute(text("SHOW server_encoding")).scalar_one()
                if encoding != "UTF8":
                    raise InputError(
                        f"database {self.shown} has the encoding {encoding}, which loses names: create it with "
                        "ENCODING 'UTF8'"
                    )
            return set(inspect(connection).get_table_names())

    def damage(self) -> list[str]:
        """Faults that SQLite finds in its file, and rows that refer to no row; PostgreSQL has no such check."""
        if not self.is_sqlite:
            return []
        with self.reading() as connection:
            checked = [row[0] for row in connection.exec_driver_sql("PRAGMA integrity_check")]
            orphans = [f"{row[0]} row {row[1]}" for row in connection.exec_driver_sql("PRAGMA foreign_key_check")]
        return [f"SQLite: {line}" for line in checked if line != "ok"] + [f"{row} refers to no row" for row in orphans]

    def close(self) -> None:
        """Closes the connections; a later use opens new ones."""
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None
        self._file = None

    def _sqlite_engine(self) -> Engine:
        folder = self.path.parent if self.path else None
        if folder is not None and not folder.is_dir():
            raise InputError(f"registry {self.shown}: there is no folder {str(folder)!r}, so create it first")
        # A database in memory belongs to its connection, so all threads take turns on one.
        pool: dict[str, Any] = {} if self.path else {"pool_size": 1, "max_overflow": 0, "pool_timeout": BUSY_S}
        arguments = {"timeout": BUSY_S, "check_same_thread": False}
        pool["poolclass"] = QueuePool if self._hold or not self.path else NullPool
        engine = create_engine(self.url, connect_args=arguments, **pool)

        @event.listens_for(engine, "connect")
        def _connected(connection: Any, _: Any) -> None:
            # Python's driver must not begin transactions: `writing` does.
            connection.isolation_level = None
            connection.execute("PRAGMA foreign_keys = ON")
            # If a power cut undid a commit, its ids would be given to other adapters afterwards.
            connection.execute("PRAGMA synchronous = FULL")

        return engine

    def _postgres_engine(self) -> Engine:
        try:
            import_module("psycopg")
        except ImportError:
            raise InputError(
                f'registry {self.shown} needs the PostgreSQL driver: run pip install "loratory[postgres]" first'
            ) from None
        arguments = {} if "connect_timeout" in self.url.query else {"connect_timeout": 10}
        return create_engine(self.url, isolation_level="READ COMMITTED", pool_pre_ping=True, connect_args=arguments)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise
        except DBAPIError as error:
            raise InputError(self._sentence(error)) from error

    def _sentence(self, error: DBAPIError) -> str:
        # The driver's text continues with hints and the statement; its first line names the fault.
        reason = (str(error.orig).strip().splitlines() or ["no reason given"])[0].rstrip(".")
        if self.is_sqlite:
            if self.path is not None and "not a database" in reason:
                refuse_pointer(self.path, "registry ")
            for sign, meaning in (
                ("not a database", "is not a SQLite file: give the path of a registry, or of a new file"),
                ("malformed", "is damaged: restore it from a backup, or save what `sqlite3 FILE .recover` finds"),
                ("locked", f"was being written to for {BUSY_S} s by another process: try again when it has ended"),
                ("readonly", "cannot be written to: give yourself the right to write the file and its folder"),
                ("unable to open", "cannot be opened: it must be a file that you may write, in such a folder"),
                ("is full", "has no room left: free space on its disk"),
            ):
                if sign in reason:
                    return f"registry {self.shown} {meaning}"
            return f"registry {self.shown} cannot be used ({reason}): check the file and its folder"
        if getattr(error.orig, "sqlstate", None) == "55P03":
            return f"registry {self.shown} was being written to for {BUSY_S} s by another process: try again later"
        if error.connection_invalidated or not getattr(error.orig, "sqlstate", None):
            return (
                f"registry {self.shown} cannot be reached ({reason}): check that the PostgreSQL server runs "
                "and the URL is right"
            )
        return f"registry {self.shown} refused ({reason}): correct the URL, or the user's rights on that database"


def _url(where: str | os.PathLike[str]) -> URL:
    spelled = os.fspath(where)
    if not spelled or "\0" in spelled:
        raise InputError(f"{spelled!r} is no place for a registry: give a file, or a postgresql:// URL")
    if "://" not in spelled:
        return URL.create("sqlite", database=spelled)
    try:
        url = make_url(spelled)
        if url.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
            return url.set(drivername="postgresql+psycopg")
    except (ArgumentError, ValueError):
        raise InputError("the registry's URL cannot be read: write postgresql://USER@HOST:PORT/DATABASE") from None
    if url.drivername == "sqlite" and not url.host:
        return url
    raise InputError(
        f"a registry cannot be at {url.render_as_string(hide_password=True)!r}: give a file, sqlite:///FILE, or "
        "postgresql://USER@HOST:PORT/DATABASE"
    )
