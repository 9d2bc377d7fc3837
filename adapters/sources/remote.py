"""RemoteSource: the interface of places that hold one adapter's files, which the cache downloads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from loratory.errors import InputError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
"""Suffixes of files that run code when they are opened; none is ever downloaded or read."""


class SourceError(InputError):
    """A source cannot be fetched or listed; the text names the source, the fault and the remedy."""


class TransientError(SourceError):
    """A failure that another attempt may overcome: a cut connection, a time-out, an overloaded server."""


class ChangedError(SourceError):
    """A file at the source is no longer the one that was listed."""


@dataclass(frozen=True, slots=True)
class DownloadLimits:
    """What one fetch may take.

    ``max_source_bytes``: bytes of one adapter's files together. ``max_files``: files in a folder that may be an
    adapter's. ``max_listed``: files listed below a prefix. ``silence_s``: seconds without a byte from the server,
    connecting included. ``total_s``: seconds for one adapter, retries included. ``attempts``: attempts in a row that
    bring no byte, and times that a source may change during a download. ``retry_wait_s``: seconds before the second
    attempt, doubled before each further one.
    """

    max_source_bytes: int = 16 * 2**30
    max_files: int = 10_000
    max_listed: int = 1_000_000
    silence_s: float = 30.0
    total_s: float = 3600.0
    attempts: int = 3
    retry_wait_s: float = 0.5


@dataclass(frozen=True, slots=True)
class Checksum:
    """A digest the source declares for a file's content, in lower-case hex; ``git-sha1`` is git's blob id."""

    algorithm: Literal["sha256", "md5", "git-sha1"]
    hex: str


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of an adapter at its source.

    ``name``: a plain file name. ``locator``: where the source reads it (a URL or a key). ``validator``: changes when
    the content does (an ETag, a generation), or None. ``resumable``: whether this content can be told from a later one,
    so that a partial download may continue.
    """

    name: str
    locator: str
    size: int | None
    validator: str | None
    resumable: bool
    checksum: Checksum | None


@dataclass(frozen=True, slots=True)
class RemoteListing:
    """An adapter's files at its source and the version they make up; None when the source names no version."""

    files: tuple[RemoteFile, ...]
    version: str | None


@dataclass(frozen=True, slots=True)
class Reply:
    """Bytes of a file from ``offset`` on; 0, whatever was asked for, from a server that cannot seek."""

    offset: int
    chunks: Iterator[bytes]


class RemoteSource(Protocol):
    """Where one adapter's files are. Every method raises `SourceError`, whose text names the source."""

    @property
    def pinned(self) -> str | None:
        """The only version this source can have (a full commit id), known without a request; None otherwise."""

    def listing(self) -> RemoteListing:
        """The adapter's files as they are now."""

    def read(self, file: RemoteFile, offset: int) -> Reply:
        """The bytes of a listed file, if possible from ``offset`` on; `ChangedError` if it has changed since."""


def is_plain(name: str) -> bool:
    """Whether a name is that of a visible file in the folder itself, and can be created.

    >>> is_plain("adapter_config.json"), is_plain("../adapter_config.json")
    (True, False)
    """
    return bool(name) and len(name) <= 255 and not name.startswith(".") and not set(name) & {"/", "\\", "\0", ":"}


def choose(label: str, names: Iterable[str], limits: DownloadLimits) -> tuple[str, str]:
    """The names of the configuration and the weight file in a folder; `SourceError` where one is missing.

    ``adapter_model.safetensors`` is preferred; failing that the folder must hold exactly one safetensors file.
    """
    present = set(names)
    if len(present) > limits.max_files:
        raise SourceError(
            f"source {label} holds more than {limits.max_files} files: name the folder of one adapter, or list the "
            "adapters below it"
        )
    tensors = sorted(name for name in present if name.endswith(".safetensors") and is_plain(name))
    pickles = sorted(name for name in present if name.endswith(PICKLES))
    if CONFIG not in present:
        raise SourceError(f"source {label} holds no {CONFIG}: name the folder PEFT's save_pretrained wrote")
    if WEIGHTS in tensors:
        return CONFIG, WEIGHTS
    if len(tensors) == 1:
        return CONFIG, tensors[0]
    if tensors:
        raise SourceError(
            f"source {label} holds several safetensors files and no {WEIGHTS}: keep one of {', '.join(tensors[:5])}"
        )
    if pickles:
        raise SourceError(pickled(label, pickles[0]))
    raise SourceError(f"source {label} holds no {WEIGHTS}: name the folder PEFT's save_pretrained wrote")


def pickled(label: str, name: str) -> str:
    """The error text for a source whose weights are a pickle."""
    return (
        f"source {label} holds its weights only as a pickle, {name}, which can run code and is never opened: save it "
        "with save_pretrained(safe_serialization=True) and publish the safetensors file"
    )
