"""Git LFS: whether a file is the pointer that a clone without Git LFS has in place of it."""

from __future__ import annotations

from pathlib import Path

from loratory.errors import InputError

HEAD_BYTES = 64
"""Number of bytes of a file that `lfs_pointer` needs."""

LFS_POINTER = "is a Git LFS pointer, not the file: run git lfs pull"
"""The text of a message after the file's name."""

_BEGINNINGS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")


def lfs_pointer(head: bytes) -> bool:
    """Whether a file that begins with ``head`` (`HEAD_BYTES`, or the whole file) is a Git LFS pointer.

    By https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md its first line is ``version`` and a URL, the older of
    which names Hawser, as Git LFS was called.

    >>> lfs_pointer(b"version https://git-lfs.github.com/spec/v1\\noid sha256:4d7a")
    True
    """
    return head.startswith(_BEGINNINGS)


def lfs_text(text: str) -> bool:
    """`lfs_pointer` for a file that was read as text."""
    return lfs_pointer(text[:HEAD_BYTES].encode("utf-8", "replace"))


def refuse_pointer(path: Path, subject: str = "") -> None:
    """Raises `InputError` for a file that is a Git LFS pointer; ``subject`` precedes its name, such as "registry ".

    It ignores a file that is missing or cannot be read: the file's reader reports that.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except (OSError, ValueError):
        return
    if lfs_pointer(head):
        raise InputError(f"{subject}{path} {LFS_POINTER}")
