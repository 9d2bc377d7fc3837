"""Recording folder: the files of a live recording, and what becomes of an older one in the same folder."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from loratory.errors import InputError, shortened

RUN_INFO, SCENARIO, PROFILE, REQUESTS = "run_info.json", "scenario.yaml", "profile.json", "requests.jsonl"
RECORDING, DECISIONS, SHADOW = "recording", "decisions", "shadow"
"""Stems of files in parts: ``recording.jsonl``, ``recording-2.jsonl`` ..."""

LOCK = ".lock"
KIND = "live"
"""What run_info.json has as its ``kind``."""

_OURS = re.compile(
    rf"({RUN_INFO}|{SCENARIO}|{PROFILE}|{REQUESTS}|{LOCK}|({RECORDING}|{DECISIONS}|{SHADOW})(-\d+)?\.jsonl|\..*\.draft)"
)


def part(stem: str, number: int) -> str:
    """The name of a file in parts; the first has number 1."""
    return f"{stem}.jsonl" if number == 1 else f"{stem}-{number}.jsonl"


def parts(folder: Path, stem: str) -> list[Path]:
    """The files that there are, in order."""
    found: list[Path] = []
    while (path := folder / part(stem, len(found) + 1)).exists():
        found.append(path)
    return found


def read_run_info(folder: Path) -> Mapping[str, Any] | None:
    """What run_info.json says of a live recording; None where the folder holds none."""
    try:
        info = json.loads((folder / RUN_INFO).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return info if isinstance(info, dict) and info.get("kind") == KIND else None


def replace_text(path: Path, text: str) -> None:
    """Write a file as a whole, or leave the old one. Raises `OSError`."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text, encoding="utf-8", newline="\n")
    os.replace(draft, path)


def set_aside(folder: Path) -> Path | None:
    """Move an older recording into a folder of its own below, named after its start; returns that folder.

    Raises `InputError` where the folder holds files that no recording wrote.
    """
    names = sorted(entry.name for entry in os.scandir(folder) if not entry.is_dir())
    foreign = [name for name in names if not _OURS.fullmatch(name)]
    if foreign:
        raise InputError(
            f"--record {folder} holds {shortened(foreign[0], 60)!r}, which no recording wrote: name another folder"
        )
    info = read_run_info(folder)
    if info is None:
        for name in names:
            if name != LOCK:  # of a start that failed before it recorded anything
                with suppress(OSError):
                    (folder / name).unlink()
        return None
    stamp = re.sub(r"[^0-9A-Za-z]+", "-", str(info.get("started", "before"))).strip("-")
    place = folder / stamp
    number = 1
    while place.exists():
        number += 1
        place = folder / f"{stamp}-{number}"
    place.mkdir()
    for name in names:
        if name != LOCK:
            os.replace(folder / name, place / name)
    return place
