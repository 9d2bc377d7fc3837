"""Discovery and resolvers: one bad adapter is one refusal, and everything else goes on as if it were not there."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from adapters_on_disk import BASE as SHAPES
from adapters_on_disk import WEIGHTS, tensors, write
from corrupt import CORRUPTIONS
from servers import GoogleServer, HubServer, Server, adapter

from loratory.adapters.fetch import AdapterFetcher
from loratory.adapters.files.validation import FileLimits
from loratory.adapters.ids import HashIds
from loratory.adapters.registry.registry import Registry
from loratory.adapters.registry.scan import scan
from loratory.adapters.resolver import LoRAResolver, RegistryResolver, ResolverChain, SourceResolver, VLLMResolver
from loratory.adapters.sources.cache import AdapterCache
from loratory.errors import InputError, RefusedAdapter
from loratory.serving.lora import LoRARequest

BASE = "some/llama"
SHAPED = FileLimits(max_lora_rank=16, base=SHAPES)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[AdapterCache]:
    with AdapterCache(tmp_path / "cache") as cache:
        yield cache


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry(tmp_path / "adapters.db") as registry:
        yield registry


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


def ask(resolver: LoRAResolver, name: str, base: str = BASE) -> LoRARequest | None:
    return asyncio.run(resolver.resolve_lora(base, name))


def ask_all(resolver: LoRAResolver, names: list[str]) -> list[LoRARequest | BaseException | None]:
    """All at once, as an engine's requests come."""

    async def together() -> list[LoRARequest | BaseException | None]:
        return await asyncio.gather(*(resolver.resolve_lora(BASE, name) for name in names), return_exceptions=True)

    return asyncio.run(together())


def found(resolver: LoRAResolver, name: str) -> LoRARequest:
    request = ask(resolver, name)
    assert request is not None
    return request


def tree(folder: Path) -> dict[str, str]:
    """A digest of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def test_a_folder_of_every_corruption_yields_the_good_ones_and_a_sentence_for_each_other(
    tmp_path: Path, registry: Registry, cache: AdapterCache
) -> None:
    """Which is also what one request for each does: refusals of these requests, and the others are served."""
    root = tmp_path / "adapters"
    for seed in range(5):
        write(root / f"good-{seed}", found=tensors(seed=seed))
    bad = []
    for place, corruption in enumerate(CORRUPTIONS):
        folder = write(root / f"bad-{place:03d}")
        if corruption.spoil(folder) in (None, folder) and folder.is_dir():
            bad.append(folder.name)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    before = tree(root)
    findings = {finding.name: finding for finding in scan(str(root), registry, AdapterFetcher(cache, SHAPED))}
    good = [f"good-{seed}" for seed in range(5)]
    assert [name for name in findings if findings[name].outcome == "added"] == good
    assert len(bad) >= 25 and len(findings) >= 5 + 25
    for name, finding in findings.items():
        assert name in good or (finding.outcome == "refused" and name in bad and "\n" not in finding.why), name
    assert registry.names() == tuple(good)
    answers = ask_all(SourceResolver(str(root), cache, SHAPED), [*bad, *good])
    for name, answer in zip([*bad, *good], answers, strict=True):
        if name in good:
            assert isinstance(answer, LoRARequest) and answer.lora_path == str(root / name)
        else:
            assert answer is None or isinstance(answer, RefusedAdapter), name
    assert sum(isinstance(answer, RefusedAdapter) for answer in answers) >= 25
    assert tree(root) == before


def test_scanning_again_adds_nothing_and_sees_what_changed(
    tmp_path: Path, registry: Registry, cache: AdapterCache
) -> None:
    fetcher, root = AdapterFetcher(cache), tmp_path / "adapters"
    write(root / "a" / "deep", found=tensors(seed=1))
    write(root / "b", found=tensors(seed=2))
    told: list[tuple[str, int, int]] = []
    first = scan(
        str(root), registry, fetcher, tenant="acme", labels={"k": "v"}, progress=lambda *step: told.append(step)
    )
    assert [(each.name, each.outcome) for each in first] == [("a/deep", "added"), ("b", "added")]
    assert told == [("a/deep", 1, 2), ("b", 2, 2)]
    assert registry.resolve("b").tenant == "acme" and dict(registry.resolve("b").labels) == {"k": "v"}
    assert [each.outcome for each in scan(str(root), registry, fetcher)] == ["known", "known"]
    write(root / "b", found=tensors(seed=3))
    changed = scan(str(root), registry, fetcher)
    assert [each.outcome for each in changed] == ["known", "refused"] and "new version b@2" in changed[1].why
    newer = scan(str(root), registry, fetcher, tenant="acme", new_version=True)
    assert newer[1].record is not None and newer[1].record.ref == "b@2"
    assert registry.resolve("b").version == 1
    assert [each.outcome for each in scan(str(root), None, fetcher)] == ["valid", "valid"]
    at = scan(str(root / "b"), None, fetcher)
    assert [each.name for each in at] == ["b"]


def test_a_prefix_that_cannot_be_listed_is_refused(tmp_path: Path, cache: AdapterCache) -> None:
    registry = Registry(tmp_path / "adapters.db")
    with pytest.raises(InputError, match="is not a folder"):
        scan(str(tmp_path / "nowhere"), registry, AdapterFetcher(cache))
    with pytest.raises(InputError, match="cannot be listed"):
        scan("https://host/adapters/", registry, AdapterFetcher(cache))
    assert not (tmp_path / "adapters.db").exists()


def test_a_hub_organisation_is_scanned_and_resolved_by_name(
    hub: HubServer, registry: Registry, cache: AdapterCache
) -> None:
    for seed, repo in enumerate(("acme/sql", "acme/chat", "other/math")):
        hub.push(repo, adapter(seed=seed))
    hub.push("acme/pickled", {"adapter_config.json": b"{}", "adapter_model.bin": b"x"})
    findings = {each.name: each.outcome for each in scan("hf://acme", registry, AdapterFetcher(cache))}
    assert findings == {"sql": "added", "chat": "added", "pickled": "refused"}
    resolver = SourceResolver("hf://acme", cache)
    request = asyncio.run(resolver.resolve_lora("acme/base", "sql"))
    assert request is not None and (Path(request.lora_path) / WEIGHTS).is_file()
    assert request.lora_int_id == HashIds.candidate("hf://acme/sql", registry.resolve("sql").digest)
    assert ask(resolver, "math", "acme/base") is None
    with pytest.raises(RefusedAdapter, match="pickle"):
        ask(resolver, "pickled", "acme/base")


def test_a_bucket_is_resolved_by_name(google: GoogleServer, cache: AdapterCache) -> None:
    for name, data in adapter().items():
        google.files[f"/lake/lora/team/sql/{name}"] = data
    resolver = SourceResolver("gs://lake/lora", cache)
    request = ask(resolver, "team/sql", "acme/base")
    assert request is not None and request.lora_name == "team/sql"
    assert ask(resolver, "team", "acme/base") is None


@pytest.mark.parametrize(
    "name", ["../outside", "/etc", "a/../../outside", ".hidden", "", "a//b", "a\\b", "a\0b", "a\n"]
)
def test_no_name_leaves_the_folder(name: str, tmp_path: Path, cache: AdapterCache) -> None:
    for place in ("outside", "adapters/.hidden", "adapters/a/b"):
        write(tmp_path / place)
    (tmp_path / "adapters" / "link").symlink_to(tmp_path / "outside")
    assert ask(SourceResolver(str(tmp_path / "adapters"), cache), name) is None


def test_another_content_gets_another_id_and_the_same_the_same(tmp_path: Path, cache: AdapterCache) -> None:
    root = tmp_path / "adapters"
    write(root / "a", found=tensors(seed=1))
    first = found(SourceResolver(str(root), cache), "a")
    resolver = SourceResolver(str(root), cache)
    assert found(resolver, "a") == first
    write(root / "a", found=tensors(seed=2))
    assert found(resolver, "a").lora_int_id != first.lora_int_id


def test_the_registry_resolver_gives_what_was_registered_or_refuses(
    tmp_path: Path, registry: Registry, cache: AdapterCache
) -> None:
    fetcher, folder = AdapterFetcher(cache), write(tmp_path / "sql")
    record = registry.add_many([fetcher.registration("sql", str(folder))])[0]
    resolver = RegistryResolver(registry, cache)
    for name in ("sql", "sql@1"):
        assert found(resolver, name) == LoRARequest("sql@1", record.lora_int_id, str(folder), BASE)
    for unknown in ("chat", "sql@x", "", "a@b@c", "x\ny"):
        assert ask(resolver, unknown) is None
    with pytest.raises(RefusedAdapter, match=r"'sql@1' is for the base model 'some/llama', but this engine serves 'x'"):
        ask(resolver, "sql", "x")
    assert ask(RegistryResolver(registry, cache, base_models=[BASE]), "sql", "x") is not None
    with pytest.raises(RefusedAdapter, match="more than max_lora_rank 1"):
        ask(RegistryResolver(registry, cache, FileLimits(max_lora_rank=1)), "sql")
    write(folder, found=tensors(seed=9))
    with pytest.raises(RefusedAdapter, match=r"was registered with the digest sha256:.*put back what was registered"):
        ask(resolver, "sql")
    shutil.rmtree(folder)
    with pytest.raises(RefusedAdapter, match="does not exist"):
        ask(resolver, "sql")
    registry.remove("sql")
    with pytest.raises(RefusedAdapter, match="was removed"):
        ask(resolver, "sql")


def test_a_copy_with_the_registered_digest_is_enough_whatever_the_source_holds_by_now(
    web: Server, registry: Registry, cache: AdapterCache, tmp_path: Path
) -> None:
    def publish(seed: int) -> None:
        web.files.update({f"/sql/{name}": data for name, data in adapter(seed=seed).items()})

    publish(1)
    fetcher = AdapterFetcher(cache)
    record = registry.add_many([fetcher.registration("sql", f"{web.url}/sql")])[0]
    resolver = RegistryResolver(registry, cache)
    first = ask(resolver, "sql", "acme/base")
    publish(2)
    assert ask(resolver, "sql", "acme/base") == first
    with pytest.raises(RefusedAdapter, match="put back what was registered"):
        fetcher.fetch_record(record, revalidate=True)
    with AdapterCache(tmp_path / "empty") as empty, pytest.raises(RefusedAdapter, match="put back"):
        ask(RegistryResolver(registry, empty), "sql", "acme/base")


@pytest.mark.parametrize("rot", [lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: data[:-4] + b"\xff" * 4])
def test_a_copy_that_rotted_on_disk_is_fetched_again(
    rot: Callable[[bytes], bytes], web: Server, registry: Registry, cache: AdapterCache
) -> None:
    """To other numbers, or to what is no adapter any more: not a number."""
    web.files.update({f"/sql/{name}": data for name, data in adapter().items()})
    registry.add_many([AdapterFetcher(cache).registration("sql", f"{web.url}/sql")])
    resolver = RegistryResolver(registry, cache)
    request = ask(resolver, "sql", "acme/base")
    assert request is not None
    weights = Path(request.lora_path) / WEIGHTS
    good = weights.read_bytes()
    weights.chmod(0o644)
    weights.write_bytes(rot(good))
    assert ask(resolver, "sql", "acme/base") == request
    assert weights.read_bytes() == good


def test_folders_stay_leased_until_they_are_forgotten(web: Server, registry: Registry, tmp_path: Path) -> None:
    sizes = {}
    for seed in range(3):
        files = adapter(seed=seed)
        web.files.update({f"/{seed}/{name}": data for name, data in files.items()})
        sizes[seed] = sum(map(len, files.values()))
    with AdapterCache(tmp_path / "small", max_bytes=sizes[0] + sizes[1] + 10) as cache:
        fetcher = AdapterFetcher(cache)
        for seed in range(3):
            registry.add_many([fetcher.registration(f"a{seed}", f"{web.url}/{seed}")])
        resolver = RegistryResolver(registry, cache)
        for name in ("a0", "a0", "a1"):
            assert ask(resolver, name, "acme/base") is not None
        with pytest.raises(RefusedAdapter, match="release adapters in use"):
            ask(resolver, "a2", "acme/base")
        resolver.forget("a0@1")
        assert ask(resolver, "a2", "acme/base") is not None
        resolver.forget("never heard of")


class Broken:
    """A registry with a bug."""

    def resolve(self, ref: str) -> None:
        raise ZeroDivisionError(ref)


def test_whatever_a_resolver_meets_is_a_refusal_of_one_request(
    tmp_path: Path, registry: Registry, cache: AdapterCache
) -> None:
    with pytest.raises(RefusedAdapter, match="an unexpected ZeroDivisionError"):
        ask(RegistryResolver(Broken(), cache), "sql")  # type: ignore[arg-type]
    (tmp_path / "no.db").write_text("this is no database, and long enough to be seen as none" * 50)
    with pytest.raises(RefusedAdapter, match="is not a SQLite file"):
        ask(RegistryResolver(Registry(tmp_path / "no.db"), cache), "sql")


def test_a_chain_asks_in_turn_and_a_refusal_is_the_last_word(
    tmp_path: Path, registry: Registry, cache: AdapterCache
) -> None:
    fetcher = AdapterFetcher(cache)
    write(tmp_path / "one", found=tensors(seed=1))
    write(tmp_path / "loose" / "two", found=tensors(seed=2))
    write(tmp_path / "loose" / "one", found=tensors(seed=3))
    registry.add_many([fetcher.registration("one", str(tmp_path / "one"))])
    chain = ResolverChain(RegistryResolver(registry, cache), SourceResolver(str(tmp_path / "loose"), cache))
    assert found(chain, "one").lora_path == str(tmp_path / "one")
    assert found(chain, "two").lora_path == str(tmp_path / "loose" / "two")
    assert ask(chain, "three") is None
    shutil.rmtree(tmp_path / "one")
    with pytest.raises(RefusedAdapter):
        ask(chain, "one")
    registry.remove("one")
    with pytest.raises(RefusedAdapter, match="was removed"):
        ask(chain, "one")


class Fixed:
    """Answers every name with one id."""

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        return LoRARequest(lora_name, 7, "/x")


def test_a_chain_lets_no_id_mean_two_adapters() -> None:
    chain = ResolverChain(Fixed())
    assert found(chain, "a") == found(chain, "a")
    with pytest.raises(RefusedAdapter, match="lora_int_id 7, which is adapter 'a' here"):
        ask(chain, "b")


@dataclass
class Theirs:
    """The fields of vllm.lora.request.LoRARequest that matter."""

    lora_name: str
    lora_int_id: int
    lora_path: str
    base_model_name: str | None = None


def test_vllm_gets_its_own_object_or_none(tmp_path: Path, cache: AdapterCache) -> None:
    write(tmp_path / "all" / "sql")
    inner = SourceResolver(str(tmp_path / "all"), cache)
    resolver = VLLMResolver(inner, Theirs)
    got = asyncio.run(resolver.resolve_lora(BASE, "sql"))
    ours = found(inner, "sql")
    assert got == Theirs(ours.lora_name, ours.lora_int_id, ours.lora_path, BASE)
    assert asyncio.run(resolver.resolve_lora(BASE, "nope")) is None


def test_a_web_server_is_no_place_to_look_names_up(cache: AdapterCache) -> None:
    with pytest.raises(InputError, match="cannot be listed"):
        SourceResolver("https://host/adapters", cache)
