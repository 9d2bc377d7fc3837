"""Adapters transfer: lists of adapters that ``loratory adapters`` reads and writes: manifests, ``--lora-modules``."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from loratory.adapters.registry.import_manifest import manifest_of_modules
from loratory.adapters.registry.manifest import Manifest, ManifestEntry, parse_manifest
from loratory.adapters.registry.vllm_lora_modules import OPTION, ModulePath, format_lora_modules, parse_lora_modules
from loratory.errors import InputError, shortened
from loratory.git_lfs import LFS_POINTER, lfs_text

if TYPE_CHECKING:
    from loratory.adapters.registry.registry import Registry


@dataclass(frozen=True, slots=True)
class AdapterList:
    """The adapters to import; ``modules`` if they are in vLLM's syntax."""

    manifest: Manifest
    modules: tuple[ModulePath, ...] = ()

    def notes(self, registry: Registry) -> tuple[str, ...]:
        """One sentence for each adapter whose configuration names another base model than the list."""
        found = []
        for module in self.modules:
            own = registry.resolve(module.name).base_model
            if module.base_model_name is not None and own not in (None, module.base_model_name):
                found.append(
                    f"{module.name} is for {own} by its configuration, but for {module.base_model_name} by the list"
                )
        return tuple(found)


def read_list(more: Sequence[str], items: Sequence[str]) -> AdapterList:
    """The list in the one file that ``more`` names, or the ``items`` of the option and ``more``, which come after them.

    Local sources of a manifest are relative to its folder.
    """
    if items:
        if both := [word for word in more if word.endswith((".yaml", ".yml")) or Path(word).is_file()]:
            raise InputError(
                f"adapters import has both {OPTION} and the file {shortened(both[0], 80)}: remove one of them"
            )
        modules = parse_lora_modules([*items, *more])
        return AdapterList(manifest_of_modules(modules), modules)
    if len(more) != 1:
        raise InputError(f"adapters import needs one list: give either a file, or {OPTION} and its items")
    file = Path(more[0])
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{file} is not text: give a YAML manifest, or vLLM's {OPTION}") from None
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}): check the path") from None
    if lfs_text(text):
        raise InputError(f"{file} {LFS_POINTER}")
    if file.suffix in (".yaml", ".yml"):
        manifest = parse_manifest(text, str(file))
        return AdapterList(replace(manifest, entries=tuple(_beside(file, entry) for entry in manifest.entries)))
    try:
        modules = parse_lora_modules(text)
    except InputError as error:
        raise InputError(f"{file}: {error} (a manifest's name ends in .yaml)") from None
    if not modules:
        raise InputError(f"{file} lists no adapter: give name=path items (a manifest's name ends in .yaml)")
    return AdapterList(manifest_of_modules(modules), modules)


def modules_text(modules: Sequence[ModulePath], as_json: bool) -> str:
    """The option with its items, quoted for a shell, one per line; or a JSON list."""
    if as_json:
        return json.dumps([{"name": m.name, "path": m.path, "base_model_name": m.base_model_name} for m in modules],
                          indent=2) + "\n"  # fmt: skip
    items = [f"    {shlex.quote(item)}" for item in format_lora_modules(modules)]
    return " \\\n".join([OPTION, *items]) + "\n" if items else ""


def write_text(text: str, out: Path | None) -> None:
    """Write to the terminal, or replace a file in one step: an interruption leaves the old file or the new one.

    A link is followed. A device or pipe is written to, not replaced.
    """
    if out is None:
        print(text, end="")
        return
    if out.is_dir():
        raise InputError(f"--out {out} is a folder: name a file in it")
    out = out.resolve()
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        if out.exists() and not out.is_file():
            out.write_text(text, encoding="utf-8")
            return
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, out)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise InputError(
            f"--out {out} cannot be written ({error.strerror}): give a file in a folder you may write to"
        ) from None


def _beside(file: Path, entry: ManifestEntry) -> ManifestEntry:
    source = os.path.expanduser(entry.source)
    return entry if "://" in source or entry.removed else replace(entry, source=str(file.parent.absolute() / source))
