"""FetchedAdapter, an adapter that is here and valid; VerifiedAdapter, one that has the content its id stands for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loratory.adapters.files.description import AdapterDescription
from loratory.adapters.sources.source import AdapterSource
from loratory.errors import RefusedAdapter, shortened

_PLACE = 110
"""Characters of a source in a refusal, which must also hold two digests."""


@dataclass(frozen=True, slots=True)
class FetchedAdapter:
    """An adapter that is here and valid. ``folder`` is leased from the cache until `AdapterFetcher.release`."""

    source: AdapterSource
    folder: Path
    description: AdapterDescription


@dataclass(frozen=True, slots=True)
class VerifiedAdapter:
    """A fetched adapter whose content has the ``digest`` that its id stands for; the only files an engine loads.

    There is none with other content: making one raises `RefusedAdapter`. ``ref``: the adapter's name in messages.
    `AdapterFetcher.verified` makes them. Code that reads the files afterwards compares again with `check`, since they
    may have been replaced by then.
    """

    ref: str
    source: AdapterSource
    folder: Path
    description: AdapterDescription
    digest: str

    def __post_init__(self) -> None:
        self.check(self.description.digest)

    def check(self, digest: str) -> None:
        """Raises `RefusedAdapter` unless ``digest``, that of what has been read, is this adapter's."""
        if digest != self.digest:
            raise RefusedAdapter(
                f"adapter {self.ref!r} was registered with the digest {self.digest}, and "
                f"{shortened(str(self.source), _PLACE)} holds {digest} now: put back what was registered, or register "
                "this as a new version"
            )
