"""Fetching from S3 and Google Cloud Storage: versions, checksums, listing, refusals."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from servers import CONFIG, WEIGHTS, Fault, GoogleServer, adapter, contents, put

from loratory.adapters.sources.bucket import BucketSource
from loratory.adapters.sources.cache import AdapterCache
from loratory.adapters.sources.remote import ChangedError, DownloadLimits, SourceError
from loratory.adapters.sources.source import fetch, list_source, parse_source

QUICK = DownloadLimits(silence_s=20, attempts=2, retry_wait_s=0)


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch) -> Iterator[GoogleServer]:
    server = GoogleServer()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    with server.running():
        yield server


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A boto3 client of an S3 server with one bucket, and the environment s3fs takes its settings from."""
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL": moto,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="adapters")
    yield client
    for item in client.list_objects_v2(Bucket="adapters").get("Contents", ()):
        client.delete_object(Bucket="adapters", Key=item["Key"])


def test_an_adapter_comes_from_s3_once(s3: Any, cache: AdapterCache) -> None:
    files = adapter()
    for name, data in {**files, "adapter_model.bin": b"pickle"}.items():
        s3.put_object(Bucket="adapters", Key=f"team a/sql#1/{name}", Body=data)
    source = parse_source("s3://adapters/team a/sql#1")
    path = fetch(source, cache)
    assert contents(path) == files
    assert fetch(source, cache) == path
    s3.put_object(Bucket="adapters", Key=f"team a/sql#1/{WEIGHTS}", Body=adapter(seed=9)[WEIGHTS])
    assert contents(fetch(source, cache))[WEIGHTS] == adapter(seed=9)[WEIGHTS]
    assert contents(path) == files


def test_s3_is_listed_below_a_prefix(s3: Any) -> None:
    for folder in ("x/a", "x/b/c", "y"):
        for name, data in adapter().items():
            s3.put_object(Bucket="adapters", Key=f"{folder}/{name}", Body=data)
    s3.put_object(Bucket="adapters", Key="x/notes.txt", Body=b"")
    assert [str(source) for source in list_source("s3://adapters/x")] == ["s3://adapters/x/a", "s3://adapters/x/b/c"]
    assert [str(source) for source in list_source("s3://adapters")] == [
        "s3://adapters/x/a",
        "s3://adapters/x/b/c",
        "s3://adapters/y",
    ]


def test_s3_content_changed_behind_the_listing_is_noticed(s3: Any) -> None:
    for name, data in adapter().items():
        s3.put_object(Bucket="adapters", Key=f"sql/{name}", Body=data)
    remote = BucketSource("s3://adapters/sql", "s3", "adapters", "sql", QUICK)
    weights = remote.listing().files[1]
    assert b"".join(remote.read(weights, 100).chunks) == adapter()[WEIGHTS][100:]
    s3.put_object(Bucket="adapters", Key=f"sql/{WEIGHTS}", Body=b"another")
    with pytest.raises(ChangedError):
        list(remote.read(weights, 0).chunks)


def test_the_checksum_s3_declares_is_the_one_checked(s3: Any) -> None:
    files = adapter()
    s3.put_object(Bucket="adapters", Key=f"sql/{CONFIG}", Body=files[CONFIG])
    s3.put_object(Bucket="adapters", Key=f"sql/{WEIGHTS}", Body=files[WEIGHTS], ChecksumAlgorithm="SHA256")
    config, weights = BucketSource("s3://adapters/sql", "s3", "adapters", "sql", QUICK).listing().files
    assert config.checksum is not None and config.checksum.hex == hashlib.md5(files[CONFIG]).hexdigest()
    assert weights.checksum is not None and weights.checksum.hex == hashlib.sha256(files[WEIGHTS]).hexdigest()


def test_an_object_put_in_parts_is_fetched_though_its_etag_is_no_md5(s3: Any, cache: AdapterCache) -> None:
    files = adapter()
    big = files[WEIGHTS] + bytes(6 * 2**20)
    s3.put_object(Bucket="adapters", Key=f"sql/{CONFIG}", Body=files[CONFIG])
    where = {"Bucket": "adapters", "Key": f"sql/{WEIGHTS}"}
    upload = s3.create_multipart_upload(**where)["UploadId"]
    parts = []
    for number, piece in enumerate((big[: 5 * 2**20], big[5 * 2**20 :]), start=1):
        tag = s3.upload_part(**where, UploadId=upload, PartNumber=number, Body=piece)["ETag"]
        parts.append({"PartNumber": number, "ETag": tag})
    s3.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": parts})
    assert contents(fetch(parse_source("s3://adapters/sql"), cache))[WEIGHTS] == big


def test_what_s3_does_not_have_is_said(s3: Any, cache: AdapterCache, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match="holds no objects"):
        fetch(parse_source("s3://adapters/absent"), cache)
    with pytest.raises(SourceError, match="does not exist"):
        fetch(parse_source("s3://no-such-bucket/absent"), cache)
    s3.put_object(Bucket="adapters", Key=f"old/{CONFIG}", Body=b"{}")
    s3.put_object(Bucket="adapters", Key="old/adapter_model.bin", Body=b"pickle")
    with pytest.raises(SourceError, match="only as a pickle"):
        fetch(parse_source("s3://adapters/old"), cache)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(SourceError, match=r"cannot be reached|refuses the connection"):
            fetch(parse_source("s3://adapters/old"), cache)


def test_an_adapter_comes_from_google_once(google: GoogleServer, cache: AdapterCache) -> None:
    files = adapter()
    put(google, {**files, "README.md": b"#", "adapter_model.bin": b"pickle"}, "/bucket/team a/sql")
    source = parse_source("gs://bucket/team a/sql")
    path = fetch(source, cache)
    assert contents(path) == files
    media = len(google.gets(WEIGHTS))
    assert fetch(source, cache) == path
    assert len(google.gets(WEIGHTS)) == media == 1
    put(google, {WEIGHTS: adapter(seed=3)[WEIGHTS]}, "/bucket/team a/sql")
    assert contents(fetch(source, cache))[WEIGHTS] == adapter(seed=3)[WEIGHTS]


def test_google_is_listed_below_a_prefix_page_by_page(google: GoogleServer) -> None:
    for folder in ("x/a", "x/b/c", "y"):
        put(google, adapter(), f"/bucket/{folder}")
    assert [str(source) for source in list_source("gs://bucket/x")] == ["gs://bucket/x/a", "gs://bucket/x/b/c"]


def test_what_google_does_not_have_is_said(google: GoogleServer, cache: AdapterCache) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        fetch(parse_source("gs://nothing/absent"), cache)
    put(google, adapter(), "/bucket/sql")
    with pytest.raises(SourceError, match="holds no objects"):
        fetch(parse_source("gs://bucket/absent"), cache)
    google.faults[f"/bucket/sql/{WEIGHTS}"] = [Fault(status=403)]
    with pytest.raises(SourceError, match="GOOGLE_APPLICATION_CREDENTIALS"):
        fetch(parse_source("gs://bucket/sql"), cache)
