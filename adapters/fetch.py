"""AdapterFetcher: fetches an adapter from its source, validates it, and compares it with what was registered."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from loratory.adapters.files.validation import FileLimits, validate
from loratory.adapters.record import AdapterRecord, Registration, check_name
from loratory.adapters.sources.cache import AdapterCache
from loratory.adapters.sources.source import AdapterSource, fetch, parse_source
from loratory.adapters.verified import FetchedAdapter, VerifiedAdapter
from loratory.errors import InputError, InvalidAdapter, RefusedAdapter


class AdapterFetcher:
    """Fetches adapters from their sources through a cache and validates them. Every adapter comes in through here.

    Safe for several threads.
    """

    def __init__(self, cache: AdapterCache, limits: FileLimits | None = None) -> None:
        self.cache = cache
        self.limits = limits or FileLimits()

    def fetch(self, source: AdapterSource, *, revalidate: bool = True) -> FetchedAdapter:
        """The source's adapter, fetched and validated. Nothing stays leased if it raises `InputError`.

        ``revalidate=False`` takes what the cache fetched last without asking the source whether it has changed. A copy
        in the cache that has been damaged on disk is dropped and fetched again.
        """
        folder = fetch(source, self.cache, revalidate=revalidate)
        fetched = None
        try:
            fetched = FetchedAdapter(source, folder, validate(folder, self.limits))
        except InvalidAdapter as error:
            if source.kind == "local" or not self.cache.verify(only=folder):
                # The user knows the source, not the folder of the cache that it was fetched to.
                raise InvalidAdapter(str(error).replace(str(folder), str(source).rstrip("/"))) from None
        finally:
            if fetched is None:
                self._release(source, folder)
        return fetched or self.fetch(source, revalidate=revalidate)

    def release(self, fetched: FetchedAdapter | VerifiedAdapter) -> None:
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
        """The `Registration` of the adapter at ``source``, once it has been fetched and found valid.

        A local folder is registered by its absolute path, since a registry is read from any working folder.
        """
        check_name(name)
        fetched = self.fetch(absolute(source))
        self.release(fetched)
        text = str(fetched.source)
        return Registration(name, text, fetched.description, tenant, dict(labels or {}), lora_int_id, new_version)

    def fetch_record(self, record: AdapterRecord, *, revalidate: bool = False) -> VerifiedAdapter:
        """The adapter of a record, if its content is the one that was registered: see `verified`."""
        return self.verified(record.ref, record.source, record.digest, revalidate=revalidate)

    def verified(self, ref: str, source: str, digest: str | None, *, revalidate: bool = False) -> VerifiedAdapter:
        """The adapter at ``source``, if its content has the ``digest``; leased as by `fetch`. ``ref`` is its name.

        Without ``revalidate`` a copy in the cache that has the digest is enough, whatever the source holds by now. A
        copy that has been damaged on disk is dropped and fetched again. Without a digest, `VerifiedAdapter.digest` is
        that of the content read now. Raises `RefusedAdapter`.
        """
        try:
            fetched = self._found(absolute(source), digest, revalidate)
        except InputError as error:
            raise RefusedAdapter(f"adapter {ref!r} is refused: {error}") from error
        try:
            held = fetched.description.digest if digest is None else digest
            return VerifiedAdapter(ref, fetched.source, fetched.folder, fetched.description, held)
        except RefusedAdapter:
            self.release(fetched)
            raise

    def _found(self, source: AdapterSource, digest: str | None, revalidate: bool) -> FetchedAdapter:
        """The adapter at ``source``, with the ``digest`` if cache or source has it."""
        if source.kind == "local":
            return self.fetch(source)
        if not revalidate and (fetched := self._cached(source, digest)):
            return fetched
        fetched = self.fetch(source)
        if fetched.description.digest != digest and self.cache.verify(only=fetched.folder):
            self.release(fetched)
            fetched = self.fetch(source)
        return fetched

    def _cached(self, source: AdapterSource, digest: str | None) -> FetchedAdapter | None:
        """The copy fetched last, if it has the ``digest``; without one, if it is what was downloaded."""
        try:
            fetched = self.fetch(source, revalidate=False)
        except InputError:
            return None
        if fetched.description.digest == digest or (digest is None and not self.cache.verify(only=fetched.folder)):
            return fetched
        self.release(fetched)
        return None

    def _release(self, source: AdapterSource, folder: Path) -> None:
        if source.kind != "local":
            self.cache.release(folder)


def absolute(text: str) -> AdapterSource:
    """The source a text names, a local folder by its absolute path."""
    source = parse_source(os.path.expanduser(text) if isinstance(text, str) and text.startswith("~") else text)
    return replace(source, path=os.path.abspath(source.path)) if source.kind == "local" else source
