"""recorded_settings: ``settings.json`` of a folder of recordings: the engine's settings, and what describes a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loratory.errors import InputError, several, shortened
from loratory.scenarios.document import dotted
from loratory.scenarios.error_words import words
from loratory.serving.config import EngineConfig

ENGINE_KEYS: tuple[str, ...] = tuple(field.alias or name for name, field in EngineConfig.model_fields.items())
"""The engine's settings, as a user writes them."""

_A_SLIP = 0.85
"""A key that is at least so much like a known one is a mistake; another one describes the recording."""

_Count = Annotated[int, Field(ge=0)] | None


class AboutRecording(BaseModel):
    """The keys of a recording that are no engine settings. ``requests``, ``steps``, ``preemptions`` and
    ``stop_tokens``: how many it has; ``step_base`` and ``step_per_token``: the step times of a model that only counts;
    ``note``: anything that describes it. Other keys are not read, of which a note tells; one that is a slip away from a
    known key is refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    enable_prefix_caching: bool = False
    requests: _Count = None
    steps: _Count = None
    preemptions: _Count = None
    stop_tokens: _Count = None
    step_base: Annotated[float, Field(ge=0)] | None = None
    step_per_token: Annotated[float, Field(ge=0)] | None = None
    note: Any = None


class SettingsFile:
    """A ``settings.json``. ``recordings``: the settings of each, by name.

    Raises `InputError` for a folder without one, naming the folders below that have one, and for another form of file.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "settings.json"
        if folder.is_file():
            raise InputError(f"{folder} is a file: give the folder that holds settings.json and the recordings")
        if not folder.is_dir():
            raise InputError(f"{folder} does not exist: give the folder that holds settings.json and the recordings")
        if not self.path.exists():
            below = sorted(each.parent.name for each in folder.glob("*/settings.json"))
            remedy = (
                f"the folders {several(below)} in it have one: give one of them" if below else "give another folder"
            )
            raise InputError(f"{folder} has no settings.json, so it is no folder of recordings: {remedy}")
        try:
            self._text = self.path.read_text(encoding="utf-8")
            found = json.loads(self._text, object_pairs_hook=self._once)
        except OSError as error:
            raise InputError(f"{self.path} cannot be read ({error.strerror}): give a folder of recordings") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.path} is not JSON ({error}): give a folder of recordings") from error
        if not isinstance(found, dict) or not found or not all(isinstance(each, dict) for each in found.values()):
            raise InputError(f"{self.path} names no recordings: give an object that has the settings of each")
        for name in found:
            if not name or "/" in name or "\0" in name:
                raise InputError(f"{self.path}: recording {shortened(name, 60)!r} is no part of a file name: rename it")
        self.recordings: Mapping[str, dict[str, Any]] = found

    def place(self, name: str, key: str = "") -> str:
        """``settings.json:12: name``: what to call a recording, or the line of one of its keys, in errors."""
        start = max(self._text.find(json.dumps(name)), 0)
        at = max(self._text.find(json.dumps(key), start), start) if key else start
        return f"{self.path}:{self._text.count(chr(10), 0, at) + 1}: {name}"

    def unread(self, name: str) -> list[str]:
        """The keys of a recording that mean nothing here."""
        return [key for key in self.recordings[name] if key not in (*ENGINE_KEYS, *AboutRecording.model_fields)]

    def about(self, name: str) -> AboutRecording:
        """What a recording's settings say of it, once all of them are checked. Raises `InputError` by name."""
        given = self.recordings[name]
        known = [*ENGINE_KEYS, *AboutRecording.model_fields]
        for key in self.unread(name):
            if near := get_close_matches(key, known, 1, _A_SLIP):
                hint = f"did you mean {near[0]!r}?"
                raise InputError(f"{self.place(name, key)}: {shortened(key, 60)} is an unknown key; {hint}")
        about_keys = AboutRecording.model_fields
        try:
            about = AboutRecording.model_validate({key: each for key, each in given.items() if key in about_keys})
        except ValidationError as error:
            key, text = problem(error)
            raise InputError(f"{self.place(name, key)}: {key} {text}") from None
        try:
            EngineConfig.model_validate({key: each for key, each in given.items() if key in ENGINE_KEYS}, strict=True)
        except ValidationError as error:
            key, text = problem(error)
            raise InputError(f"{self.place(name, key)}: {key} {text}".rstrip()) from None
        if given.get("num_gpu_blocks") is None:
            raise InputError(f"{self.place(name)} has no num_gpu_blocks: add the number of KV blocks from vLLM's log")
        if about.enable_prefix_caching:
            raise InputError(
                f"{self.place(name, 'enable_prefix_caching')}: enable_prefix_caching is true, and prefix caching is "
                "not modelled: record it without"
            )
        return about

    def _once(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [key for key, _ in pairs]
            twice = next(key for key in names if names.count(key) > 1)
            raise ValueError(f"{shortened(twice, 60)!r} is given twice")
        return found


def problem(error: ValidationError) -> tuple[str, str]:
    """The key of the first error and what is wrong with it; a message of `EngineConfig` begins with its key."""
    first = error.errors(include_url=False)[0]
    text = words(first)
    if first["loc"]:
        return dotted(first["loc"]), text
    key, _, rest = text.partition(" ")
    return key, rest
