"""Manifests and vLLM's --lora-modules: what is exported comes back the same, in an empty registry and in its own."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from adapters_on_disk import tensors, write
from hypothesis import given, settings
from hypothesis import strategies as st

from loratory.adapters.fetch import AdapterFetcher
from loratory.adapters.registry.check import problems
from loratory.adapters.registry.import_manifest import import_manifest, manifest_of_modules
from loratory.adapters.registry.manifest import (
    Facts,
    Manifest,
    ManifestEntry,
    dump_manifest,
    manifest_of,
    parse_manifest,
)
from loratory.adapters.registry.registry import Registry
from loratory.adapters.registry.vllm_lora_modules import ModulePath, format_lora_modules, module_of, parse_lora_modules
from loratory.adapters.sources.cache import AdapterCache
from loratory.errors import InputError

CONTENTS = 3
"""Different adapters on disk; names and versions share them, as they may."""


@pytest.fixture(scope="module")
def library() -> Iterator[Path]:
    """Folders 0, 1, 2, each a valid adapter of its own."""
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(CONTENTS):
            write(Path(folder, str(seed)), found=tensors(seed=seed, rank=seed + 1), fields={"r": seed + 1})
        yield Path(folder)


@pytest.fixture(scope="module")
def fetcher(library: Path) -> Iterator[AdapterFetcher]:
    with AdapterCache(library / "cache") as cache:
        yield AdapterFetcher(cache)


word = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S"), exclude_characters="@"), min_size=1)
tenant = st.one_of(st.none(), st.sampled_from(["acme", "0123", "null", "ümlaut: [x]", "# no comment"]))
step = st.one_of(
    st.tuples(st.just("add"), st.sampled_from("abc"), st.integers(0, CONTENTS - 1)),
    st.tuples(st.sampled_from(["promote", "remove"]), st.sampled_from("abc"), st.integers(1, 4)),
    st.tuples(st.just("remove all"), st.sampled_from("abc"), st.just(0)),
    st.tuples(st.just("rollback"), st.sampled_from("abc"), st.just(0)),
)


def apply(
    registry: Registry, fetcher: AdapterFetcher, library: Path, steps: list[Any], owner: str | None, task: str
) -> None:
    """The steps that the registry takes; those it refuses are part of life."""
    for action, name, number in steps:
        try:
            if action == "add":
                labels = {"task": f"{task}{number}", "domain": name}
                wish = fetcher.registration(
                    name, str(library / str(number)), tenant=owner, labels=labels, new_version=True,
                    lora_int_id=100 + len(registry.list(removed=True)) if registry.ids == "user" else None,
                )  # fmt: skip
                registry.add_many([wish])
            elif action == "promote":
                registry.promote(name, number)
            elif action == "rollback":
                registry.rollback(name)
            else:
                registry.remove(name if action == "remove all" else f"{name}@{number}")
        except InputError:
            continue


@given(
    st.sampled_from(["sequential", "hash", "user", "semantic"]),
    st.lists(step, max_size=14),
    tenant,
    word.map(str.strip),
)
@settings(max_examples=60)
def test_an_export_into_an_empty_registry_gives_the_same_names_versions_defaults_and_ids(
    library: Path, fetcher: AdapterFetcher, ids: str, steps: list[Any], owner: str | None, task: str
) -> None:
    with Registry(":memory:", ids) as first, Registry(":memory:", ids) as second:
        apply(first, fetcher, library, steps, owner, task)
        manifest = manifest_of(first)
        text = dump_manifest(manifest)
        assert parse_manifest(text) == manifest
        done = import_manifest(parse_manifest(text), second, fetcher)
        assert done.notes == () and done.known == 0
        moving = ("created",)
        for one, two in zip(first.list(removed=True), second.list(removed=True), strict=True):
            for name in one.__slots__:
                assert name in moving or getattr(one, name) == getattr(two, name), name
        assert first.defaults() == second.defaults()
        assert problems(second) == []
        assert manifest_of(second) == manifest
        again = import_manifest(manifest, second, fetcher)
        assert again.records == () and again.known == len(manifest.entries)
        assert manifest_of(second) == manifest


def test_a_manifest_written_by_hand_needs_names_and_sources_only(library: Path, fetcher: AdapterFetcher) -> None:
    text = f"adapters:\n- {{name: sql, source: {library}/0}}\n- {{name: chat, source: {library}/1, tenant: acme}}\n"
    with Registry(":memory:") as registry:
        done = import_manifest(parse_manifest(text), registry, fetcher)
        assert [record.ref for record in done.records] == ["sql@1", "chat@1"]
        assert registry.resolve("chat").tenant == "acme"


def test_all_or_nothing(library: Path, fetcher: AdapterFetcher) -> None:
    good, bad = ManifestEntry("good", str(library / "0")), ManifestEntry("bad", str(library / "nowhere"))
    with Registry(":memory:") as registry:
        with pytest.raises(InputError, match=r"adapter 'bad' is refused, so nothing was imported: .*does not exist"):
            import_manifest(Manifest((good, bad)), registry, fetcher)
        with pytest.raises(InputError, match="has the digest sha256:00 in the manifest"):
            import_manifest(
                Manifest((good, ManifestEntry("x", str(library / "1"), digest="sha256:00"))), registry, fetcher
            )
        with pytest.raises(InputError, match=r"'x@3' would be 'x@1' in this registry"):
            import_manifest(Manifest((good, ManifestEntry("x", str(library / "1"), version=3))), registry, fetcher)
        assert len(registry) == 0
        registry.add_many([fetcher.registration("good", str(library / "0"))])
        with pytest.raises(InputError, match=r"'good@1' of this registry has another source"):
            import_manifest(Manifest((ManifestEntry("good", str(library / "1"), version=1),)), registry, fetcher)
        with pytest.raises(InputError, match=r"registered with the source .* new version good@2"):
            import_manifest(Manifest((ManifestEntry("good", str(library / "1")),)), registry, fetcher)
        done = import_manifest(
            Manifest((ManifestEntry("good", str(library / "1"), default=True),)), registry, fetcher, new_version=True
        )
        assert [record.ref for record in done.records] == ["good@2"]
        assert registry.resolve("good").version == 2


def test_an_id_that_comes_out_otherwise_is_said(library: Path, fetcher: AdapterFetcher) -> None:
    with Registry(":memory:") as registry:
        registry.add_many([fetcher.registration("first", str(library / "0"))])
        done = import_manifest(Manifest((ManifestEntry("sql", str(library / "1"), lora_int_id=1),)), registry, fetcher)
        assert done.notes == ("sql@1 has the id 2 here, but 1 in the manifest",)


FACTS = Facts(8, ("q_proj",), 16.0, False, None, "F32", 10, 5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no key adapters"),
        ("[1]", "has no key adapters"),
        ("adapters: 3", "adapters is no list"),
        ("a: b: c", r"m.yaml:1: is not YAML"),
        ("{a: &x [*x]}", "has no key adapters"),
        ("adapters: []\nadaptors: 3", "unknown key 'adaptors'; did you mean 'adapters'"),
        ("adapters: []\nloratory_adapters: 9", "has format 9"),
        ("adapters: []\nids: random", "ids is 'random'"),
        ("adapters: [x]", r"adapters\[0\]: is no mapping"),
        ("adapters: [{name: a}]", "source is None"),
        ("adapters: [{name: 3, source: x}]", "name is 3"),
        ("adapters: [{name: a@1, source: x}]", "has an @"),
        ("adapters: [{name: a, source: x, sauce: y}]", "unknown key 'sauce'; did you mean 'source'"),
        ("adapters: [{name: a, source: x, version: 0}]", "version is 0"),
        ("adapters: [{name: a, source: x, version: true}]", "version is True"),
        ("adapters: [{name: a, source: x, lora_int_id: x}]", "lora_int_id is 'x'"),
        ("adapters: [{name: a, source: x, default: 1}]", "default is 1"),
        ("adapters: [{name: a, source: x, tenant: 1}]", "tenant is 1"),
        ("adapters: [{name: a, source: x, labels: {k: 1}}]", "labels is {'k': 1}"),
        ("adapters: [{name: a, source: x, labels: {'k k': v}}]", "is not a valid key"),
        ("adapters: [{name: a, source: x, removed: true}]", "is removed, which needs"),
        ("adapters: [{name: a, source: x, facts: 3}]", "facts: is no mapping"),
        ("adapters: [{name: a, source: x, facts: {rank: x}}]", "facts: rank is 'x'"),
        ("adapters: [{name: a, source: x, version: 2}, {name: a, source: x, version: 1}]", "comes after version 2"),
        ("adapters: [{name: a, source: x, default: true}, {name: a, source: y, default: true}]", "two defaults"),
    ],
)
def test_a_bad_manifest_is_one_sentence(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        parse_manifest(text, "m.yaml")
    assert str(caught.value).startswith("m.yaml") and "\n" not in str(caught.value)


@given(st.text(max_size=200))
def test_any_text_is_a_manifest_or_refused(text: str) -> None:
    try:
        parse_manifest(f"adapters: [{text}]")
    except InputError as error:
        assert "\n" not in str(error)


module = st.builds(
    ModulePath,
    st.text(min_size=1).filter(lambda text: text.strip() == text and bool(text)),
    st.text(min_size=1).filter(lambda text: text.strip() == text and bool(text)),
    st.one_of(st.none(), st.text(min_size=1)),
)


def vllm(item: str) -> dict[str, Any]:
    """What vLLM makes of an item: LoRAParserAction in vllm/entrypoints/openai/cli_args.py, written down."""
    if "=" in item and "," not in item:
        name, path = item.split("=")
        return {"name": name, "path": path}
    value: dict[str, Any] = json.loads(item)
    return value


@given(st.lists(module, max_size=5, unique_by=lambda each: each.name))
def test_what_is_written_for_vllm_is_read_back_by_us_and_by_vllm(modules: list[ModulePath]) -> None:
    items = format_lora_modules(modules)
    assert parse_lora_modules(items) == tuple(modules)
    assert parse_lora_modules(shlex.join(["--lora-modules", *items])) == tuple(modules)
    for each, item in zip(modules, items, strict=True):
        read = vllm(item)
        assert (read["name"], read["path"], read.get("base_model_name")) == (each.name, each.path, each.base_model_name)


@pytest.mark.parametrize("name", ["{", "[", "{a", "[a]", "[1]x"])
def test_a_name_that_begins_as_json_does_is_written_as_json(name: str) -> None:
    each = ModulePath(name, "/x")
    (item,) = format_lora_modules([each])
    assert json.loads(item)["name"] == name
    assert parse_lora_modules([item]) == parse_lora_modules(shlex.quote(item)) == (each,)


def test_the_forms_in_which_modules_come() -> None:
    a, b = ModulePath("a", "/x"), ModulePath("b", "o/r", "llama")
    one = '{"name": "b", "path": "o/r", "base_model_name": "llama"}'
    assert parse_lora_modules(f"--lora-modules a=/x \\\n  '{one}'  # two of them\n") == (a, b)
    assert parse_lora_modules(f'{{"name": "a", "path": "/x"}}\n{one}\n') == (a, b)
    assert parse_lora_modules(f'[{{"name": "a", "path": "/x"}}, {one}]') == (a, b)
    assert parse_lora_modules(["", "a=/x"]) == (a,) and parse_lora_modules("") == ()
    assert (a.source, b.source) == ("/x", "hf://o/r")


@pytest.mark.parametrize(
    ("items", "says"),
    [
        ("a=b=c", "has two ="),
        ("plain", "is neither name=path nor"),
        ("=x", "has no name"),
        ("a=", "has no path"),
        ("'a=x", "close its quotes"),
        ('{"name": "a"}', "has no path"),
        ('{"name": "a", "path": "x", "rank": 3}', "has the key 'rank'"),
        ('{"name": "a", "path": "x", "base_model_name": 3}', "base_model_name that is no text"),
        ('{"name": "a", ', "is no JSON"),
        ("[3]", "is no {"),
        ("a=x a=y", "'a' is given twice"),
        (["a,b=c"], "is neither"),
        (['{"name": "a", "path": "x"} {"name": "b", "path": "y"}'], "is neither"),
    ],
)
def test_bad_modules_are_one_sentence(items: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse_lora_modules(items)


def test_modules_go_in_and_out_of_a_registry(library: Path, fetcher: AdapterFetcher) -> None:
    with Registry(":memory:") as registry:
        import_manifest(manifest_of_modules([ModulePath("sql", str(library / "0"))]), registry, fetcher)
        assert module_of(registry.resolve("sql")) == ModulePath("sql", str(library / "0"), "some/llama")
        facts = fetcher.registration("x", str(library / "1")).description
        assert module_of(registry.add("hub", "hf://o/r", facts)).path == "o/r"
        elsewhere = registry.add("s3", "s3://bucket/x", facts)
        with pytest.raises(InputError, match="export with --local"):
            module_of(elsewhere)
        assert module_of(elsewhere, "/cache/x").path == "/cache/x"
