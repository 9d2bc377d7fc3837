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

app = typer.Typer(help="Register adapters under permanent ids, check them, and resolve names.", rich_markup_mode=None)
Ref = Annotated[str, typer.Argument(help="NAME (its default version) or NAME@VERSION")]
NameArgument = Annotated[str, typer.Argument(help="an adapter's name")]
DAMAGED = 1
_WIDE = 120
"""Width in columns from which a terminal has room for the whole table of adapters list."""


@app.callback(invoke_without_command=True)
def _adapters(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_adapters(registry=os.environ.get(REGISTRY_VARIABLE))


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="the name that requests will use")],
    source: Annotated[str, typer.Argument(help="a folder, hf://, s3://, gs:// or https://")],
    tenant: Tenant = None,
    label: LabelOption = None,
    lora_int_id: Annotated[int | None, typer.Option("--id", help="its lora_int_id, for ids given by clients")] = None,
    new_version: NewVersion = False,
    ids: Ids = None,
    registry: RegistryPlace = None,
    cache: CacheFolder = None,
    cache_size: CacheSize = DEFAULT_CACHE_SIZE,
    model: ModelOption = None,
    max_lora_rank: MaxRank = DEFAULT_MAX_RANK,
    as_json: Json = False,
) -> None:
    """Fetch an adapter, validate it, and register it.

    An adapter that is refused is not registered.
    """
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
    prefix: Annotated[str, typer.Argument(help="list only names that begin with this text")] = "",
    tenant: Tenant = None,
    label: LabelOption = None,
    base_model: Annotated[
        str | None, typer.Option("--base-model", help="list only adapters for this base model")
    ] = None,
    removed: Annotated[bool, typer.Option("--removed", help="list removed versions as well")] = False,
    registry: RegistryPlace = None,
    as_json: Json = False,
) -> None:
    """List the versions of all adapters.

    An asterisk marks the version that a name resolves to.
    """
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
            say("for base model, tenant and labels: adapters show NAME, --json, a pipe, or a wider terminal")
    else:
        print("no adapter matches; register one with: loratory adapters add NAME SOURCE")


@app.command("show")
def show_adapter(
    ref: Annotated[str | None, typer.Argument(help="NAME (its default version) or NAME@VERSION")] = None,
    lora_int_id: Annotated[
        int | None, typer.Option("--id", help="a lora_int_id instead of NAME; may be of a removed one")
    ] = None,
    registry: RegistryPlace = None,
    as_json: Json = False,
) -> None:
    """Show everything about one version of an adapter.

    Also lists the other versions of its name.
    """
    from loratory.cli.adapters_tables import as_json as values
    from loratory.cli.adapters_tables import facts_table

    if (ref is None) == (lora_int_id is None):
        raise InputError("adapters show needs one adapter: give either NAME[@VERSION] or --id N")
    with reading(registry) as adapters:
        record = adapters.by_id(lora_int_id) if lora_int_id is not None else adapters.resolve(str(ref))
        default = adapters.defaults().get(record.name)
        versions = [each for each in adapters.list(prefix=record.name, removed=True) if each.name == record.name]
        meaning: dict[str, Any] = {}
        if adapters.ids == "semantic":
            decoded_id = adapters.decode(record.lora_int_id)
            meaning = {"task": decoded_id.task, "domain": decoded_id.domain, "version": decoded_id.version}
    if as_json:
        others = [each.ref for each in versions if not each.removed]
        decoded = {"decoded_id": meaning} if meaning else {}
        dump({**values(record, default == record.version), **decoded, "versions": others})
        return
    show(facts_table(record, default), whole=True)
    if meaning:
        print(f"the id means: task {meaning['task']}, domain {meaning['domain']}, version {meaning['version']}")
    marks = [f"@{each.version}" + (" (removed)" if each.removed else "") for each in versions]
    print(f"versions: {', '.join(marks)}")


@app.command("resolve")
def resolve(
    ref: Ref,
    fetch: Annotated[
        bool, typer.Option("--fetch/--no-fetch", help="fetch the files; otherwise the source is printed")
    ] = True,
    registry: RegistryPlace = None,
    cache: CacheFolder = None,
    cache_size: CacheSize = DEFAULT_CACHE_SIZE,
    model: ModelOption = None,
    max_lora_rank: MaxRank = DEFAULT_MAX_RANK,
    as_json: Json = False,
) -> None:
    """Print what an engine should load: name, id and folder.

    The files are fetched, and their digest is compared with the registered one.
    """
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
    version: Annotated[int, typer.Argument(help="the version that NAME should resolve to")],
    registry: RegistryPlace = None,
    as_json: Json = False,
) -> None:
    """Make a name resolve to another version.

    The change holds for every engine at once.
    """
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
    """Remove a version, or a name with all its versions.

    Their ids are never used again.
    """
    from loratory.cli.adapters_tables import as_json as values

    with reading(registry) as adapters:
        gone = adapters.remove(ref)
    if as_json:
        dump([values(record, False) for record in gone])
    else:
        ids = ", ".join(str(record.lora_int_id) for record in gone)
        print(f"removed {', '.join(record.ref for record in gone)}; these ids are never used again: {ids}")


@app.command("history")
def history(name: NameArgument, registry: RegistryPlace = None, as_json: Json = False) -> None:
    """Show the changes to a name, oldest first."""
    from loratory.cli.adapters_tables import change_json, history_table

    with reading(registry) as adapters:
        changes = adapters.history(name)
    if as_json:
        dump([change_json(change) for change in changes])
    else:
        show(history_table(changes), whole=True)


@app.command("verify")
def verify(
    ref: Annotated[str | None, typer.Argument(help="NAME or NAME@VERSION; by default all adapters")] = None,
    registry: RegistryPlace = None,
    cache: CacheFolder = None,
    cache_size: CacheSize = DEFAULT_CACHE_SIZE,
    model: ModelOption = None,
    max_lora_rank: MaxRank = DEFAULT_MAX_RANK,
    as_json: Json = False,
) -> int:
    """Fetch adapters again and compare them with the registry.

    Also checks the registry itself. Exit code 1: an adapter differs from its record, or the registry is damaged.
    """
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
        print(f"{len(records) - len(damaged)} of {len(records)} adapters match their records; ", end="")
        print(f"the registry has {len(wrong)} problems" if wrong else "the registry agrees with its history")
    return DAMAGED if wrong or damaged else 0


@app.command("scan")
def scan_prefix(
    prefix: Annotated[str, typer.Argument(help="a folder, hf://ORG, hf://ORG/REPO, s3://... or gs://...")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="validate, but register nothing")] = False,
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
    """Register every valid adapter below a prefix.

    An adapter is named after its path below the prefix. Exit code 1: some adapters were refused.
    """
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
        print(f"no adapter is at or below {prefix}: an adapter is a folder with an adapter_config.json")
    return DAMAGED if counts["refused"] else 0


@app.command("import")
def import_file(
    file: Annotated[
        list[str] | None,
        typer.Argument(help="a YAML manifest, or a text file with vLLM's --lora-modules", show_default=False),
    ] = None,
    modules: Annotated[
        list[str] | None,
        typer.Option("--lora-modules", help="name=path or JSON items, as for vLLM; may be repeated"),
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
    form: Annotated[
        Literal["yaml", "vllm"], typer.Option("--format", help="yaml: a manifest; vllm: --lora-modules")
    ] = "yaml",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="write to this file instead of the terminal")] = None,
    local: Annotated[
        bool, typer.Option("--local", help="with vllm: fetch all adapters and print their local folders")
    ] = False,
    registry: RegistryPlace = None,
    cache: CacheFolder = None,
    cache_size: CacheSize = DEFAULT_CACHE_SIZE,
    as_json: Json = False,
) -> None:
    """Write the registry as a manifest or for vLLM.

    The manifest has every version; vLLM's --lora-modules has the default version of each name.
    """
    from loratory.adapters.registry.manifest import dump_manifest, manifest_of
    from loratory.adapters.registry.vllm_lora_modules import module_of
    from loratory.cli.adapters_transfer import modules_text, write_text

    if form == "yaml":
        if local or as_json:
            raise InputError("--local and --json need --format vllm: add it, or remove them")
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
