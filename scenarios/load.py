"""Load: reads and writes scenario files; a mistake in one is reported on one line, with its place and a remedy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from loratory.errors import InputError, did_you_mean, several, shortened
from loratory.scenarios.document import Document, apply_overrides, override, read_document
from loratory.scenarios.library_index import library_folder, published_folder
from loratory.scenarios.plan_spec import PlanSpec
from loratory.scenarios.schema import Scenario
from loratory.scenarios.size_limits import check_keys, check_requests
from loratory.scenarios.validation_errors import explain

__all__ = ["apply_overrides", "dump", "find", "json_schema", "load_scenario", "load_text"]

_LARGEST_BYTES = 64 * 1024**2
"""Largest size of a scenario file; a larger file is not a scenario."""


def load_scenario(
    reference: str | Path,
    overrides: Sequence[str] = (),
    policies: Sequence[str] | None = None,
    *,
    unbounded: bool = False,
) -> Scenario:
    """The scenario in a file, or the library scenario of that name.

    ``overrides`` are ``key.path=value`` settings; ``policies`` replaces the scenario's. Paths in the scenario are
    relative to its file, or else to the working folder. Implausible sizes are refused unless ``unbounded``
    (`loratory.scenarios.size_limits`). Raises `InputError` with one line: place, key, what is wrong, remedy.

    >>> load_scenario("quickstart", ["engine.max_loras=8"]).engine.max_loras
    8
    """
    path = find(reference)
    try:
        size = path.stat().st_size
        if size > _LARGEST_BYTES and not unbounded:
            raise InputError(
                f"{shortened(str(reference), 150)} has {size:,} bytes, more than any scenario: check the path, or "
                "lift all limits with --unbounded (in Python: unbounded=True)"
            )
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{reference} is not text: give a scenario in YAML") from error
    except OSError as error:
        raise InputError(f"{reference} cannot be read ({error.strerror}): check the path") from error
    source = path.name if path.parent == library_folder() else str(reference)
    return load_text(text, source, path.parent, overrides, policies, unbounded=unbounded)


def load_text(
    text: str,
    source: str = "scenario",
    folder: Path | None = None,
    overrides: Sequence[str] = (),
    policies: Sequence[str] | None = None,
    *,
    unbounded: bool = False,
) -> Scenario:
    """The scenario in ``text``; ``source`` names it in errors; paths in it are relative to ``folder``.

    Raises `InputError` like `load_scenario`.
    """
    document = override(read_document(text, source), overrides)
    if policies is not None:
        where = {path: place for path, place in document.where.items() if path[:1] != ("policies",)}
        where[("policies",)] = "--policy"
        document = Document(document.source, {**document.raw, "policies": list(policies)}, where)
    folders = tuple(dict.fromkeys(f for f in (folder, Path.cwd()) if f is not None))
    if not unbounded:
        check_keys(document)
    try:
        scenario = Scenario.model_validate(document.raw, context={"folders": folders})
    except ValidationError as error:
        raise explain(error, document) from None
    if not unbounded:
        check_requests(scenario, document)
    return scenario


def find(reference: str | Path) -> Path:
    """The file of a scenario: a path, a library name, or ``published/NAME``.

    Raises `InputError` with the nearest name.
    """
    path = Path(reference)
    if os.path.isfile(path):  # `Path.is_file` raises for a name that the system does not allow
        return path
    name = str(reference)
    bare = os.sep not in name and "/" not in name
    known = sorted(p.stem for p in library_folder().glob("*.yaml"))
    if bare and name.removesuffix(".yaml") in known:
        return library_folder() / f"{name.removesuffix('.yaml')}.yaml"
    published = published_folder() / f"{name.removeprefix('published/').removesuffix('.yaml')}.yaml"
    if name.startswith("published/") and published.is_file():
        return published
    if os.path.isdir(path):
        raise InputError(f"{name} is a folder: name the scenario file in it")
    if name.startswith("published/"):
        known = sorted(f"published/{file.stem}" for file in published_folder().glob("*.yaml"))
        word = f"published/{path.stem}"
    else:
        word = path.stem
    hint = did_you_mean(word, known, f"the library has {several(known)}; list it with `loratory scenarios`")
    raise InputError(f"{shortened(name, 200)}: no such scenario file; {hint}")


def dump(scenario: Scenario, relative_to: Path | None = None) -> str:
    """The scenario as YAML with every default written out but a plan's: enough to run it again bit for bit.

    Files it names are absolute, or relative to the folder ``relative_to``. Loading the text gives an equal scenario.
    """
    values = scenario.model_dump(exclude_none=True, exclude={"plan"} if scenario.plan == PlanSpec() else None)
    if relative_to is not None:
        values = _relative(values, relative_to)
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True, default_flow_style=False)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of scenario files, for editors."""
    schema = Scenario.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Loratory scenario"}


class _Dumper(yaml.SafeDumper):
    """Writes short lists on one line."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        plain = all(not isinstance(item, list | dict) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=plain)


def _relative(value: Any, folder: Path) -> Any:
    """``value`` with every absolute path to an existing file in it made relative to ``folder``."""
    if isinstance(value, dict):
        return {key: _relative(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [_relative(item, folder) for item in value]
    if isinstance(value, str) and os.path.isabs(value) and os.path.exists(value):
        return os.path.relpath(value, folder)
    return value
