"""AdapterSource: where an adapter comes from: parsed from a text, fetched to a folder, listed below a prefix."""

from __future__ import annotations

import os
import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from loratory.adapters.files.open_files import link_root
from loratory.adapters.sources import bucket, hub
from loratory.adapters.sources.remote import CONFIG, DownloadLimits, RemoteSource, SourceError, choose
from loratory.adapters.sources.web import WebSource
from loratory.errors import InputError

if TYPE_CHECKING:
    from loratory.adapters.sources.cache import AdapterCache

Kind = Literal["local", "hub", "s3", "gs", "http"]

FORMS = "a folder, hf://org/repo[@revision][/folder], s3://bucket/prefix, gs://bucket/prefix or https://host/path/"


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """Where one adapter's files are.

    ``root``: the Hub repository (``org/repo``), the bucket, or the web server (``https://host``); empty for a local
    folder. ``path``: the folder in it, without slashes at its ends; for a local folder the whole path. ``revision``:
    the Hub's, or None for its main branch. ``parse_source(str(source))`` gives an equal one.

    >>> parse_source("hf://acme/sql-lora@v2/final")
    AdapterSource(kind='hub', root='acme/sql-lora', path='final', revision='v2')
    """

    kind: Kind
    root: str
    path: str
    revision: str | None = None

    def __str__(self) -> str:
        if self.kind == "local":
            return self.path
        if self.kind == "http":
            return f"{self.root}/{urllib.parse.quote(self.path)}/" if self.path else f"{self.root}/"
        tail = f"/{self.path}" if self.path else ""
        if self.kind == "hub":
            revision = "" if self.revision is None else f"@{_quoted(self.revision)}"
            return f"hf://{self.root}{revision}{tail}"
        return f"{self.kind}://{self.root}{tail}"


def parse_source(text: str) -> AdapterSource:
    """The source that a text names, whether or not it exists. Raises `InputError`, which shows the expected form."""
    scheme, rest = _split(text)
    if scheme == "":
        return AdapterSource("local", "", os.path.normpath(text))
    if scheme == "hf":
        return _parse_hub(text, rest)
    if scheme in ("s3", "gs"):
        return _parse_bucket(text, scheme, rest)
    return _parse_web(text)


def fetch(source: AdapterSource, cache: AdapterCache, *, revalidate: bool = True) -> Path:
    """A local folder with the source's ``adapter_config.json`` and safetensors file.

    A local source is used in place; any other is downloaded into the cache unless it is there already, and stays at
    least until ``cache.release(path)``. ``revalidate=False`` takes the version fetched last without a request to the
    source. Pickle files are never downloaded. Raises `SourceError` (an `InputError`).
    """
    if source.kind == "local":
        return _local(Path(source.path), cache.limits)
    return cache.fetch(str(source), lambda: connect(source, cache.limits), revalidate=revalidate)


def connect(source: AdapterSource, limits: DownloadLimits) -> RemoteSource:
    """The `RemoteSource` of a source; makes no request yet. The source must not be a local folder."""
    label = str(source)
    if source.kind == "hub":
        return hub.HubSource(label, source.root, source.revision, source.path, limits)
    if source.kind == "s3" or source.kind == "gs":
        return bucket.BucketSource(label, source.kind, source.root, source.path, limits)
    assert source.kind == "http", "a local folder is used in place"
    return WebSource(label, label, limits)


def list_source(prefix: str, limits: DownloadLimits | None = None) -> list[AdapterSource]:
    """The adapters at and below a prefix, sorted: folders that hold an ``adapter_config.json``.

    The prefix is a local folder, ``s3://bucket[/prefix]``, ``gs://bucket[/prefix]``, ``hf://org`` or
    ``hf://org/repo[@revision][/folder]``. A web server has no listing, so ``https://`` is refused. Hidden local folders
    and symbolic links to folders are ignored.
    """
    limits = limits or DownloadLimits()
    scheme, rest = _split(prefix)
    author = rest.strip("/")
    if scheme == "hf" and "/" not in author:
        if not re.fullmatch(_NAME, author):
            raise _bad(prefix, "that is not the name of a user or an organisation")
        adapters = hub.adapters_of_author(prefix, author, limits)
        return [AdapterSource("hub", repo, folder) for repo, folder in adapters]
    source = parse_source(prefix)
    if source.kind == "local":
        return [AdapterSource("local", "", str(path)) for path in _local_adapters(Path(source.path), limits)]
    if source.kind == "hub":
        folders = hub.adapters_of(prefix, source.root, source.revision, source.path, limits)
        return [AdapterSource("hub", source.root, folder, source.revision) for folder in folders]
    if source.kind == "s3" or source.kind == "gs":
        folders = bucket.adapters_of(prefix, source.kind, source.root, source.path, limits)
        return [AdapterSource(source.kind, source.root, folder) for folder in folders]
    raise SourceError(f"a web server cannot be listed ({prefix}): name its adapters one by one, or in a manifest")


_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_BUCKET = r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]"


def _split(text: str) -> tuple[str, str]:
    """(scheme, rest) of a source's text; the scheme is empty for a local path."""
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"the adapter source is empty: give {FORMS}")
    if len(text) > 4096 or any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise InputError(
            f"adapter source {text[:60]!r} is longer than 4096 characters or holds control characters: give {FORMS}"
        )
    scheme, separator, rest = text.partition("://")
    if not separator:
        return "", text
    if scheme == "file":
        raise _bad(text, "a local folder is written as its path alone")
    if scheme not in ("hf", "s3", "gs", "http", "https"):
        raise _bad(text, f"{scheme}:// is not known")
    return scheme, rest


def _parse_hub(text: str, rest: str) -> AdapterSource:
    match = re.fullmatch(rf"({_NAME}/{_NAME})(?:@(refs/(?:pr|convert)/[^/]+|[^/]+))?(/.*)?", rest)
    if match is None or "--" in match.group(1) or ".." in match.group(1):
        raise _bad(text, "the Hub's form is hf://org/repo[@revision][/folder]")
    revision = match.group(2)
    if revision is not None:
        revision = urllib.parse.unquote(revision)
        if not re.fullmatch(r"[\w.+-]+(?:/[\w.+-]+)*", revision, re.ASCII) or ".." in revision:
            raise _bad(text, "a revision is a branch, tag or commit, its slashes written %2F")
    return AdapterSource("hub", match.group(1), _folder(text, match.group(3) or ""), revision)


def _quoted(revision: str) -> str:
    if re.fullmatch(r"refs/(?:pr|convert)/[^/]+", revision):
        return revision
    return urllib.parse.quote(revision, safe="+")


def _parse_bucket(text: str, scheme: Literal["s3", "gs"] | str, rest: str) -> AdapterSource:
    name, _, prefix = rest.partition("/")
    if not re.fullmatch(_BUCKET, name):
        raise _bad(text, "the bucket's name is not valid")
    return AdapterSource("s3" if scheme == "s3" else "gs", name, _folder(text, prefix))


def _parse_web(text: str) -> AdapterSource:
    try:
        parts = urllib.parse.urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise _bad(text, str(error)) from error
    if parts.username is not None or parts.password is not None:
        raise InputError("an adapter source must not hold a password: put the password into ~/.netrc")
    if parts.query or parts.fragment or text.endswith(("?", "#")):
        raise _bad(text, "a query or fragment cannot name a folder")
    if not parts.hostname or not re.fullmatch(r"[A-Za-z0-9._:-]+", parts.hostname) or port == 0:
        raise _bad(text, "the host is missing or malformed")
    if parts.path.endswith((".safetensors", ".json")):
        raise _bad(text, "name the folder, not a file in it")
    try:
        path = urllib.parse.unquote(parts.path, errors="strict")
    except UnicodeDecodeError as error:
        raise _bad(text, "its path is not UTF-8") from error
    return AdapterSource("http", f"{parts.scheme}://{parts.netloc.lower()}", _folder(text, path))


def _folder(text: str, path: str) -> str:
    """A path in a source, without the slashes at its ends."""
    path = path.strip("/")
    if (path and any(part in ("", ".", "..") for part in path.split("/"))) or "\\" in path:
        raise _bad(text, "its path has an empty part, a dot part or a backslash")
    if any(ord(character) < 32 or ord(character) == 127 for character in path):
        raise _bad(text, "its path has control characters")
    return path


def _bad(text: str, why: str) -> InputError:
    return InputError(f"adapter source {text!r} cannot be used ({why}): give {FORMS}")


def _local(folder: Path, limits: DownloadLimits) -> Path:
    """The folder itself, if it holds an adapter's two files and no link that leads out of it."""
    label = str(folder)
    try:
        names = [entry.name for entry in os.scandir(folder) if not entry.is_dir()]
    except FileNotFoundError as error:
        hint = f", or hf://{label} if it is on the Hub" if re.fullmatch(rf"{_NAME}/{_NAME}", label) else ""
        raise SourceError(f"source {label} does not exist: correct the path{hint}") from error
    except NotADirectoryError as error:
        raise SourceError(f"source {label} is a file: name the folder that holds {CONFIG}") from error
    except OSError as error:
        raise SourceError(f"source {label} cannot be read ({error.strerror}): let this user read it") from error
    root = link_root(folder)
    for name in choose(label, names, limits):
        path = folder / name
        if not path.is_file():
            raise SourceError(f"source {label}: {name} is not a file or a broken link: copy the adapter there again")
        if not path.resolve().is_relative_to(root):
            raise SourceError(
                f"source {label}: {name} is a symbolic link out of the folder: copy the adapter there with cp -L"
            )
    return folder


def _local_adapters(folder: Path, limits: DownloadLimits) -> list[Path]:
    if not folder.is_dir():
        raise SourceError(f"{folder} is not a folder: name the folder that holds the adapters")
    adapters = []
    seen = 0
    for path, folders, files in os.walk(folder, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        seen += len(files)
        if seen > limits.max_listed:
            raise SourceError(f"{folder} holds more than {limits.max_listed} files: name a narrower folder")
        if CONFIG in files:
            adapters.append(Path(path))
    return sorted(adapters)
