"""open_file: opens an adapter's files, following no link out of its folder; check_folder: what the folder holds."""

from __future__ import annotations

import os
import stat
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from loratory.adapters.files.strict_json import shown
from loratory.errors import InvalidAdapter

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
INDEX = "adapter_model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
"""Suffixes of files that Python's pickle module would run code from; they are never opened."""
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
_LISTED = 1000


def check_folder(folder: Path) -> None:
    """Raise `InvalidAdapter` unless ``folder`` is a readable folder with an adapter's two files, by their names."""
    try:
        mode = os.stat(folder).st_mode
    except (OSError, ValueError):
        raise InvalidAdapter(f"{named(folder)} cannot be found: give the folder that holds {CONFIG}") from None
    if not stat.S_ISDIR(mode):
        raise InvalidAdapter(f"{named(folder)} {_not_a_folder(folder.name.lower())}")
    try:
        with os.scandir(folder) as entries:
            names = {entry.name for entry in islice(entries, _LISTED)}
    except OSError as error:
        raise InvalidAdapter(f"{named(folder)} cannot be listed ({error.strerror}): let this user read it") from None
    if CONFIG not in names and not os.path.lexists(folder / CONFIG):
        archives = sorted(name for name in names if name.lower().endswith(ARCHIVES))
        if archives:
            raise InvalidAdapter(
                f"{named(folder)} holds the archive {shown(archives[0])} and no {CONFIG}: "
                "unpack it yourself, archives are not opened"
            )
        raise InvalidAdapter(f"{named(folder)} has no {CONFIG}: save the adapter with PEFT's save_pretrained")
    if INDEX in names or os.path.lexists(folder / INDEX):
        raise InvalidAdapter(f"{named(folder / INDEX)} lists weights in shards: save them as one {WEIGHTS}")
    if WEIGHTS not in names and not os.path.lexists(folder / WEIGHTS):
        pickles = sorted(name for name in names if name.lower().endswith(PICKLES))
        if pickles:
            raise InvalidAdapter(
                f"{named(folder)} has its weights in {shown(pickles[0])}, a pickle, which is never opened because "
                "it can run code: load it with PEFT where you trust it and save it with "
                f"safe_serialization=True as {WEIGHTS}"
            )
        others = sorted(name for name in names if name.endswith(".safetensors"))
        hint = f"rename {shown(others[0])} if it is meant" if others else "save the adapter with PEFT's save_pretrained"
        raise InvalidAdapter(f"{named(folder)} has no {WEIGHTS}: {hint}")


def named(path: Path) -> str:
    """The path as messages show it: as it is, or escaped if it could not be printed on one line."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def link_root(folder: Path) -> str:
    """The folder inside which links of an adapter's files are followed: its own, or its repository's in a Hub's cache.

    Such a cache, a folder of which ``huggingface_hub.snapshot_download`` returns, has a repository's files below
    ``models--ORG--NAME/blobs``, and in ``models--ORG--NAME/snapshots/REVISION`` links to them.
    """
    real = os.path.realpath(folder)
    parts = real.split(os.sep)
    for place in range(len(parts) - 3, 0, -1):
        if parts[place].startswith("models--") and parts[place + 1] == "snapshots":
            return os.sep.join(parts[: place + 1])
    return real


def open_file(folder: Path, name: str, root: Path | None = None) -> BinaryIO:
    """A regular file of ``folder``, opened unbuffered for reading; a link is followed only inside ``root``.

    Without a ``root`` that is `link_root`. Nothing but a regular file is opened: a pipe or device would block or act.
    Raises `InvalidAdapter`.
    """
    path = folder / name
    try:
        real = Path(os.path.realpath(path, strict=True))
        if os.path.islink(path) and not real.is_relative_to(
            link_root(folder) if root is None else os.path.realpath(root)
        ):
            raise InvalidAdapter(f"{named(path)} is a link that leaves the adapter's folder: put the file itself there")
        mode = os.stat(real).st_mode
        if not stat.S_ISREG(mode):
            raise InvalidAdapter(f"{named(path)} is a {_kind(mode)}, not a file: put the file PEFT saved there")
        # NONBLOCK and NOFOLLOW: since the check, another process may have put a pipe or a link in its place.
        fd = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidAdapter(
            f"{named(path)} cannot be opened ({error.strerror}): copy the file again and let this user read it"
        ) from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidAdapter(
            f"{named(path)} was replaced while it was opened: register an adapter that no other process writes to"
        )
    return os.fdopen(fd, "rb", buffering=0)


def read_up_to(file: BinaryIO, length: int) -> bytes:
    """``length`` bytes, or fewer at the end of the file: an unbuffered read may return early elsewhere too."""
    parts = bytearray()
    while len(parts) < length:
        part = file.read(length - len(parts))
        if not part:
            break
        parts += part
    return bytes(parts)


def _not_a_folder(name: str) -> str:
    if name.endswith(ARCHIVES):
        return "is an archive, and archives are not opened: unpack it yourself and give the folder"
    if name.endswith(PICKLES):
        return "is a pickle, which is never opened because it can run code: give a folder with safetensors weights"
    return f"is not a folder: give the folder that holds {CONFIG}"


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")
