"""Setting differences: the settings of two or more results, and where they differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from loratory.errors import InputError, shortened
from loratory.reports.folder import SUMMARY

SCENARIO = "scenario.yaml"

_ABSENT = "-"
_NOT_SETTINGS = {"name", "description"}
_LONGEST = 60


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting in which folders differ: its key in the resolved scenario, and its value in each, as text."""

    key: str
    values: tuple[str, ...]


def differing(folders: Sequence[Path]) -> tuple[Setting, ...]:
    """The settings in which the folders differ, in the order of the first's scenario; none if none differs.

    Read from each folder's resolved scenario; for adapters that it lists, digest and version as well. Loratory's
    version and the cost model's source come from the summary. Raises `InputError` for a scenario that is not YAML.
    """
    every = [_settings(folder) for folder in folders]
    keys = list(dict.fromkeys(key for settings in every for key in settings))
    found = []
    for key in keys:
        values = tuple(settings.get(key, _ABSENT) for settings in every)
        if len(set(values)) > 1:
            found.append(Setting(key, tuple(shortened(value, _LONGEST) for value in values)))
    return tuple(found)


def _settings(folder: Path) -> dict[str, str]:
    """Every setting of a result by dotted key; empty for a folder without a scenario."""
    try:
        read = yaml.safe_load((folder / SCENARIO).read_text(encoding="utf-8"))
    except OSError:
        read = {}
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{folder / SCENARIO} is not YAML: name a folder that `loratory run` wrote") from error
    found = dict(_flat({k: v for k, v in read.items() if k not in _NOT_SETTINGS}, "")) if isinstance(read, dict) else {}
    setup = json.loads((folder / SUMMARY).read_text(encoding="utf-8")).get("setup") or {}
    return found | {f"({label})": str(setup[label]) for label in ("cost model", "version") if label in setup}


def _flat(value: Any, key: str) -> list[tuple[str, str]]:
    """(dotted key, text) of each leaf; entries of a list of mappings are named by their name, if they have one."""
    if isinstance(value, Mapping):
        return [pair for name, item in value.items() for pair in _flat(item, f"{key}.{name}" if key else str(name))]
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        names = [str(item.get("name", place)) for place, item in enumerate(value)]
        if len(set(names)) < len(names):
            names = [str(place) for place in range(len(names))]
        return [pair for name, item in zip(names, value, strict=True) for pair in _flat(item, f"{key}[{name}]")]
    if isinstance(value, str):
        return [(key, value)]
    return [(key, json.dumps(value, default=str))]
