"""Fetched, an adapter that is here and valid, and Verified, one whose content is what its id stands for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loratory.adapters.files.description import AdapterDescription
from loratory.adapters.sources.source import Source
from loratory.errors import RefusedAdapter, shortened

_PLACE = 110
"""Characters of a source that a refusal shows, which has two digests to show."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """An adapter that is here and valid. ``folder`` is leased from the cache until `Intake.release` has it back."""

    source: Source
    folder: Path
    description: AdapterDescription


@dataclass(frozen=True, slots=True)
class Verified:
    """A fetched adapter whose content has the ``digest`` that its id stands for; the only files an engine loads.

    There is none with other content: making one raises `RefusedAdapter`. ``ref``: what the adapter is called in
    messages. `Intake.verified` makes them; who reads the files afterwards compares again with `check`, since they may
    be others by then.
    """

    ref: str
    source: Source
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
