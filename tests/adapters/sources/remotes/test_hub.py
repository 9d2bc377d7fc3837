"""Fetching from the Hub: revisions, folders, declared digests, refusals, listing."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from servers import CONFIG, WEIGHTS, Fault, HubServer, adapter, contents

from loratory.adapters.sources.cache import AdapterCache
from loratory.adapters.sources.remote import DownloadLimits, SourceError
from loratory.adapters.sources.source import fetch, list_source, parse_source

QUICK = DownloadLimits(silence_s=20, attempts=2, retry_wait_s=0)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    server = HubServer()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    with server.running():
        yield server


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
    with pytest.raises(SourceError, match="has no such repository"):
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
