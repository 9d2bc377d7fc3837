"""HubSource: adapters in model repositories of the Hugging Face Hub, through huggingface_hub."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from loratory.adapters.sources.remote import (
    CONFIG,
    Checksum,
    DownloadLimits,
    RemoteFile,
    RemoteListing,
    Reply,
    SourceError,
    TransientError,
    choose,
)
from loratory.adapters.sources.web import WebClient, unreachable
from loratory.errors import InputError

COMMIT = re.compile(r"[0-9a-f]{40}")
"""A full commit id: the only kind of revision that never moves."""


@dataclass(frozen=True, slots=True)
class HubSource:
    """A folder of a model repository at a revision (None: its main branch).

    huggingface_hub reads endpoint and token: ``HF_ENDPOINT``, ``HF_TOKEN`` or the token of ``hf auth login``. The bytes
    are read from the repository's resolve URLs at the commit, so that a download into Loratory's cache can resume.
    """

    label: str
    repo: str
    revision: str | None
    subfolder: str
    limits: DownloadLimits

    @property
    def pinned(self) -> str | None:
        """The commit, if the revision is a full commit id."""
        return self.revision if self.revision and COMMIT.fullmatch(self.revision) else None

    def listing(self) -> RemoteListing:
        """The adapter's files at the revision's commit, with sha256 (LFS) or git's blob id."""
        return self.listing_of(lambda present: choose(self.label, present, self.limits))

    def listing_of(self, chosen: Callable[[Collection[str]], Iterable[str]]) -> RemoteListing:
        """Those of the folder's files that ``chosen`` picks by name, in its order, at the revision's commit."""
        hub = _huggingface_hub()
        with _in_words(self.label):
            api = _api(hub)
            commit = api.model_info(self.repo, revision=self.revision, timeout=self.limits.silence_s).sha
            if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
                raise SourceError(f"source {self.label}: the Hub returns no commit for it: check HF_ENDPOINT")
            files = {}
            for entry in api.list_repo_tree(self.repo, path_in_repo=self.subfolder or None, revision=commit):
                folder, _, name = entry.path.rpartition("/")
                if isinstance(entry, hub.hf_api.RepoFile) and folder == self.subfolder:
                    files[name] = entry
                if len(files) > self.limits.max_files:
                    break
        picked = tuple(self._file(hub, api.endpoint, files[name], commit) for name in chosen(files))
        return RemoteListing(picked, commit)

    def _file(self, hub: Any, endpoint: str, entry: Any, commit: str) -> RemoteFile:
        checksum = Checksum("sha256", entry.lfs.sha256) if entry.lfs else Checksum("git-sha1", entry.blob_id)
        return RemoteFile(
            name=entry.path.rpartition("/")[2],
            locator=hub.hf_hub_url(self.repo, entry.path, revision=commit, endpoint=endpoint),
            size=entry.lfs.size if entry.lfs else entry.size,
            validator=None,
            resumable=True,
            checksum=checksum,
        )

    def read(self, file: RemoteFile, offset: int) -> Reply:
        """GET of the file at the commit, which the Hub may redirect to its store."""
        headers = _huggingface_hub().utils.build_hf_headers(library_name="loratory")
        return WebClient(self.label, self.limits).read(file, offset, headers)


def adapters_of(label: str, repo: str, revision: str | None, subfolder: str, limits: DownloadLimits) -> list[str]:
    """The folders below ``subfolder`` of a repository that hold an adapter, sorted; ``""`` is the repository itself."""
    hub = _huggingface_hub()
    with _in_words(label):
        entries = _api(hub).list_repo_tree(repo, path_in_repo=subfolder or None, revision=revision, recursive=True)
        paths = _at_most(limits, label, (entry.path for entry in entries))
        return sorted(path.rpartition("/")[0] for path in paths if path.rpartition("/")[2] == CONFIG)


def adapters_of_author(label: str, author: str, limits: DownloadLimits) -> list[tuple[str, str]]:
    """(repository, folder) of every adapter a user or an organisation has in its repositories, sorted."""
    hub = _huggingface_hub()
    with _in_words(label):
        models = _api(hub).list_models(author=author, full=True)
        adapters = []
        for path in _at_most(
            limits, label, (f"{model.id}/{file.rfilename}" for model in models for file in model.siblings or ())
        ):
            owner, name, *rest = path.split("/")
            if rest[-1] == CONFIG:
                adapters.append((f"{owner}/{name}", "/".join(rest[:-1])))
        return sorted(adapters)


def _at_most(limits: DownloadLimits, label: str, paths: Iterator[str]) -> Iterator[str]:
    for count, path in enumerate(paths):
        if count >= limits.max_listed:
            raise SourceError(f"{label} lists more than {limits.max_listed} files: name a narrower prefix")
        yield path


def _huggingface_hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.hf_api
        import huggingface_hub.utils
    except ImportError as error:
        raise InputError('hf:// needs huggingface_hub: pip install "loratory[hub]"') from error
    return huggingface_hub


def _api(hub: Any) -> Any:
    return hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="loratory")


@contextmanager
def _in_words(label: str) -> Iterator[None]:
    """Turns the exceptions of huggingface_hub into `SourceError`s; those of its HTTP library, which differs by
    version, by name and status.
    """
    from huggingface_hub import errors

    try:
        yield
    except InputError:
        raise
    except errors.GatedRepoError as error:
        raise SourceError(
            f"source {label} is gated: ask for access on its page and set HF_TOKEN to a token of that account"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(f"source {label}: no such revision: name a branch, tag or commit") from error
    except errors.RepositoryNotFoundError as error:
        raise SourceError(
            f"source {label}: the Hub has no such repository: correct the name, or set HF_TOKEN if it is private"
        ) from error
    except errors.EntryNotFoundError as error:
        raise SourceError(f"source {label}: the repository has no such folder: correct the path") from error
    except errors.OfflineModeIsEnabled as error:
        raise SourceError(f"source {label}: HF_HUB_OFFLINE forbids requests to the Hub: unset it") from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        if status in (401, 403):
            raise SourceError(
                f"source {label}: the Hub denies access ({status}): set HF_TOKEN to a token that may read it"
            ) from error
        kind = TransientError if status in (408, 429) or status >= 500 else SourceError
        raise kind(f"source {label}: the Hub answers {status}: try again later, or check HF_ENDPOINT") from error
    except errors.HFValidationError as error:
        raise SourceError(f"source {label}: that is not a repository's name ({error}): write hf://org/repo") from error
    except Exception as error:
        if not any("http" in kind.__module__ or "requests" in kind.__module__ for kind in type(error).__mro__):
            raise
        endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
        raise unreachable(label, endpoint, error) from error
