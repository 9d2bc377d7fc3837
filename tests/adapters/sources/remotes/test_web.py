"""Fetching over HTTP: versions, resumption, faults, redirects, limits."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import CONFIG, WEIGHTS, Fault, Server, adapter, contents, put

from loratory.adapters.sources.cache import AdapterCache
from loratory.adapters.sources.remote import DownloadLimits, SourceError
from loratory.adapters.sources.source import fetch, list_source, parse_source

QUICK = DownloadLimits(silence_s=20, attempts=2, retry_wait_s=0)


@pytest.fixture
def web() -> Iterator[Server]:
    with Server().running() as server:
        yield server


def test_an_adapter_comes_over_http_once(web: Server, cache: AdapterCache) -> None:
    files = adapter()
    put(web, {**files, "adapter_model.bin": b"pickle", "README.md": b"#"}, "/my lora")
    source = parse_source(f"{web.url}/my%20lora/")
    first = fetch(source, cache)
    assert contents(first) == files
    assert fetch(source, cache) == first
    assert sorted(web.gets()) == [f"/my lora/{CONFIG}", f"/my lora/{WEIGHTS}"]


def test_a_server_without_head_is_asked_with_get(web: Server, cache: AdapterCache) -> None:
    web.heads = False
    put(web, adapter())
    assert contents(fetch(parse_source(f"{web.url}/lora/"), cache)) == adapter()


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
    conditions = {headers.get("If-Range") for _, _, headers in web.requests if "Range" in headers}
    assert conditions <= {f'"{hashlib.sha1(files[WEIGHTS]).hexdigest()}"'}
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


def test_https_needs_a_trusted_certificate_and_is_not_left_by_a_redirect(
    web: Server, cache: AdapterCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(web, adapter())
    server = Server()
    certificate = server.secure(tmp_path)
    put(server, adapter())
    with server.running():
        source = parse_source(f"{server.url}/lora/")
        with pytest.raises(SourceError, match="is not trusted"):
            fetch(source, cache)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        server.faults[f"/lora/{WEIGHTS}"] = [Fault(location=f"{web.url}/lora/{WEIGHTS}")]
        with pytest.raises(SourceError, match="redirects to http://, which is not followed"):
            fetch(source, cache)
        assert web.requests == []
        assert contents(fetch(source, cache)) == adapter()


def test_a_silent_server_an_absent_one_and_an_unknown_name_are_said(
    web: Server, tmp_path: Path, cache: AdapterCache
) -> None:
    put(web, adapter())
    web.faults[f"/lora/{WEIGHTS}"] = [Fault(hold=10), Fault(hold=0)]
    impatient = AdapterCache(tmp_path / "other", limits=DownloadLimits(silence_s=0.2, attempts=1, retry_wait_s=0))
    with pytest.raises(SourceError, match=r"broke while|does not answer"):
        fetch(parse_source(f"{web.url}/lora/"), impatient)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(SourceError, match="refuses the connection"):
            fetch(parse_source(f"http://127.0.0.1:{free.getsockname()[1]}/lora/"), cache)
    with pytest.raises(SourceError, match="cannot be resolved: correct it"):
        fetch(parse_source("http://no-such-host.invalid/lora/"), cache)


def test_a_source_above_the_limit_is_refused(web: Server, tmp_path: Path) -> None:
    put(web, adapter())
    small = AdapterCache(tmp_path / "small", limits=DownloadLimits(max_source_bytes=1000))
    with pytest.raises(SourceError, match="larger than the 1000 bytes"):
        fetch(parse_source(f"{web.url}/lora/"), small)
    assert web.gets() == []


def test_a_web_server_cannot_be_listed(web: Server) -> None:
    with pytest.raises(SourceError, match="cannot be listed"):
        list_source(f"{web.url}/")
