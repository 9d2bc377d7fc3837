"""BucketSource: adapters under prefixes of S3 and Google Cloud Storage buckets, through s3fs and gcsfs."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from loratory.adapters.sources.remote import (
    CONFIG,
    ChangedError,
    Checksum,
    DownloadLimits,
    RemoteFile,
    RemoteListing,
    Reply,
    SourceError,
    TransientError,
    choose,
)
from loratory.adapters.sources.web import unreachable
from loratory.errors import InputError

BLOCK = 8 * 2**20
"""Bytes of one ranged read of an object."""

Scheme = Literal["s3", "gs"]


class ObjectStore(Protocol):
    """The part of an object store that adapters need."""

    def objects(self, prefix: str, delimiter: str) -> Iterator[RemoteFile]:
        """The objects whose keys start with ``prefix``; with a delimiter, only keys without it after the prefix."""

    def declared(self, file: RemoteFile) -> Checksum | None:
        """The checksum that the store declares for one object, if that takes a separate request."""

    def block(self, file: RemoteFile, start: int, end: int) -> bytes:
        """Bytes ``start`` to ``end`` (exclusive) of the object that was listed, not of a later one."""


@dataclass(frozen=True, slots=True)
class BucketSource:
    """The objects directly under a prefix of a bucket.

    Credentials and endpoint are read by the libraries: ``AWS_*``, ``AWS_ENDPOINT_URL``, ``~/.aws``;
    ``GOOGLE_APPLICATION_CREDENTIALS``, ``STORAGE_EMULATOR_HOST``.
    """

    label: str
    scheme: Scheme
    bucket: str
    prefix: str
    limits: DownloadLimits

    @property
    def pinned(self) -> str | None:
        """None: an object may be overwritten."""
        return None

    def listing(self) -> RemoteListing:
        """The adapter's objects with size, ETag or generation, and the checksum that the store declares."""
        start = f"{self.prefix}/" if self.prefix else ""
        with _in_words(self.label, self.scheme):
            store = _store(self.scheme, self.bucket, self.limits)
            objects = {}
            for file in store.objects(start, "/"):
                objects[file.name] = file
                if len(objects) > self.limits.max_files:
                    break
            if not objects:
                raise SourceError(f"source {self.label} holds no objects: correct the bucket or the prefix")
            files = []
            for name in choose(self.label, objects, self.limits):
                file = objects[name]
                checksum = store.declared(file) or file.checksum
                files.append(RemoteFile(name, file.locator, file.size, file.validator, file.resumable, checksum))
        return RemoteListing(tuple(files), " ".join(f"{file.validator}/{file.size}" for file in files))

    def read(self, file: RemoteFile, offset: int) -> Reply:
        """Ranged reads from ``offset`` to the listed size; each fails if the object is no longer the listed one."""
        return Reply(offset, self._blocks(file, offset))

    def _blocks(self, file: RemoteFile, offset: int) -> Iterator[bytes]:
        assert file.size is not None
        with _in_words(self.label, self.scheme):
            store = _store(self.scheme, self.bucket, self.limits)
            for start in range(offset, file.size, BLOCK):
                yield store.block(file, start, min(start + BLOCK, file.size))


def adapters_of(label: str, scheme: Scheme, bucket: str, prefix: str, limits: DownloadLimits) -> list[str]:
    """The prefixes at and below ``prefix`` that hold an adapter, sorted, without a slash at the end."""
    with _in_words(label, scheme):
        store = _store(scheme, bucket, limits)
        folders = []
        for count, file in enumerate(store.objects(f"{prefix}/" if prefix else "", "")):
            if count >= limits.max_listed:
                raise SourceError(f"{label} lists more than {limits.max_listed} objects: name a narrower prefix")
            folder, _, name = file.locator.rpartition("/")
            if name == CONFIG:
                folders.append(folder)
        return sorted(folders)


def _store(scheme: Scheme, bucket: str, limits: DownloadLimits) -> ObjectStore:
    return S3Store.connect(bucket, limits) if scheme == "s3" else GoogleStore.connect(bucket, limits)


@dataclass(frozen=True, slots=True)
class S3Store:
    """An S3 bucket through s3fs."""

    system: Any
    bucket: str

    @classmethod
    def connect(cls, bucket: str, limits: DownloadLimits) -> S3Store:
        """A new client, so that it uses the environment's present credentials and endpoint."""
        try:
            import s3fs
        except ImportError as error:
            raise InputError('s3:// needs s3fs: pip install "loratory[cloud]"') from error
        config = {"connect_timeout": limits.silence_s, "read_timeout": limits.silence_s, "retries": {"max_attempts": 1}}
        return cls(s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False, config_kwargs=config), bucket)

    def objects(self, prefix: str, delimiter: str) -> Iterator[RemoteFile]:
        """ListObjectsV2, page by page."""
        more: dict[str, str] = {"Delimiter": delimiter} if delimiter else {}
        while True:
            page = self.system.call_s3(
                "list_objects_v2",
                Bucket=self.bucket,
                Prefix=prefix,
                **more,
            )
            for item in page.get("Contents", ()):
                etag = str(item["ETag"])
                # An ETag of 32 hex digits is the MD5 of an object put in one piece; with SSE-KMS it is not, and S3
                # then offers nothing to check here.
                yield RemoteFile(
                    name=item["Key"].rpartition("/")[2],
                    locator=item["Key"],
                    size=int(item["Size"]),
                    validator=etag,
                    resumable=True,
                    checksum=None,
                )
            if not page.get("IsTruncated"):
                return
            more["ContinuationToken"] = page["NextContinuationToken"]

    def declared(self, file: RemoteFile) -> Checksum | None:
        """The SHA-256 of the whole object if it was uploaded with one, otherwise its MD5 if the ETag is that."""
        head = self.system.call_s3("head_object", Bucket=self.bucket, Key=file.locator, ChecksumMode="ENABLED")
        sha256 = head.get("ChecksumSHA256", "")
        if sha256 and "-" not in sha256 and head.get("ChecksumType") != "COMPOSITE":
            return Checksum("sha256", base64.b64decode(sha256).hex())
        etag = (file.validator or "").strip('"').lower()
        if re.fullmatch(r"[0-9a-f]{32}", etag) and not _is_encrypted(head):
            return Checksum("md5", etag)
        return None

    def block(self, file: RemoteFile, start: int, end: int) -> bytes:
        """GetObject with Range and If-Match."""
        import fsspec.asyn

        async def get() -> bytes:
            answer = await self.system._call_s3(
                "get_object",
                Bucket=self.bucket,
                Key=file.locator,
                Range=f"bytes={start}-{end - 1}",
                IfMatch=file.validator,
            )
            async with answer["Body"] as body:
                data: bytes = await body.read()
                return data

        data: bytes = fsspec.asyn.sync(self.system.loop, get)
        return data


def _is_encrypted(head: dict[str, Any]) -> bool:
    """Whether encryption makes the ETag something else than an MD5 (Amazon S3 API reference, Object: ETag)."""
    return str(head.get("ServerSideEncryption", "")).startswith("aws:kms") or "SSECustomerAlgorithm" in head


@dataclass(frozen=True, slots=True)
class GoogleStore:
    """A Google Cloud Storage bucket through gcsfs."""

    system: Any
    bucket: str

    @classmethod
    def connect(cls, bucket: str, limits: DownloadLimits) -> GoogleStore:
        """A new client, of the plain file system class: its subclass for zonal buckets asks over gRPC first."""
        try:
            from gcsfs.core import GCSFileSystem
        except ImportError as error:
            raise InputError('gs:// needs gcsfs: pip install "loratory[cloud]"') from error
        system = GCSFileSystem(
            skip_instance_cache=True, use_listings_cache=False, requests_timeout=limits.silence_s, access="read_only"
        )
        return cls(system, bucket)

    def objects(self, prefix: str, delimiter: str) -> Iterator[RemoteFile]:
        """Objects: list of the JSON API, page by page."""
        more: dict[str, str] = {"delimiter": delimiter} if delimiter else {}
        while True:
            page = self.system.call("GET", "b/{}/o", self.bucket, prefix=prefix, json_out=True, **more)
            for item in page.get("items", ()):
                md5 = item.get("md5Hash")
                yield RemoteFile(
                    name=item["name"].rpartition("/")[2],
                    locator=item["name"],
                    size=int(item["size"]),
                    validator=str(item["generation"]),
                    resumable=True,
                    checksum=Checksum("md5", base64.b64decode(md5).hex()) if md5 else None,
                )
            if not page.get("nextPageToken"):
                return
            more["pageToken"] = page["nextPageToken"]

    def declared(self, file: RemoteFile) -> Checksum | None:
        """None: the listing has it already; a composed object has a CRC32C only, which is not checked."""
        return None

    def block(self, file: RemoteFile, start: int, end: int) -> bytes:
        """Objects: get with alt=media of the listed generation."""
        _, data = self.system.call(
            "GET",
            "b/{}/o/{}",
            self.bucket,
            file.locator,
            alt="media",
            generation=file.validator,
            headers={"Range": f"bytes={start}-{end - 1}"},
        )
        return bytes(data)


def _rejected(label: str, words: str) -> SourceError:
    return SourceError(f"source {label}: the store rejects the request ({words}): correct the address or the endpoint")


@contextmanager
def _in_words(label: str, scheme: Scheme) -> Iterator[None]:
    """Turns the exceptions of s3fs, gcsfs and their libraries into `SourceError`s."""
    names = {"s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", "gs": "GOOGLE_APPLICATION_CREDENTIALS"}[scheme]
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise SourceError(f"source {label} does not exist: correct the bucket or the prefix") from error
    except PermissionError as error:
        raise SourceError(f"source {label}: access is denied: set {names} to an account that may read it") from error
    except Exception as error:
        raise _worded(label, names, error) from error


def _worded(label: str, names: str, error: Exception) -> Exception:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    modules = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    words = " ".join(str(error).split())[:200]
    if "PreconditionFailed" in words or "pre-conditions" in words:
        return ChangedError(f"source {label} changed while it was fetched: fetch it again when no process writes it")
    if "NoSuchBucket" in words:
        return SourceError(f"source {label} does not exist: correct the bucket")
    if kinds & {"NoCredentialsError", "GoogleAuthError", "PartialCredentialsError"} or "Forbidden" in words:
        return SourceError(f"source {label}: access is denied ({words}): set {names} to an account that may read it")
    if kinds & {"IncompleteReadError", "ClientPayloadError", "ResponseStreamingError", "IncompleteRead"}:
        return TransientError(f"source {label}: the connection broke while it was read: fetch again")
    if kinds & {"FSTimeoutError", "TimeoutError", "ConnectTimeoutError", "ReadTimeoutError"}:
        return TransientError(f"source {label}: the store does not answer: try again later")
    if kinds & {"EndpointConnectionError", "ClientError", "ConnectionError", "HTTPClientError", "RequestException"}:
        if "connect" in words.lower():
            return unreachable(label, label, ConnectionError(words))
        return _rejected(label, words)
    if isinstance(error, OSError) or modules & {"gcsfs", "botocore", "aiohttp", "google", "aiobotocore"}:
        return _rejected(label, words)
    return error
