"""Sources: their texts, local folders, and fetching over HTTP, the Hub's, S3's and Google's protocols."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import CONFIG, WEIGHTS, Fault, GoogleServer, HubServer, Server, adapter

from serving.adapter_cache import AdapterCache
from serving.errors import InputError
from serving.remotes.remote import Limits, SourceError
from serving.sources import Source, fetch, list_source, parse_source

QUICK = Limits(silence_s=20, attempts=2, retry_wait_s=0)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[AdapterCache]:
    with AdapterCache(tmp_path / "cache", limits=QUICK) as cache:
        yield cache


@pytest.fixture
def web() -> Iterator[Server]:
    with Server().running() as server:
        yield server


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    server = HubServer()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    with server.running():
        yield server


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


def put(server: Server, files: dict[str, bytes], folder: str = "/lora") -> None:
    server.files.update({f"{folder}/{name}": data for name, data in files.items()})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


# Texts


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("adapters/sql", Source("local", "", "adapters/sql")),
        ("./adapters//sql/", Source("local", "", "adapters/sql")),
        ("/srv/sql", Source("local", "", "/srv/sql")),
        ("hf://acme/sql", Source("hub", "acme/sql", "")),
        ("hf://acme/sql@v2", Source("hub", "acme/sql", "", "v2")),
        ("hf://acme/sql@refs/pr/3/final", Source("hub", "acme/sql", "final", "refs/pr/3")),
        ("hf://acme/sql@feature%2Fx/a/b/", Source("hub", "acme/sql", "a/b", "feature/x")),
        ("s3://bucket/loras/sql/", Source("s3", "bucket", "loras/sql")),
        ("s3://bucket", Source("s3", "bucket", "")),
        ("gs://bucket/sql v2 @1#x", Source("gs", "bucket", "sql v2 @1#x")),
        ("https://Host.example:8443/a%20b/", Source("http", "https://host.example:8443", "a b")),
        ("http://[::1]:80/", Source("http", "http://[::1]:80", "")),
    ],
)
def test_a_source_is_read_from_its_text_and_written_back(text: str, source: Source) -> None:
    assert parse_source(text) == source
    assert parse_source(str(source)) == source


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "a\nb",
        "x" * 5000,
        "ftp://host/x",
        "file:///srv/x",
        "hf://acme",
        "hf://acme/..",
        "hf://acme/sql@",
        "hf://acme/sql/../other",
        "hf://acme/sql@../x",
        "hf://acme/sql@a%2F..%2Fb",
        "hf://-acme/sql",
        "s3://",
        "s3://Bad_Bucket!/x",
        "s3://bucket/../x",
        "s3://bucket/a//b",
        "gs://bucket/./x",
        "https://",
        "https:///x",
        "https://host/x?token=1",
        "https://host/x#f",
        "https://user:secret@host/x",
        "https://host/%2e%2e/x",
        "https://host/a%0ab",
        "https://host/%ff",
        "https://host:99999/",
        "https://host/lora/adapter_model.safetensors",
        "https://host/a\\b",
    ],
)
def test_a_text_that_is_no_source_is_refused_in_one_sentence_with_a_remedy(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_source(text)
    assert "\n" not in str(caught.value)
    assert ": " in str(caught.value)
    assert "secret" not in str(caught.value)


@given(st.text(max_size=40) | st.from_regex(r"(hf|s3|gs|https?)://[\w@./%:#?-]{0,30}", fullmatch=True))
def test_any_text_is_a_source_that_round_trips_or_is_refused(text: str) -> None:
    try:
        source = parse_source(text)
    except InputError:
        return
    assert parse_source(str(source)) == source
    if source.kind != "local":
        assert not {"", ".", ".."} & set(source.path.split("/")) or source.path == ""


# Local folders


def test_a_local_folder_is_used_in_place(tmp_path: Path, cache: AdapterCache) -> None:
    folder = write(tmp_path / "sql", adapter())
    assert fetch(parse_source(str(folder)), cache) == folder
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "holds no adapter_config.json"),
        ({CONFIG: b"{}"}, "holds no adapter_model.safetensors"),
        ({WEIGHTS: b"x"}, "holds no adapter_config.json"),
        ({CONFIG: b"{}", "adapter_model.bin": b"x"}, "only as a pickle, adapter_model.bin"),
        ({CONFIG: b"{}", "adapter.pt": b"x"}, "only as a pickle, adapter.pt"),
        ({CONFIG: b"{}", "a.safetensors": b"x", "b.safetensors": b"x"}, "several safetensors files"),
    ],
)
def test_a_folder_that_is_no_adapter_is_refused(
    files: dict[str, bytes], says: str, tmp_path: Path, cache: AdapterCache
) -> None:
    folder = write(tmp_path / "sql", files)
    with pytest.raises(SourceError, match=says):
        fetch(parse_source(str(folder)), cache)


def test_one_safetensors_file_of_another_name_is_the_weights(tmp_path: Path, cache: AdapterCache) -> None:
    folder = write(tmp_path / "sql", {CONFIG: b"{}", "lora.safetensors": b"x"})
    assert fetch(parse_source(str(folder)), cache) == folder


def test_a_missing_folder_a_file_and_a_hub_name_say_what_to_do(
    tmp_path: Path, cache: AdapterCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(SourceError, match="is a file: name the folder"):
        fetch(parse_source(str(tmp_path / "file")), cache)
    with pytest.raises(SourceError, match="hf://acme/sql if it is on the Hub"):
        fetch(parse_source("acme/sql"), cache)


def test_a_link_out_of_the_folder_is_refused_and_one_within_is_not(tmp_path: Path, cache: AdapterCache) -> None:
    files = adapter()
    outside = write(tmp_path / "outside", files)
    folder = write(tmp_path / "sql", {CONFIG: files[CONFIG]})
    (folder / WEIGHTS).symlink_to(outside / WEIGHTS)
    with pytest.raises(SourceError, match="symbolic link out of the folder"):
        fetch(parse_source(str(folder)), cache)
    (folder / WEIGHTS).unlink()
    write(folder / "blobs", {"weights": files[WEIGHTS]})
    (folder / WEIGHTS).symlink_to(folder / "blobs" / "weights")
    assert fetch(parse_source(str(folder)), cache) == folder


def test_local_adapters_are_listed_below_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "a", adapter())
    write(tmp_path / "deep" / "er" / "b", adapter())
    write(tmp_path / ".hidden", adapter())
    write(tmp_path / "none", {"readme.md": b""})
    (tmp_path / "loop").symlink_to(tmp_path)
    assert [source.path for source in list_source(str(tmp_path))] == [
        str(tmp_path / "a"),
        str(tmp_path / "deep" / "er" / "b"),
    ]
    with pytest.raises(SourceError, match="is not a folder"):
        list_source(str(tmp_path / "absent"))


# HTTP


def test_an_adapter_comes_over_http_once(web: Server, cache: AdapterCache) -> None:
    files = adapter()
    put(web, {**files, "adapter_model.bin": b"pickle", "README.md": b"#"}, "/my lora")
    source = parse_source(f"{web.url}/my%20lora/")
    first = fetch(source, cache)
    assert contents(first) == files
    assert fetch(source, cache) == first
    assert sorted(web.gets()) == [f"/my lora/{CONFIG}", f"/my lora/{WEIGHTS}"]


def test_a_new_etag_is_a_new_download_and_the_old_one_stays(web: Server, cache: AdapterCache) -> None:
    source = parse_source(f"{web.url}/lora/")
    put(web, adapter(seed=1))
    old = fetch(source, cache)
    put(web, adapter(seed=2))
    new = fetch(source, cache)
    assert contents(old) == adapter(seed=1)
    assert contents(new) == adapter(seed=2)
    put(web, adapter(seed=1))
    assert fetch(source, cache) == old
    assert len(web.gets(WEIGHTS)) == 2


def test_a_server_without_validators_is_asked_each_time_and_stored_once(web: Server, cache: AdapterCache) -> None:
    web.etags = "none"
    source = parse_source(f"{web.url}/lora/")
    put(web, adapter())
    assert fetch(source, cache) == fetch(source, cache)
    assert len(web.gets(WEIGHTS)) == 2
    assert len(cache.entries()) == 1


def test_without_revalidation_the_source_is_not_asked(web: Server, cache: AdapterCache) -> None:
    source = parse_source(f"{web.url}/lora/")
    put(web, adapter())
    path = fetch(source, cache)
    asked = len(web.requests)
    assert fetch(source, cache, revalidate=False) == path
    assert len(web.requests) == asked


@pytest.mark.parametrize("etags", ["strong", "weak", "none"])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_connection_goes_on_or_starts_again(ranges: bool, etags: str, web: Server, cache: AdapterCache) -> None:
    web.ranges, web.etags = ranges, etags
    files = adapter()
    put(web, files)
    web.faults[f"/lora/{WEIGHTS}"] = [Fault(cut=1000), Fault(cut=1500)]
    assert contents(fetch(parse_source(f"{web.url}/lora/"), cache)) == files
    asked = [headers.get("Range") for method, path, headers in web.requests if method == "GET" and WEIGHTS in path]
    if etags != "strong":
        assert asked == [None] * 3
    elif ranges:
        assert asked == [None, "bytes=1000-", "bytes=2500-"]
    else:
        assert asked == [None, "bytes=1000-", "bytes=1500-"]


def test_a_connection_that_is_always_cut_at_once_is_given_up(web: Server, cache: AdapterCache) -> None:
    put(web, adapter())
    web.faults[f"/lora/{WEIGHTS}"] = [Fault(cut=0) for _ in range(10)]
    with pytest.raises(SourceError, match="fetch again"):
        fetch(parse_source(f"{web.url}/lora/"), cache)
    assert len(web.gets(WEIGHTS)) == QUICK.attempts


def test_a_later_fetch_goes_on_where_a_failed_one_stopped(web: Server, cache: AdapterCache) -> None:
    files = adapter()
    put(web, files)
    web.faults[f"/lora/{WEIGHTS}"] = [Fault(cut=2000), Fault(status=503), Fault(status=503)]
    source = parse_source(f"{web.url}/lora/")
    with pytest.raises(SourceError, match="answers 503"):
        fetch(source, cache)
    assert contents(fetch(source, cache)) == files
    assert web.requests[-1][2]["Range"] == "bytes=2000-"
    assert len(web.gets(CONFIG)) == 1


def test_a_partial_download_of_another_version_is_thrown_away(web: Server, cache: AdapterCache) -> None:
    put(web, adapter(seed=1))
    web.faults[f"/lora/{WEIGHTS}"] = [Fault(cut=2000), Fault(status=503), Fault(status=503)]
    source = parse_source(f"{web.url}/lora/")
    with pytest.raises(SourceError):
        fetch(source, cache)
    put(web, adapter(seed=2))
    assert contents(fetch(source, cache)) == adapter(seed=2)
    assert "Range" not in web.requests[-1][2]


def test_a_file_that_changes_during_its_download_is_fetched_whole(web: Server, cache: AdapterCache) -> None:
    put(web, adapter(seed=1))
    held = Fault(cut=1000)
    web.faults[f"/lora/{WEIGHTS}"] = [held]
    original = web.content

    def change(handler: Any, path: str, body: bytes, headers: dict[str, str]) -> None:
        original(handler, path, body, headers)
        if handler.command == "GET" and path.endswith(WEIGHTS):
            put(web, adapter(seed=2))

    web.content = change  # type: ignore[method-assign]
    assert contents(fetch(parse_source(f"{web.url}/lora/"), cache)) == adapter(seed=2)


def test_a_file_that_never_stops_changing_is_given_up(web: Server, cache: AdapterCache) -> None:
    put(web, adapter(seed=0))
    seeds = iter(range(1, 100))
    original = web.content

    def change(handler: Any, path: str, body: bytes, headers: dict[str, str]) -> None:
        original(handler, path, body, headers)
        if handler.command == "HEAD" and path.endswith(WEIGHTS):
            put(web, adapter(seed=next(seeds)))

    web.content = change  # type: ignore[method-assign]
    with pytest.raises(SourceError, match="changed while it was fetched"):
        fetch(parse_source(f"{web.url}/lora/"), cache)


@pytest.mark.parametrize("offset", [-500, 500])
def test_a_wrong_length_is_found(offset: int, web: Server, cache: AdapterCache) -> None:
    put(web, adapter())
    web.length_offset = offset
    web.headers = {"Repr-Digest": "sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:"}
    with pytest.raises(SourceError):
        fetch(parse_source(f"{web.url}/lora/"), cache)
    assert cache.entries() == []


def test_a_declared_digest_is_checked(web: Server, cache: AdapterCache) -> None:
    put(web, adapter())
    web.headers = {"Digest": "sha-256=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}
    with pytest.raises(SourceError, match="another sha256 than its source declares"):
        fetch(parse_source(f"{web.url}/lora/"), cache)
    assert cache.entries() == []


@pytest.mark.parametrize(
    ("status", "says"),
    [(401, "denied"), (403, "denied"), (404, "does not exist"), (418, "answers 418"), (500, "answers 500")],
)
def test_an_error_of_the_server_is_said(status: int, says: str, web: Server, cache: AdapterCache) -> None:
    put(web, adapter())
    web.faults[f"/lora/{WEIGHTS}"] = [Fault(status=status) for _ in range(9)]
    with pytest.raises(SourceError, match=says):
        fetch(parse_source(f"{web.url}/lora/"), cache)


def test_an_absent_adapter_and_a_pickle_are_told_apart(web: Server, cache: AdapterCache) -> None:
    with pytest.raises(SourceError, match=r"holds no adapter_config.json"):
        fetch(parse_source(f"{web.url}/lora/"), cache)
    put(web, {CONFIG: b"{}"})
    with pytest.raises(SourceError, match=r"holds no adapter_model.safetensors"):
        fetch(parse_source(f"{web.url}/lora/"), cache)
    put(web, {"adapter_model.bin": b"pickle"})
    with pytest.raises(SourceError, match=r"only as a pickle, adapter_model.bin"):
        fetch(parse_source(f"{web.url}/lora/"), cache)
    assert web.gets() == []


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x"])
def test_a_redirect_to_another_scheme_is_refused(target: str, web: Server, cache: AdapterCache) -> None:
    put(web, adapter())
    web.faults[f"/lora/{WEIGHTS}"] = [Fault(location=target)]
    with pytest.raises(SourceError, match="redirects to"):
        fetch(parse_source(f"{web.url}/lora/"), cache)


def test_a_redirect_within_http_is_followed_without_the_password(
    web: Server, cache: AdapterCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = adapter()
    rc = tmp_path / "netrc"
    rc.write_text("machine 127.0.0.1 login me password secret\n")
    rc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    rc.rename(tmp_path / ".netrc")
    web.password = "me:secret"
    put(web, files)
    with Server().running() as other:
        other.files["/elsewhere"] = files[WEIGHTS]
        web.faults[f"/lora/{WEIGHTS}"] = [Fault(location=f"{other.url}/elsewhere")]
        other.etags = web.etags
        assert contents(fetch(parse_source(f"{web.url}/lora/"), cache)) == files
        assert all("Authorization" not in headers for _, _, headers in other.requests)
        assert other.gets() == ["/elsewhere"]


def test_a_silent_server_an_absent_one_and_an_unknown_name_are_said(
    web: Server, tmp_path: Path, cache: AdapterCache
) -> None:
    put(web, adapter())
    web.faults[f"/lora/{WEIGHTS}"] = [Fault(hold=10), Fault(hold=0)]
    impatient = AdapterCache(tmp_path / "other", limits=Limits(silence_s=0.2, attempts=1, retry_wait_s=0))
    with pytest.raises(SourceError, match=r"broke while|is silent"):
        fetch(parse_source(f"{web.url}/lora/"), impatient)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(SourceError, match="refuses the connection"):
            fetch(parse_source(f"http://127.0.0.1:{free.getsockname()[1]}/lora/"), cache)
    with pytest.raises(SourceError, match="is not known: correct it"):
        fetch(parse_source("http://no-such-host.invalid/lora/"), cache)


def test_a_source_above_the_limit_is_refused(web: Server, tmp_path: Path) -> None:
    put(web, adapter())
    small = AdapterCache(tmp_path / "small", limits=Limits(max_source_bytes=1000))
    with pytest.raises(SourceError, match="larger than the 1000 bytes"):
        fetch(parse_source(f"{web.url}/lora/"), small)
    assert web.gets() == []


def test_a_web_server_cannot_be_listed(web: Server) -> None:
    with pytest.raises(SourceError, match="cannot be listed"):
        list_source(f"{web.url}/")


# The Hub


def test_an_adapter_comes_from_the_hub_once(hub: HubServer, cache: AdapterCache) -> None:
    files = adapter()
    commit = hub.push("acme/sql", {**files, "adapter_model.bin": b"pickle", "README.md": b"#"})
    path = fetch(parse_source("hf://acme/sql"), cache)
    assert contents(path) == files
    assert fetch(parse_source("hf://acme/sql"), cache) == path
    assert len(hub.gets(CONFIG)) == 1
    assert not hub.gets(".bin")
    asked = len(hub.requests)
    pinned = parse_source(f"hf://acme/sql@{commit}")
    assert fetch(pinned, cache) == path
    assert len(hub.gets(f"/resolve/{commit}/{WEIGHTS}")) == 1, "content with a known sha256 is not downloaded again"
    assert len(hub.requests) > asked
    asked = len(hub.requests)
    assert fetch(pinned, cache) == path
    assert len(hub.requests) == asked, "a commit never changes, so the Hub is not asked"


def test_revisions_and_folders_of_a_repository(hub: HubServer, cache: AdapterCache) -> None:
    one, two = adapter(seed=1), adapter(seed=2)
    hub.push("acme/sql", {f"v1/{name}": data for name, data in one.items()})
    hub.push("acme/sql", {f"a/b/{name}": data for name, data in two.items()}, branch="feature/x")
    assert contents(fetch(parse_source("hf://acme/sql/v1"), cache)) == one
    assert contents(fetch(parse_source("hf://acme/sql@feature%2Fx/a/b"), cache)) == two
    with pytest.raises(SourceError, match="no such revision"):
        fetch(parse_source("hf://acme/sql@v9"), cache)
    with pytest.raises(SourceError, match="no such folder"):
        fetch(parse_source("hf://acme/sql/v9"), cache)
    with pytest.raises(SourceError, match=r"holds no adapter_config.json"):
        fetch(parse_source("hf://acme/sql"), cache)


def test_a_moved_branch_is_a_new_version(hub: HubServer, cache: AdapterCache) -> None:
    hub.push("acme/sql", adapter(seed=1))
    old = fetch(parse_source("hf://acme/sql"), cache)
    hub.push("acme/sql", adapter(seed=2))
    assert contents(fetch(parse_source("hf://acme/sql"), cache)) == adapter(seed=2)
    assert contents(old) == adapter(seed=1)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_content_that_is_not_what_the_hub_declares_is_refused(name: str, hub: HubServer, cache: AdapterCache) -> None:
    files = adapter()
    commit = hub.push("acme/sql", files)
    damaged = files[name][:-1] + b"?"
    hub.files[f"/lfs/{hashlib.sha256(files[WEIGHTS]).hexdigest()}"] = damaged if name == WEIGHTS else files[WEIGHTS]
    original = hub.content

    def damage(handler: Any, path: str, body: bytes, headers: dict[str, str]) -> None:
        original(handler, path, damaged if path.endswith(name) else body, headers)

    hub.content = damage  # type: ignore[method-assign]
    with pytest.raises(SourceError, match="than its source declares"):
        fetch(parse_source(f"hf://acme/sql@{commit}"), cache)
    assert cache.entries() == []


def test_the_hubs_lfs_download_goes_on_where_it_was_cut(hub: HubServer, cache: AdapterCache) -> None:
    files = adapter()
    hub.push("acme/sql", files)
    hub.faults[f"/lfs/{hashlib.sha256(files[WEIGHTS]).hexdigest()}"] = [Fault(cut=3000)]
    assert contents(fetch(parse_source("hf://acme/sql"), cache)) == files
    assert hub.requests[-1][2]["Range"] == "bytes=3000-"


def test_the_hubs_refusals_are_said(hub: HubServer, cache: AdapterCache, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match="knows no such repository"):
        fetch(parse_source("hf://acme/absent"), cache)
    hub.push("acme/sql", adapter())
    hub.gated = {"acme/sql"}
    with pytest.raises(SourceError, match="is gated"):
        fetch(parse_source("hf://acme/sql"), cache)
    hub.gated = set()
    hub.token = "right"
    with pytest.raises(SourceError, match="HF_TOKEN"):
        fetch(parse_source("hf://acme/sql"), cache)
    monkeypatch.setenv("HF_TOKEN", "right")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    assert contents(fetch(parse_source("hf://acme/sql"), cache)) == adapter()
    hub.push("acme/old", {CONFIG: b"{}", "adapter_model.bin": b"pickle"})
    with pytest.raises(SourceError, match="only as a pickle"):
        fetch(parse_source("hf://acme/old"), cache)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(SourceError, match="refuses the connection"):
            fetch(parse_source("hf://acme/sql"), cache)


def test_the_hub_is_listed_by_owner_and_by_repository(hub: HubServer) -> None:
    hub.push("acme/sql", adapter())
    hub.push("acme/many", {f"{folder}/{name}": b"x" for folder in ("a", "b/c") for name in (CONFIG, WEIGHTS)})
    hub.push("acme/base", {"config.json": b"{}"})
    hub.push("other/sql", adapter())
    assert [str(source) for source in list_source("hf://acme")] == [
        "hf://acme/many/a",
        "hf://acme/many/b/c",
        "hf://acme/sql",
    ]
    assert [str(source) for source in list_source("hf://acme/many@main")] == [
        "hf://acme/many@main/a",
        "hf://acme/many@main/b/c",
    ]
    assert [str(source) for source in list_source("hf://acme/many/b")] == ["hf://acme/many/b/c"]


# S3


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
    from serving.remotes.bucket import BucketRemote
    from serving.remotes.remote import ChangedError

    for name, data in adapter().items():
        s3.put_object(Bucket="adapters", Key=f"sql/{name}", Body=data)
    remote = BucketRemote("s3://adapters/sql", "s3", "adapters", "sql", QUICK)
    weights = remote.listing().files[1]
    assert b"".join(remote.read(weights, 100).chunks) == adapter()[WEIGHTS][100:]
    s3.put_object(Bucket="adapters", Key=f"sql/{WEIGHTS}", Body=b"another")
    with pytest.raises(ChangedError):
        list(remote.read(weights, 0).chunks)


def test_the_checksum_s3_declares_is_the_one_checked(s3: Any) -> None:
    from serving.remotes.bucket import BucketRemote

    files = adapter()
    s3.put_object(Bucket="adapters", Key=f"sql/{CONFIG}", Body=files[CONFIG])
    s3.put_object(Bucket="adapters", Key=f"sql/{WEIGHTS}", Body=files[WEIGHTS], ChecksumAlgorithm="SHA256")
    config, weights = BucketRemote("s3://adapters/sql", "s3", "adapters", "sql", QUICK).listing().files
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
    with pytest.raises(SourceError, match="holds nothing"):
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


# Google Cloud Storage


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
    with pytest.raises(SourceError, match="holds nothing"):
        fetch(parse_source("gs://bucket/absent"), cache)


# Packages that are not installed


@pytest.mark.parametrize(
    ("text", "package", "extra"),
    [
        ("hf://acme/sql", "huggingface_hub", "hub"),
        ("s3://bucket/x", "s3fs", "cloud"),
        ("gs://bucket/x", "gcsfs", "cloud"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    text: str, package: str, extra: str, cache: AdapterCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf'pip install "loratory\[{extra}\]"'):
        fetch(parse_source(text), cache)
