"""Sources: their texts, local folders, and packages that are not installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import CONFIG, WEIGHTS, adapter

from loratory.adapters.sources.cache import AdapterCache
from loratory.adapters.sources.remote import SourceError
from loratory.adapters.sources.source import AdapterSource, fetch, list_source, parse_source
from loratory.errors import InputError


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[AdapterCache]:
    with AdapterCache(tmp_path / "cache") as cache:
        yield cache


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("adapters/sql", AdapterSource("local", "", "adapters/sql")),
        ("./adapters//sql/", AdapterSource("local", "", "adapters/sql")),
        ("/srv/sql", AdapterSource("local", "", "/srv/sql")),
        ("hf://acme/sql", AdapterSource("hub", "acme/sql", "")),
        ("hf://acme/sql@v2", AdapterSource("hub", "acme/sql", "", "v2")),
        ("hf://acme/sql@refs/pr/3/final", AdapterSource("hub", "acme/sql", "final", "refs/pr/3")),
        ("hf://acme/sql@feature%2Fx/a/b/", AdapterSource("hub", "acme/sql", "a/b", "feature/x")),
        ("s3://bucket/loras/sql/", AdapterSource("s3", "bucket", "loras/sql")),
        ("s3://bucket", AdapterSource("s3", "bucket", "")),
        ("gs://bucket/sql v2 @1#x", AdapterSource("gs", "bucket", "sql v2 @1#x")),
        ("https://Host.example:8443/a%20b/", AdapterSource("http", "https://host.example:8443", "a b")),
        ("http://[::1]:80/", AdapterSource("http", "http://[::1]:80", "")),
    ],
)
def test_a_source_is_read_from_its_text_and_written_back(text: str, source: AdapterSource) -> None:
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
