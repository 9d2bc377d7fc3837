"""Library index: the scenarios that come with Loratory."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from loratory.scenarios.document import read_document


@dataclass(frozen=True, slots=True)
class LibraryEntry:
    """One scenario that comes with Loratory: the name to run it by, what it shows, and its file."""

    name: str
    description: str
    path: Path


def library_folder() -> Path:
    """The folder of the library's files."""
    return Path(str(resources.files("loratory.scenarios").joinpath("library")))


def published_folder() -> Path:
    """The folder of the scenarios that reproduce published measurements, and of the figures they are compared with."""
    return Path(str(resources.files("loratory.scenarios").joinpath("published")))


def library() -> tuple[LibraryEntry, ...]:
    """Every scenario of the library, by name."""
    return _entries(library_folder(), "")


def published() -> tuple[LibraryEntry, ...]:
    """Every scenario that reproduces a published measurement, by name (``published/NAME``)."""
    return _entries(published_folder(), "published/")


def _entries(folder: Path, prefix: str) -> tuple[LibraryEntry, ...]:
    entries = []
    for path in sorted(folder.glob("*.yaml")):
        raw = read_document(path.read_text(encoding="utf-8"), path.name).raw
        entries.append(LibraryEntry(prefix + path.stem, str(raw.get("description", "")), path))
    return tuple(entries)
