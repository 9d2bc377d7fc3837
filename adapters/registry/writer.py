"""RegistryWriter: one writing transaction of a registry, which adds, promotes, rolls back, removes and gives ids."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, func, select

from loratory.adapters.ids import MAX_ID, IdClaim, IdStrategy
from loratory.adapters.record import AdapterRecord, ChangeAction, Registration
from loratory.adapters.registry.rows import Statements, timestamp, to_record
from loratory.errors import InputError


class RegistryWriter:
    """The changes possible inside `Database.writing`. It locks the registry's row first, so that writers take turns.

    ``clock`` tells the time in UTC. It is also the `IssuedIds` of the registry's id strategy.
    """

    def __init__(
        self, statements: Statements, connection: Connection, strategy: IdStrategy, clock: Callable[[], datetime]
    ) -> None:
        self._sql = statements
        self._tables = statements.tables
        self._connection = connection
        self._strategy = strategy
        self._now = clock().astimezone(UTC)
        self._last_id = self._written_last_id = int(connection.execute(statements.lock).scalar_one())

    def finish(self) -> None:
        """Stores the id counter; call it once, last."""
        if self._last_id != self._written_last_id:
            self._connection.execute(self._tables.registry.update().values(last_id=self._last_id))

    def add(self, registration: Registration) -> AdapterRecord:
        """Registers an adapter, or returns its existing record. Raises `InputError` as `Registry.add` does."""
        name = registration.name
        state = self._state(name)
        if state is not None:
            content = {"name": name, "source": registration.source, "digest": registration.description.digest}
            if row := self._connection.execute(self._sql.same_content, content).first():
                return self._same(to_record(row), registration)
            if not registration.new_version:
                raise InputError(self._other_content(state, registration))
        version = 1 if state is None else state.versions + 1
        number = self._assign(registration, version)
        facts = registration.description
        record = AdapterRecord(
            name, version, number, registration.source, facts.digest, facts.rank, tuple(facts.target_modules),
            float(facts.alpha), facts.use_rslora, facts.base_model, facts.dtype, facts.bytes, facts.parameters,
            self._now, registration.tenant, dict(registration.labels),
        )  # fmt: skip
        self._connection.execute(self._sql.insert_adapter, self._row(record))
        default = version if state is None or state.default_version is None else state.default_version
        if state is None:
            self._connection.execute(self._sql.insert_name, {"name": name, "versions": 1, "default_version": default})
        else:
            self._connection.execute(self._sql.update_name, {"of": name, "versions": version, "default": default})
        self._note(name, "add", version, default)
        return record

    def promote(self, name: str, version: int) -> AdapterRecord:
        """Makes a version the default of its name, and remembers the former one for `rollback`."""
        state, record = self._known(name), self._live(name, version)
        if state.default_version != version:
            if state.default_version is not None:
                depth = self._connection.execute(self._sql.depth, {"name": name}).scalar_one() + 1
                push = {"name": name, "depth": depth, "version": state.default_version}
                self._connection.execute(self._tables.defaults.insert(), push)
            self._set_default(state, version, "promote", version)
        return record

    def rollback(self, name: str) -> AdapterRecord:
        """Makes the former default the default again."""
        state, defaults = self._known(name), self._tables.defaults
        for former in self._connection.execute(self._sql.former, {"name": name}).all():
            self._connection.execute(defaults.delete().where(defaults.c.name == name, defaults.c.depth == former.depth))
            # A removal takes versions out of the stack, so the top can equal the present default.
            if former.version != state.default_version:
                self._set_default(state, former.version, "rollback", former.version)
                return self._live(name, former.version)
        raise InputError(f"adapter {name!r} has no former default to roll back to: promote a version of it instead")

    def remove(self, name: str, version: int | None) -> tuple[AdapterRecord, ...]:
        """Replaces a version, or every version, by a tombstone."""
        state = self._known(name)
        live = [to_record(row) for row in self._connection.execute(self._sql.versions, {"name": name})]
        live = [record for record in live if not record.removed]
        gone = live if version is None else [self._live(name, version)]
        if not gone:
            raise InputError(f"adapter {name!r} has been removed already: no version is left to remove")
        if len(gone) < len(live) and version == state.default_version:
            raise InputError(
                f"{name}@{version} is what {name!r} resolves to: promote another version or roll back first, or remove "
                f"{name!r} with all its versions"
            )
        adapters, defaults = self._tables.adapters, self._tables.defaults
        for record in gone:
            self._connection.execute(
                adapters.update().where(adapters.c.lora_int_id == record.lora_int_id).values(removed=True)
            )
            self._connection.execute(
                defaults.delete().where(defaults.c.name == name, defaults.c.version == record.version)
            )
        default = None if len(gone) == len(live) else state.default_version
        self._connection.execute(self._sql.update_name, {"of": name, "versions": state.versions, "default": default})
        for record in gone:
            self._note(name, "remove", record.version, default)
        return tuple(self._record(name, record.version) for record in gone)

    def owner(self, lora_int_id: int) -> str | None:
        """`IssuedIds.owner`."""
        row = self._connection.execute(self._sql.owner, {"number": lora_int_id}).first()
        return None if row is None else f"{row.name}@{row.version}"

    def next_id(self) -> int:
        """`IssuedIds.next_id`."""
        self._last_id += 1
        return self._last_id

    def code(self, kind: str, word: str) -> int:
        """`IssuedIds.code`."""
        codes = self._tables.codes
        number = self._connection.execute(
            select(codes.c.code).where(codes.c.kind == kind, codes.c.word == word)
        ).scalar()
        if number is None:
            highest = select(func.coalesce(func.max(codes.c.code), -1)).where(codes.c.kind == kind)
            number = self._connection.execute(highest).scalar_one() + 1
            self._connection.execute(codes.insert(), {"kind": kind, "word": word, "code": number})
        return int(number)

    def _assign(self, registration: Registration, version: int) -> int:
        claim = IdClaim(
            registration.name,
            version,
            registration.source,
            registration.description.digest,
            registration.lora_int_id,
            dict(registration.labels),
        )
        number = self._strategy.assign(claim, self)
        # A strategy may come from the user: check that one id never means two adapters.
        if not 1 <= number <= MAX_ID or (owner := self.owner(number)) is not None:
            reason = f"is adapter {owner!r}" if 1 <= number <= MAX_ID else f"is not in 1 to {MAX_ID}"
            raise InputError(
                f"id strategy {self._strategy.name!r} gave {claim.name!r} the id {number}, which {reason}: correct the "
                "strategy"
            )
        return number

    def _same(self, record: AdapterRecord, registration: Registration) -> AdapterRecord:
        if registration.tenant != record.tenant:
            raise InputError(
                f"adapter {record.ref!r} belongs to tenant {record.tenant!r}, not {registration.tenant!r}: register it "
                "under another name"
            )
        if registration.lora_int_id not in (None, record.lora_int_id):
            raise InputError(
                f"adapter {record.ref!r} has the id {record.lora_int_id} for ever, not {registration.lora_int_id}: ask "
                "for that one, or register it under another name"
            )
        return record

    def _other_content(self, state: Row[Any], registration: Registration) -> str:
        name = registration.name
        if state.default_version is None:
            return (
                f"adapter {name!r} was removed: register it as the new version "
                f"{name}@{state.versions + 1} (--new-version; in Python new_version=True)"
            )
        current = self._record(name, state.default_version)
        differs = "source" if current.source != registration.source else "digest"
        was = current.source if differs == "source" else current.digest
        now = registration.source if differs == "source" else registration.description.digest
        return (
            f"adapter {name!r} is registered with the {differs} {was!r}, not {now!r}: register it as the new version "
            f"{name}@{state.versions + 1} (--new-version; in Python new_version=True), or under another name"
        )

    def _state(self, name: str) -> Row[Any] | None:
        return self._connection.execute(self._sql.name, {"name": name}).first()

    def _known(self, name: str) -> Row[Any]:
        state = self._state(name)
        if state is None:
            raise InputError(self._sql.unknown(self._connection, name))
        return state

    def _record(self, name: str, version: int) -> AdapterRecord:
        return to_record(self._connection.execute(self._sql.version, {"name": name, "version": version}).one())

    def _live(self, name: str, version: int) -> AdapterRecord:
        row = self._connection.execute(self._sql.version, {"name": name, "version": version}).first()
        if row is None or row.removed:
            raise InputError(self._sql.no_version(self._connection, name, version))
        return to_record(row)

    def _set_default(self, state: Row[Any], default: int, action: ChangeAction, version: int) -> None:
        values = {"of": state.name, "versions": state.versions, "default": default}
        self._connection.execute(self._sql.update_name, values)
        self._note(state.name, action, version, default)

    def _note(self, name: str, action: ChangeAction, version: int, default: int | None) -> None:
        values = {"at": timestamp(self._now), "name": name, "action": action, "version": version}
        self._connection.execute(self._sql.insert_change, values | {"default_version": default})

    @staticmethod
    def _row(record: AdapterRecord) -> dict[str, Any]:
        row = {name: getattr(record, name) for name in record.__slots__}
        return row | {"created": timestamp(record.created), "target_modules": list(record.target_modules)}
