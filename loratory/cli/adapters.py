"""adapters: the commands ``loratory adapters ...``: the registry, from the first adapter to export."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from loratory.cli.adapters_options import (
    DEFAULT_MAX_RANK,
    CacheFolder,
    CacheSize,
    Ids,
    LabelOption,
    MaxRank,
    ModelOption,
    NewVersion,
    RegistryPlace,
    Tenant,
    adapter_fetcher,
    labels_of,
    reading,
    writing,
)
from loratory.cli.terminal import Json, dump, progress, say, show, width
from loratory.errors import InputError
from loratory.user_files import DEFAULT_CACHE_SIZE, REGISTRY_VARIABLE

app = typer.Typer(
    help="Register adapters under names and immutable ids, check them, and resolve them.", rich_markup_mode=None
)
Ref = Annotated[str, typer.Argument(help="NAME (its default version) or NAME@VERSION")]
NameArgument = Annotated[str, typer.Argument(help="an adapter's name")]
DAMAGED = 1
_WIDE = 120
"""Columns from which on a terminal has room for all that adapters list can show."""


@app.callback(invoke_without_command=True)
def _adapters(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_adapters(registry=os.environ.get(REGISTRY_VARIABLE))


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="what requests will call it")],
    source: Annotated[str, typer.Argument(help="a folder, hf://, s3://, gs:// or https://")],
    tenant: Tenant = None,
    label: LabelOption = None,
    lora_int_id: Annotated[int | None, typer.Option("--id", help="its lora_int_id, where clients give ids")] = None,
    new_version: NewVersion = False,
    ids: Ids = None,
    registry: RegistryPlace = None,
    cache: CacheFolder = None,
    cache_size: CacheSize = DEFAULT_CACHE_SIZE,
    model: ModelOption = None,
    max_lora_rank: MaxRank = DEFAULT_MAX_RANK,
    as_json: Json = False,
) -> None:
    """Fetch an adapter, validate it, and register it; nothing is registered when anything is refused."""
    from loratory.cli.adapters_tables import as_json as values
    from loratory.cli.adapters_tables import line

    labels = labels_of(label)
    with adapter_fetcher(cache, cache_size, model, max_lora_rank) as fetcher:
        registration = fetcher.registration(
            name, source, tenant=tenant, labels=labels, lora_int_id=lora_int_id, new_version=new_version
        )
    with writing(registry, ids) as adapters:
        before = {record.ref for record in adapters.list(prefix=name)} if adapters.exists else set()
        (record,) = adapters.add_many([registration])
        default = adapters.defaults()[name]
    added = record.ref not in before
    if as_json:
        dump({"added": added, **values(record, default == record.version)})
        return
    print(f"{'registered' if added else 'already registered:'} {record.ref}: {line(record)}")
    if default != record.version:
        say(f"note: {name} still resolves to {name}@{default}: loratory adapters promote {name} {record.version}")


@app.command("list")
def list_adapters(
    prefix: Annotated[str, typer.Argument(help="only names that begin with it")] = "",
    tenant: Tenant = None,
    label: LabelOption = None,
    base_model: Annotated[str | None, typer.Option("--base-model", help="only adapters for it")] = None,
    removed: Annotated[bool, typer.Option("--removed", help="tombstones, too")] = False,
    registry: RegistryPlace = None,
    as_json: Json = False,
) -> None:
    """List the versions of all adapters; an asterisk marks what a name resolves to."""
    from loratory.cli.adapters_tables import as_json as values
    from loratory.cli.adapters_tables import records_table

    with reading(registry) as adapters:
        wanted = labels_of(label)
        records = adapters.list(prefix=prefix, tenant=tenant, base_model=base_model, labels=wanted, removed=removed)
        defaults = adapters.defaults()
    if as_json:
        dump([values(record, defaults.get(record.name) == record.version) for record in records])
    elif records:
        narrow = sys.stdout.isatty() and width() < _WIDE
        show(records_table(records, defaults, narrow), whole=True)
        if narrow:
            say("adapters show NAME has base model, tenant and labels, too; so has a wider terminal, a pipe, or --json")
    else:
        print("no adapter fits: loratory adapters add NAME SOURCE registers one")


@app.command("show")
def show_adapter(
    ref: Annotated[str | None, typer.Argument(help="NAME (its default version) or NAME@VERSION")] = None,
    lora_int_id: Annotated[int | None, typer.Option("--id", help="or the lora_int_id, be it of a removed one")] = None,
    registry: RegistryPlace = None,
    as_json: Json = False,
) -> None:
    """Show every fact of one version, and which other versions its name has."""
    from loratory.cli.adapters_tables import as_json as values
    from loratory.cli.adapters_tables import facts_table

    if (ref is None) == (lora_int_id is None):
        raise InputError("give either NAME[@VERSION] or --id N, to say which adapter to show")
    with reading(registry) as adapters:
        record = adapters.by_id(lora_int_id) if lora_int_id is not None else adapters.resolve(str(ref))
        default = adapters.defaults().get(record.name)
        versions = [each for each in adapters.list(prefix=record.name, removed=True) if each.name == record.name]
        meaning: dict[str, Any] = {}
        if adapters.ids == "semantic":
            said = adapters.decode(record.lora_int_id)
            meaning = {"task": said.task, "domain": said.domain, "version": said.version}
    if as_json:
        others = [each.ref for each in versions if not each.removed]
        decoded = {"decoded_id": meaning} if meaning else {}
        dump({**values(record, default == record.version), **decoded, "versions": others})
        return
    show(facts_table(record, default), whole=True)
    if meaning:
        print(f"the id says: task {meaning['task']}, domain {meaning['domain']}, version {meaning['version']}")
    marks = [f"@{each.version}" + (" (removed)" if each.removed else "") for each in versions]
    print(f"versions: {', '.join(marks)}")


@app.command("resolve")
def resolve(
    ref: Ref,
    fetch: Annotated[bool, typer.Option("--fetch/--no-fetch", help="without it, lora_path is the source")] = True,
    registry: RegistryPlace = None,
    cache: CacheFolder = None,
    cache_size: CacheSize = DEFAULT_CACHE_SIZE,
    model: ModelOption = None,
    max_lora_rank: MaxRank = DEFAULT_MAX_RANK,
    as_json: Json = False,
) -> None:
    """Print what an engine is to load: name, id, and the local folder, once its digest is what was registered."""
    with reading(registry) as adapters:
        record = adapters.resolve(ref)
    path = None
    if fetch:
        with adapter_fetcher(cache, cache_size, model, max_lora_rank) as fetcher:
            path = str(fetcher.fetch_record(record).folder)
    request = record.lora_request(path)
    if as_json:
        dump({key: getattr(request, key) for key in ("lora_name", "lora_int_id", "lora_path", "base_model_name")})
    else:
        print(f"{request.lora_name}\t{request.lora_int_id}\t{request.lora_path}")


@app.command("promote")
def promote(
    name: NameArgument,
    version: Annotated[int, typer.Argument(help="what NAME is to resolve to")],
    registry: RegistryPlace = None,
    as_json: Json = False,
) -> None:
    """Make a name resolve to another version, in every engine at once."""
    from loratory.cli.adapters_tables import as_json as values

    with reading(registry) as adapters:
        record = adapters.promote(name, version)
    if as_json:
        dump(values(record, True))
    else:
        print(f"{name} resolves to {record.ref} (id {record.lora_int_id})")


@app.command("rollback")
def rollback(name: NameArgument, registry: RegistryPlace = None, as_json: Json = False) -> None:
    """Undo the last promote of a name."""
    from loratory.cli.adapters_tables import as_json as values

    with reading(registry) as adapters:
        record = adapters.rollback(name)
    if as_json:
        dump(values(record, True))
    else:
        print(f"{name} resolves to {record.ref} (id {record.lora_int_id}) again")


@app.command("remove")
def remove(ref: Ref, registry: RegistryPlace = None, as_json: Json = False) -> None:
    """Remove a version, or a name with all its versions; their ids are never given again."""
    from loratory.cli.adapters_tables import as_json as values

    with reading(registry) as adapters:
        gone = adapters.remove(ref)
    if as_json:
        dump([values(record, False) for record in gone])
    else:
        ids = ", ".join(str(record.lora_int_id) for record in gone)
        print(f"removed {', '.join(record.ref for record in gone)}; never given again: id {ids}")


@app.command("history")
def history(name: NameArgument, registry: RegistryPlace = None, as_json: Json = False) -> None:
    """Show what was done to a name, oldest first."""
    from loratory.cli.adapters_tables import change_json, history_table

    with reading(registry) as adapters:
        changes = adapters.history(name)
    if as_json:
        dump([change_json(change) for change in changes])
    else:
        show(history_table(changes), whole=True)


@app.command("verify")
def verify(
    ref: Annotated[str | None, typer.Argument(help="NAME or NAME@VERSION; without it, all")] = None,
    registry: RegistryPlace = None,
    cache: CacheFolder = None,
    cache_size: CacheSize = DEFAULT_CACHE_SIZE,
    model: ModelOption = None,
    max_lora_rank: MaxRank = DEFAULT_MAX_RANK,
    as_json: Json = False,
) -> int:
    """Fetch adapters again and compare them with their records, and check the registry itself. Exit code 1: damage."""
    from loratory.adapters.registry.check import problems

    with reading(registry) as adapters:
        wrong = problems(adapters)
        records = [adapters.resolve(ref)] if ref is not None else list(adapters.list())
    damaged: dict[str, str] = {}
    with (
        adapter_fetcher(cache, cache_size, model, max_lora_rank) as fetcher,
        progress("verifying") as tell,
    ):
        for place, record in enumerate(records):
            try:
                fetcher.release(fetcher.fetch_record(record, revalidate=True))
            except InputError as error:
                damaged[record.ref] = str(error)
            tell(record.ref, place + 1, len(records))
    if as_json:
        checked = [{"ref": r.ref, "ok": r.ref not in damaged, "why": damaged.get(r.ref)} for r in records]
        dump({"registry": wrong, "adapters": checked})
    else:
        for text in wrong:
            print(f"registry: {text}")
        for text in damaged.values():
            print(text)
        print(f"{len(records) - len(damaged)} of {len(records)} adapters are what was registered; ", end="")
        print(f"the registry has {len(wrong)} problems" if wrong else "the registry agrees with its history")
    return DAMAGED if wrong or damaged else 0


@app.command("scan")
def scan_prefix(
    prefix: Annotated[str, typer.Argument(help="a folder, hf://ORG, hf://ORG/REPO, s3://... or gs://...")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="register nothing")] = False,
    tenant: Tenant = None,
    label: LabelOption = None,
    new_version: NewVersion = False,
    ids: Ids = None,
    registry: RegistryPlace = None,
    cache: CacheFolder = None,
    cache_size: CacheSize = DEFAULT_CACHE_SIZE,
    model: ModelOption = None,
    max_lora_rank: MaxRank = DEFAULT_MAX_RANK,
    as_json: Json = False,
) -> int:
    """Register every valid adapter below a prefix, by its path there. Exit code 1: some were refused."""
    from loratory.adapters.registry.scan import scan
    from loratory.cli.adapters_tables import finding_json, findings_table

    labels = labels_of(label)
    with (
        adapter_fetcher(cache, cache_size, model, max_lora_rank) as fetcher,
        writing(registry, ids) as adapters,
        progress("scanning") as tell,
    ):
        target = None if dry_run else adapters
        found = scan(prefix, target, fetcher, tenant=tenant, labels=labels, new_version=new_version, progress=tell)
    counts = {kind: sum(each.outcome == kind for each in found) for kind in ("added", "known", "valid", "refused")}
    if as_json:
        dump([finding_json(each) for each in found])
    elif found:
        show(findings_table(found), whole=True)
        print(", ".join(f"{count} {kind}" for kind, count in counts.items() if count))
    else:
        print(f"no adapter is at or below {prefix}: a folder with an adapter_config.json is one")
    return DAMAGED if counts["refused"] else 0


@app.command("import")
def import_file(
    file: Annotated[
        list[str] | None,
        typer.Argument(help="a YAML manifest, or a text with vLLM's --lora-modules", show_default=False),
    ] = None,
    modules: Annotated[
        list[str] | None,
        typer.Option("--lora-modules", help="name=path or JSON items, as many as vLLM takes; may be repeated"),
    ] = None,
    new_version: NewVersion = False,
    ids: Ids = None,
    registry: RegistryPlace = None,
    cache: CacheFolder = None,
    cache_size: CacheSize = DEFAULT_CACHE_SIZE,
    model: ModelOption = None,
    max_lora_rank: MaxRank = DEFAULT_MAX_RANK,
    as_json: Json = False,
) -> None:
    """Register all adapters of a list, or none of them."""
    from loratory.adapters.registry.import_manifest import import_manifest
    from loratory.cli.adapters_tables import as_json as values
    from loratory.cli.adapters_tables import line
    from loratory.cli.adapters_transfer import read_list

    listed = read_list(file or [], modules or [])
    with (
        adapter_fetcher(cache, cache_size, model, max_lora_rank) as fetcher,
        writing(registry) as plain,
        progress("importing") as tell,
    ):
        strategy = ids or (None if plain.exists else listed.manifest.ids)
        with writing(registry, strategy) as adapters:
            done = import_manifest(listed.manifest, adapters, fetcher, new_version=new_version, progress=tell)
            notes = (*done.notes, *listed.notes(adapters))
            defaults = adapters.defaults()
    if as_json:
        shown = [values(record, defaults.get(record.name) == record.version) for record in done.records]
        dump({"added": shown, "known": done.known, "notes": list(notes)})
        return
    for record in done.records:
        print(f"registered {record.ref}: {line(record)}")
    print(f"{len(done.records)} added, {done.known} known")
    for note in notes:
        say(f"note: {note}")


@app.command("export")
def export(
    form: Annotated[Literal["yaml", "vllm"], typer.Option("--format", help="yaml: a manifest of all; vllm")] = "yaml",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="a file, instead of the terminal")] = None,
    local: Annotated[bool, typer.Option("--local", help="vllm: fetch all, and name their folders here")] = False,
    registry: RegistryPlace = None,
    cache: CacheFolder = None,
    cache_size: CacheSize = DEFAULT_CACHE_SIZE,
    as_json: Json = False,
) -> None:
    """Write the registry as a manifest, or its default versions as vLLM's --lora-modules."""
    from loratory.adapters.registry.manifest import dump_manifest, manifest_of
    from loratory.adapters.registry.vllm_lora_modules import module_of
    from loratory.cli.adapters_transfer import modules_text, write_text

    if form == "yaml":
        if local or as_json:
            raise InputError("--local and --json go with --format vllm only: leave them out, or choose it")
        with reading(registry) as adapters:
            write_text(dump_manifest(manifest_of(adapters)), out)
        return
    with reading(registry) as adapters:
        records = [adapters.resolve(name) for name in adapters.names()]
    found = []
    with adapter_fetcher(cache, cache_size, None, 2**31 - 1) as fetcher, progress("fetching") as tell:
        for place, record in enumerate(records):
            found.append(module_of(record, str(fetcher.fetch_record(record).folder) if local else None))
            tell(record.ref, place + 1, len(records))
    write_text(modules_text(found, as_json), out)
