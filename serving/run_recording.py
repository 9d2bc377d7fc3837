"""Recording: what a real run leaves so that another backend can be driven with its times."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from loratory.errors import InputError
from loratory.git_lfs import refuse_pointer
from loratory.serving.request import Request


class RecordedStep(NamedTuple):
    """One plan of the real engine and its run, from and to absolute seconds; loads it waited for are part of it.

    A plan that computed nothing (it only started loads) ends when it starts; so does a call that gave no plan.
    ``load_s``: seconds of it spent waiting for adapter loads. ``failed``: requests it gave no token, with the reason.
    """

    start_s: float
    end_s: float
    load_s: float = 0.0
    failed: Mapping[str, str] | None = None


class RecordedLoad(NamedTuple):
    """A load or prefetch that ended, at the absolute second at which the engine learnt it; ``failed``: the reason.

    Loads that a step waited for are in here only where they failed.
    """

    done_s: float
    adapter: str
    prefetch: bool = False
    failed: str | None = None


@dataclass(frozen=True, slots=True)
class Recording:
    """What a real run leaves to be replayed, each list in order of time.

    ``requests``: their ``arrival`` is the second at which the engine took them in; a step sees those that arrived at or
    before its start. ``output_tokens``: where the model ended each output, by request id. ``steps``: with
    ``adapter_loading: sync`` and no prefetches those that computed suffice. ``loads``: none in that case.
    """

    requests: Sequence[Request]
    output_tokens: Mapping[str, int]
    steps: Sequence[RecordedStep]
    loads: Sequence[RecordedLoad] = field(default=())

    def write(self, path: Path) -> None:
        """One JSON array a line: its kind, then the fields. Floats are written so that they read back equal."""
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            for row in self._rows():
                file.write(json.dumps(row, separators=(",", ":")) + "\n")

    def _rows(self) -> Iterator[tuple[Any, ...]]:
        for request in self.requests:
            yield ("request", *request)
        for step in self.steps:
            yield ("step", *step[: 4 if step.failed else 3 if step.load_s else 2])
        for load in self.loads:
            yield ("load", *load)
        for request_id, tokens in self.output_tokens.items():
            yield ("output", request_id, tokens)

    @classmethod
    def read(cls, path: Path) -> Recording:
        """What `write` wrote. Raises `InputError` for a file that is missing or something else."""
        rows: dict[str, list[Any]] = {"request": [], "step": [], "load": [], "output": []}
        refuse_pointer(path)
        try:
            with open(path, encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    _read_row(line, number, path, rows)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise InputError(f"{path} cannot be read ({reason}): give the recording.jsonl of a run") from error
        return cls(rows["request"], dict(rows["output"]), rows["step"], rows["load"])


_MAKERS: Mapping[str, Any] = {
    "request": Request,
    "step": RecordedStep,
    "load": RecordedLoad,
    "output": lambda request_id, tokens: (str(request_id), int(tokens)),
}


def _read_row(line: str, number: int, path: Path, rows: dict[str, list[Any]]) -> None:
    try:
        kind, *fields = json.loads(line)
        rows[kind].append(_MAKERS[kind](*fields))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{path}, line {number} belongs to no recording: give the recording.jsonl of a run") from error
