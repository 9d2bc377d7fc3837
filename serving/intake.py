"""Intake: fetches and validates adapters; says what a registry is told, and whether one is what its record says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from serving.adapter_cache import AdapterCache
from serving.description import AdapterDescription
from serving.errors import InputError, InvalidAdapter, RefusedAdapter
from serving.record import AdapterRecord, Registration, check_name
from serving.sources import Source, fetch, parse_source
from serving.validation import Limits, describe


@dataclass(frozen=True, slots=True)
class Fetched:
    """An adapter that is here and valid. ``folder`` is leased from the cache until `Intake.release` has it back."""

    source: Source
    folder: Path
    description: AdapterDescription


class Intake:
    """The one way an adapter comes in: from its source through the cache past the limits. Safe for several threads."""

    def __init__(self, cache: AdapterCache, limits: Limits | None = None) -> None:
        self.cache = cache
        self.limits = limits or Limits()

    def fetch(self, source: Source, *, revalidate: bool = True) -> Fetched:
        """The source's adapter, fetched and validated. Raises `InputError`; then nothing stays leased.

        ``revalidate=False`` takes what the cache fetched last without asking the source whether it has changed.
        """
        folder = fetch(source, self.cache, revalidate=revalidate)
        found = None
        try:
            found = Fetched(source, folder, describe(folder, self.limits))
        except InvalidAdapter as error:
            # Who reads it knows the source, not the folder of the cache it was fetched to.
            raise InvalidAdapter(str(error).replace(str(folder), str(source).rstrip("/"))) from None
        finally:
            if found is None:
                self._release(source, folder)
        return found

    def release(self, fetched: Fetched) -> None:
        """Lets the cache evict the folder again."""
        self._release(fetched.source, fetched.folder)

    def registration(
        self,
        name: str,
        source: str,
        *,
        tenant: str | None = None,
        labels: Mapping[str, str] | None = None,
        lora_int_id: int | None = None,
        new_version: bool = False,
    ) -> Registration:
        """What to tell a registry of the adapter at ``source``, once it has been fetched and found valid.

        A local folder is registered by its absolute path, since a registry is read from any working folder.
        """
        check_name(name)
        found = self.fetch(absolute(source))
        self.release(found)
        text = str(found.source)
        return Registration(name, text, found.description, tenant, dict(labels or {}), lora_int_id, new_version)

    def fetch_record(self, record: AdapterRecord, *, revalidate: bool = False) -> Fetched:
        """The adapter of a record, if its content is the one that was registered; leased like `fetch`.

        Without ``revalidate`` a copy in the cache that has the record's digest is enough, whatever the source holds by
        now. A copy that rotted on disk is dropped and fetched again. Raises `RefusedAdapter`.
        """
        source = absolute(record.source)
        try:
            if source.kind != "local":
                if not revalidate and (found := self._cached(record, source)):
                    return found
                found = self.fetch(source)
                if found.description.digest != record.digest and self.cache.verify(only=found.folder):
                    self.release(found)
                    found = self.fetch(source)
            else:
                found = self.fetch(source)
        except InputError as error:
            raise RefusedAdapter(f"adapter {record.ref!r} is refused: {error}") from error
        if found.description.digest != record.digest:
            self.release(found)
            raise RefusedAdapter(
                f"adapter {record.ref!r} was registered with the digest {record.digest}, and {source} holds "
                f"{found.description.digest} now: put back what was registered, or register this as a new version"
            )
        return found

    def _cached(self, record: AdapterRecord, source: Source) -> Fetched | None:
        """The copy fetched last, if it is what the record says."""
        try:
            found = self.fetch(source, revalidate=False)
        except InputError:
            return None
        if found.description.digest == record.digest:
            return found
        self.release(found)
        return None

    def _release(self, source: Source, folder: Path) -> None:
        if source.kind != "local":
            self.cache.release(folder)


def absolute(text: str) -> Source:
    """The source a text names, a local folder by its absolute path."""
    source = parse_source(os.path.expanduser(text) if isinstance(text, str) and text.startswith("~") else text)
    return replace(source, path=os.path.abspath(source.path)) if source.kind == "local" else source
