"""Document: a YAML file as plain values, with the line of every key, and the overrides of the command line."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from loratory.errors import InputError, shortened
from loratory.git_lfs import LFS_POINTER, lfs_text
from loratory.scenarios.schema_lookup import is_one_of, key_hint, keys_at

Path = tuple[str | int, ...]
_MOST_NODES = 200_000


@dataclass(frozen=True, slots=True)
class Document:
    """The content of a file. ``where``: the place of each key path, ``my.yaml:7`` or ``--set engine.max_loras=8``."""

    source: str
    raw: dict[str, Any]
    where: dict[Path, str] = field(default_factory=dict)

    def place(self, path: Path) -> str:
        """The place of ``path``, or of the nearest key above it that has one."""
        for end in range(len(path), 0, -1):
            found = self.where.get(path[:end])
            if found is not None:
                return found
        return f"{self.source}:{self.where.get((), 1)}" if self.source.endswith((".yaml", ".yml")) else self.source


def read_document(text: str, source: str) -> Document:
    """Parse YAML text. Raises `InputError`, with the line, for text that is not one mapping or repeats a key."""
    if lfs_text(text):
        raise InputError(f"{source} {LFS_POINTER}")
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            raise InputError(
                f"{source} is empty: write a scenario, or copy one with 'loratory scenarios show quickstart'"
            )
        if not isinstance(node, yaml.MappingNode):
            raise InputError(
                f"{source}:{node.start_mark.line + 1}: the scenario should be a mapping of keys to values, like name: x"
            )
        reader = _Reader(loader, source)
        raw = reader.value(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f":{mark.line + 1}"
        problem = " ".join(str(error.problem or error.context or "it cannot be parsed").split())
        raise InputError(f"{source}{line}: the line is not YAML ({problem}): correct it") from error
    except yaml.YAMLError as error:
        raise InputError(f"{source} is not YAML ({' '.join(str(error).split())}): correct it") from error
    except RecursionError as error:
        raise InputError(f"{source} is nested too deeply: flatten it") from error
    finally:
        if loader is not None:
            loader.dispose()
    return Document(source, raw, reader.where)


class _Reader:
    """Walks YAML nodes: builds values, and records the line of each key."""

    def __init__(self, loader: yaml.SafeLoader, source: str) -> None:
        self._loader = loader
        self._source = source
        self._open: set[int] = set()
        self._nodes = 0
        self.where: dict[Path, str] = {}

    def value(self, node: yaml.Node, path: Path) -> Any:
        """The node's value; a key path that appears again (through ``<<``) keeps its first place."""
        self._nodes += 1
        if id(node) in self._open or self._nodes > _MOST_NODES:
            raise InputError(f"{self._at(node)}: an alias refers to itself, or aliases multiply: write the values out")
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                for index, item in enumerate(node.value):
                    self.where.setdefault((*path, index), self._at(item))
                return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
            return self._plain(node)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[Any, Any]:
        out: dict[Any, Any] = {}
        merged: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                sources = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                for source in sources:
                    if not isinstance(source, yaml.MappingNode):
                        raise InputError(f"{self._at(key_node)}: << needs a mapping, such as *defaults")
                    merged = {**self._mapping(source, path), **merged}
                continue
            key: str | int = self._plain(key_node)
            if not isinstance(key, str | int):
                raise InputError(f"{self._at(key_node)}: a key should be a word or a whole number: quote it")
            if key in out:
                raise InputError(f"{self._at(key_node)}: {dotted((*path, key))} is given twice: keep one of them")
            below: Path = (*path, key)
            self.where[below] = self._at(key_node)
            out[key] = self.value(value_node, below)
        return {**merged, **out}

    def _plain(self, node: yaml.Node) -> Any:
        """A scalar's value. YAML raises ValueError for an impossible date and for a number with too many digits."""
        try:
            return self._loader.construct_object(node, deep=True)
        except (ValueError, OverflowError) as error:
            text = shortened(str(error), 100)
            raise InputError(f"{self._at(node)}: the value cannot be read ({text}): correct it") from error

    def _at(self, node: yaml.Node) -> str:
        return f"{self._source}:{node.start_mark.line + 1}"


def dotted(path: Sequence[Any]) -> str:
    """A key path with dots: ``workload.streams.0.tenant``."""
    return ".".join(str(part) for part in path)


def override(document: Document, settings: Sequence[str]) -> Document:
    """``document`` with ``key.path=value`` overrides, whose values are YAML.

    An override of one alternative (``workload.arrivals.poisson=5``) replaces the one in the file. Raises `InputError`
    for a setting without ``=``, an unknown key (naming the nearest) or a value that is not YAML.
    """
    raw, where = copy.deepcopy(document.raw), dict(document.where)
    for setting in settings:
        label = shortened(f"--set {setting}", 160)
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise InputError(f"{label} should be key=value, such as engine.max_loras=8")
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
            raise InputError(f"{label} has a value that is not YAML: quote it") from error
        path = _put(raw, key.strip().split("."), value, label)
        where = {known: place for known, place in where.items() if known[: len(path)] != path}
        for end in range(1, len(path)):
            where.setdefault(path[:end], label)
        where[path] = label
    return Document(document.source, raw, where)


def apply_overrides(raw: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """A copy of a scenario's plain values with ``key.path=value`` overrides; see `override`."""
    return override(Document("scenario", raw), settings).raw


def _put(raw: dict[str, Any], parts: list[str], value: Any, label: str) -> Path:
    here: Any = raw
    path: Path = ()
    for index, part in enumerate(parts):
        known = keys_at(path, raw)
        if isinstance(here, list):
            if not part.isdigit() or int(part) >= len(here):
                raise InputError(f"{label}: {dotted(path)} has {len(here)} items: give a position from 0")
            key: str | int = int(part)
        else:
            if known is not None and part not in known:
                raise InputError(
                    f"{label}: {shortened(dotted((*path, part)), 100)}: unknown key; {key_hint(part, known)}"
                )
            key = next((k for k in here if str(k) == part), part)
            if known is not None and is_one_of(path, raw):
                for other in [k for k in here if k != key]:
                    del here[other]
        last = index == len(parts) - 1
        path = (*path, key)
        if last:
            here[key] = value
        elif isinstance(here, dict) and not isinstance(here.get(key), dict | list):
            here[key] = {}
        here = here[key]
    return path
