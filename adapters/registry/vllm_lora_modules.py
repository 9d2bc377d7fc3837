"""ModulePath: an item of vLLM's ``--lora-modules``, and lists of them read and written."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratory.adapters.record import AdapterRecord
from loratory.adapters.sources.source import parse_source
from loratory.errors import InputError

OPTION = "--lora-modules"
_REPOSITORY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*/[A-Za-z0-9_][A-Za-z0-9._-]*")
_KEYS = ("name", "path", "base_model_name")


@dataclass(frozen=True, slots=True)
class ModulePath:
    """One item, as vLLM's ``LoRAModulePath``: ``path`` is a local folder or a Hub repository."""

    name: str
    path: str
    base_model_name: str | None = None

    @property
    def source(self) -> str:
        """The path as a source. ``org/repo`` is the Hub's, as for vLLM, unless there is such a folder."""
        if "://" not in self.path and not Path(self.path).exists() and _REPOSITORY.fullmatch(self.path):
            return f"hf://{self.path}"
        return self.path


def parse_lora_modules(items: str | Iterable[str]) -> tuple[ModulePath, ...]:
    """The items of a command line (``--lora-modules`` in front or not), a shell fragment, or JSON text.

    A text is split as a shell does, with ``#`` comments; one that begins with ``{`` or ``[`` is JSON: an object, a list
    of them, or one a line. Raises `InputError` for what vLLM would refuse, and for a repeated name.

    >>> parse_lora_modules(["sql=/models/sql", '{"name": "chat", "path": "acme/chat", "base_model_name": "llama"}'])[1]
    ModulePath(name='chat', path='acme/chat', base_model_name='llama')
    """
    words = [] if isinstance(items, str) else [item for item in items if item]
    if isinstance(items, str):
        if items.lstrip().startswith(("{", "[")):
            found = [_module(value, items.strip()) for value in _json_values(items)]
            return _unique(found)
        try:
            # A shell joins lines that end in a backslash; shlex would keep the line's end.
            words = shlex.split(items.replace("\\\n", " "), comments=True)
        except ValueError as error:
            raise InputError(f"{OPTION}: the text is no shell command ({error}): close its quotes") from None
    return _unique([_item(word) for word in words if word != OPTION])


def format_lora_modules(modules: Iterable[ModulePath]) -> list[str]:
    """The items, ready for an argument list: ``name=path`` where vLLM reads that back, JSON elsewhere."""
    return [_text(module) for module in modules]


def module_of(record: AdapterRecord, path: str | None = None) -> ModulePath:
    """A registry's record under its name. ``path``: where its files are here.

    Without it, the source must be one that vLLM can load itself: a local folder, or a Hub repository's main branch.
    Raises `InputError` for others.
    """
    if path is not None:
        return ModulePath(record.name, path, record.base_model)
    source = parse_source(record.source)
    if source.kind == "local":
        return ModulePath(record.name, source.path, record.base_model)
    if source.kind == "hub" and source.revision is None and not source.path:
        return ModulePath(record.name, source.root, record.base_model)
    raise InputError(
        f"adapter {record.ref!r} comes from {record.source}, which vLLM cannot load by itself: export with --local, "
        "which fetches it and names its folder here"
    )


def _text(module: ModulePath) -> str:
    # vLLM splits at the only "=", and takes an item with a comma for JSON (LoRAParserAction in its cli_args.py).
    # A name that begins as JSON does is written as JSON: this file reads it so, as a list of items is read.
    plain = f"{module.name}={module.path}"
    splits = plain.count("=") == 1 and "," not in plain and plain == plain.strip()
    if module.base_model_name is None and splits and not plain.startswith(("{", "[")):
        return plain
    value = {"name": module.name, "path": module.path, "base_model_name": module.base_model_name}
    return json.dumps({key: each for key, each in value.items() if each is not None}, ensure_ascii=False)


def _item(item: str) -> ModulePath:
    if "=" in item and "," not in item and not item.lstrip().startswith("{"):
        name, _, path = item.partition("=")
        if "=" in path:
            raise _wrong(item, "has two =, which vLLM cannot read: use the JSON form")
        return _module({"name": name, "path": path}, item)
    values = _json_values(item) if item.lstrip().startswith(("{", "[")) else None
    if values is None or len(values) != 1:
        raise _wrong(item, 'is neither name=path nor {"name": ..., "path": ...}: correct it')
    return _module(values[0], item)


def _json_values(text: str) -> list[Any]:
    """The objects in a JSON text: one, a list, or several after each other."""
    decoder, values, at = json.JSONDecoder(), list[Any](), 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise _wrong(text, f"is no JSON ({error}): correct it") from None
        values.extend(value if isinstance(value, list) else [value])
    return values


def _module(value: Any, item: str) -> ModulePath:
    if not isinstance(value, dict):
        raise _wrong(item, 'is no {"name": ..., "path": ...}: correct it')
    unknown = sorted(set(value) - set(_KEYS))
    if unknown:
        raise _wrong(item, f"has the key {unknown[0]!r}: only {', '.join(_KEYS)} are taken")
    for key in ("name", "path"):
        if not isinstance(value.get(key), str) or not value[key].strip():
            raise _wrong(item, f"has no {key}: give it one")
    base = value.get("base_model_name")
    if base is not None and not isinstance(base, str):
        raise _wrong(item, "has a base_model_name that is no text: correct it")
    return ModulePath(value["name"], value["path"], base or None)


def _unique(modules: list[ModulePath]) -> tuple[ModulePath, ...]:
    names = [module.name for module in modules]
    if twice := [name for name in names if names.count(name) > 1] if len(set(names)) < len(names) else []:
        raise InputError(f"{OPTION}: the name {twice[0]!r} is given twice: give each adapter its own name")
    return tuple(modules)


def _wrong(item: str, what: str) -> InputError:
    shown = item if len(item) <= 80 else f"{item[:77]}..."
    return InputError(f"{OPTION}: {shown!r} {what}")
