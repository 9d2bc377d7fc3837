"""get_model: makes the checkpoint folder of a released model, whole or not at all.

The folder is filled under another name beside its place and renamed at the end, so what is there under its own name is
complete; what an interrupted attempt left behind is removed by the next one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratory.errors import InputError, did_you_mean
from loratory.file_lock import FileLock
from loratory.model_sources import SOURCES, Fetch, Tell, UnreachableError
from loratory.models.origin import FILE, Origin, OriginFile, sha256_of
from loratory.models.released import ReleasedModel, released_model
from loratory.user_files import user_models

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Obtained:
    """A released model's folder. ``made``: whether this call made it; otherwise it was there."""

    folder: Path
    origin: Origin
    made: bool

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"folder": str(self.folder), "made": self.made, **self.origin.as_dict()}


def get_model(
    name: str,
    folder: Path | None = None,
    source: str = AUTO,
    tell: Tell = lambda _: None,
    models: Mapping[str, ReleasedModel] | None = None,
    sources: Mapping[str, Fetch] = SOURCES,
) -> Obtained:
    """Make the checkpoint folder of the released model ``name``: at ``folder``, by default in `user_models`.

    ``source``: a key of ``sources``; ``auto`` is the first that can be reached. A complete folder is kept, whatever it
    came from; a damaged one is made again. Raises `InputError` for an unknown name or source, for a folder that holds
    something else or cannot be written, for too little room on its disk, and where no source can be reached.
    """
    model = released_model(name, models)
    if source != AUTO and source not in sources:
        known = (AUTO, *sources)
        raise InputError(f"--source {source!r}: {did_you_mean(source, known, 'use ' + ', '.join(known))}")
    place = (folder or user_models() / name).resolve()
    ours = folder is None
    _refuse_other_content(place, name, ours)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock.attempt(place.parent / f".{place.name}.lock")
        if lock is None:
            tell(f"waiting for another process that makes {place}")
            lock = FileLock.take(place.parent / f".{place.name}.lock")
    except OSError as error:
        raise _unwritable(place, error) from error
    with lock:
        damage = ""
        if place.exists():
            _refuse_other_content(place, name, ours)
            origin = Origin.read(place)
            damage = f"{FILE} is missing or broken" if origin is None else origin.damage(place, contents=True)
            if origin is not None and not damage:
                return Obtained(place, origin, made=False)
        if damage and any(place.iterdir()):
            tell(f"{place} is damaged ({damage}): it is made again")
        return Obtained(place, _make(model, place, source, sources, tell), made=True)


def _refuse_other_content(place: Path, name: str, ours: bool) -> None:
    """`InputError` where there is something that no such call made; below `user_models` (``ours``) everything is."""
    if not place.is_dir():
        if place.exists() or place.is_symlink():
            raise InputError(f"{place} is no folder: give the name of a folder, which is made")
        return
    try:
        used = any(place.iterdir())
    except OSError as error:
        raise _unwritable(place, error) from error
    origin = Origin.read(place)
    if os.path.ismount(place):
        raise InputError(f"{place} is a mount point, which cannot be replaced: give a folder below it")
    if origin is not None and origin.model != name:
        raise InputError(f"{place} holds the model {origin.model}: give another folder, or remove that one")
    if used and not ours and not (place / FILE).is_file():
        raise InputError(f"{place} holds files, but no {FILE}: give another folder, or remove that one")


def _make(model: ReleasedModel, place: Path, source: str, sources: Mapping[str, Fetch], tell: Tell) -> Origin:
    partial = place.with_name(f".{place.name}.partial")
    try:
        _remove(partial)
        free, needed = shutil.disk_usage(place.parent).free, model.bytes + model.scratch_bytes
        if free < needed:
            raise InputError(
                f"{model.name} needs {needed / 1e6:.0f} MB while it is made, but {place.parent} has only "
                f"{free / 1e6:.0f} MB: free space, or give another folder"
            )
        origin = _fetch(model, partial, source, sources, tell)
        origin.write(partial)
        damaged = place.with_name(f".{place.name}.damaged")
        _remove(damaged)
        if place.exists():
            place.rename(damaged)
        partial.rename(place)
        _remove(damaged)
        return origin
    except PermissionError as error:
        raise _unwritable(place, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fetch(model: ReleasedModel, partial: Path, source: str, sources: Mapping[str, Fetch], tell: Tell) -> Origin:
    """Fill ``partial`` from the source, or from the first that can be reached."""
    reasons = []
    for kind in sources if source == AUTO else (source,):
        _remove(partial)
        partial.mkdir()
        try:
            found = sources[kind](model, partial, tell)
        except UnreachableError as error:
            if source != AUTO:
                raise
            reasons.append(str(error))
            continue
        files = {
            path.name: OriginFile(path.stat().st_size, sha256_of(path))
            for path in sorted(partial.iterdir())
            if path.is_file()
        }
        return Origin(model.name, kind, found.place, model.licence, found.note, files)
    raise InputError(f"{model.name} can be had neither way: {'; '.join(reasons)}")


def _remove(folder: Path) -> None:
    if os.path.lexists(folder):
        shutil.rmtree(folder)


def _unwritable(place: Path, error: OSError) -> InputError:
    why = error.strerror or str(error)
    return InputError(f"{place} cannot be written ({why}): give another folder, or change the permissions")
