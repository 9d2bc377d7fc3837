"""Recording: what a real run leaves so that another backend can be driven with its times."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, get_args

from loratory.errors import InputError
from loratory.git_lfs import refuse_pointer
from loratory.serving.lora import Adapter, LoRARequest
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


ChangeKind = Literal["abort", "fail", "add", "remove", "swap", "put_back", "pin", "unpin", "preload", "max_num_seqs"]
"""What can be ordered between two steps."""


class RecordedChange(NamedTuple):
    """What was ordered at second ``at_s``, after the requests that had arrived by then.

    ``values``: of ``abort`` and ``fail`` the request id and the reason; of ``add`` the adapter (`adapter_values`); of
    ``swap`` the policy's spec; of ``put_back``, for a policy that stopped progress, the reason; of ``max_num_seqs`` the
    number; of the others the adapter's name.
    """

    at_s: float
    kind: ChangeKind
    values: tuple[Any, ...]


NEVER_ENDS = 1 << 60
"""Output tokens of a request that was not completed: by itself it never ends."""


class Tape(Protocol):
    """Takes a recording as it is made, in order of time, in the engine's thread."""

    def request(self, request: Request) -> None:
        """A request has arrived."""

    def step(self, step: RecordedStep) -> None:
        """A step has ended; `load` and `change` were told before, if the step has seen them."""

    def load(self, load: RecordedLoad) -> None:
        """A load has ended."""

    def change(self, change: RecordedChange) -> None:
        """Something was ordered."""

    def output(self, request_id: str, tokens: int) -> None:
        """A request is complete, with so many tokens."""


def adapter_values(adapter: Adapter) -> tuple[Any, ...]:
    """An adapter as plain values; `adapter_of` makes it again."""
    lora = adapter.lora
    identity = [lora.lora_name, lora.lora_int_id, lora.lora_path, lora.base_model_name]
    return (
        identity, adapter.rank, adapter.bytes, adapter.pinned, adapter.tier, adapter.digest, adapter.version,
    )  # fmt: skip


def adapter_of(values: Sequence[Any]) -> Adapter:
    """The adapter that `adapter_values` has taken apart."""
    identity, *rest = values
    return Adapter(LoRARequest(*identity), *rest)


@dataclass(frozen=True, slots=True)
class Recording:
    """What a real run leaves to be replayed, each list in order of time.

    ``requests``: their ``arrival`` is the second at which the engine took them in; a step sees those that arrived at or
    before its start. ``output_tokens``: where the model ended each output, by request id. ``steps``: with
    ``adapter_loading: sync`` and no prefetches those that computed suffice. ``loads``: none in that case. ``changes``:
    what was ordered meanwhile; a step sees those up to its start.
    """

    requests: Sequence[Request]
    output_tokens: Mapping[str, int]
    steps: Sequence[RecordedStep]
    loads: Sequence[RecordedLoad] = field(default=())
    changes: Sequence[RecordedChange] = field(default=())

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
        for change in self.changes:
            yield ("change", *change)
        for request_id, tokens in self.output_tokens.items():
            yield ("output", request_id, tokens)

    @classmethod
    def read(cls, path: Path) -> Recording:
        """What `write` wrote. Raises `InputError` for a file that is missing or something else."""
        rows: dict[str, list[Any]] = {kind: [] for kind in _MAKERS}
        refuse_pointer(path)
        try:
            with open(path, encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    _read_row(line, number, path, rows)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise InputError(f"{path} cannot be read ({reason}): give the recording.jsonl of a run") from error
        return cls(rows["request"], dict(rows["output"]), rows["step"], rows["load"], rows["change"])


def _change(at_s: float, kind: ChangeKind, values: list[Any]) -> RecordedChange:
    if kind not in get_args(ChangeKind):
        raise ValueError(kind)
    if kind == "add":
        adapter_of(values)
    return RecordedChange(float(at_s), kind, tuple(values))


class RecordingInMemory:
    """A `Tape` that keeps everything."""

    def __init__(self) -> None:
        self._requests: list[Request] = []
        self._outputs: dict[str, int] = {}
        self._steps: list[RecordedStep] = []
        self._loads: list[RecordedLoad] = []
        self._changes: list[RecordedChange] = []

    def request(self, request: Request) -> None:
        """See `Tape`."""
        self._requests.append(request)

    def step(self, step: RecordedStep) -> None:
        """See `Tape`."""
        self._steps.append(step)

    def load(self, load: RecordedLoad) -> None:
        """See `Tape`."""
        self._loads.append(load)

    def change(self, change: RecordedChange) -> None:
        """See `Tape`."""
        self._changes.append(change)

    def output(self, request_id: str, tokens: int) -> None:
        """See `Tape`."""
        self._outputs[request_id] = tokens

    def recording(self) -> Recording:
        """The run so far; outputs that are not complete have no end."""
        outputs = dict.fromkeys((request.request_id for request in self._requests), NEVER_ENDS) | self._outputs
        return Recording(self._requests, outputs, self._steps, self._loads, self._changes)


_MAKERS: Mapping[str, Any] = {
    "request": Request,
    "step": RecordedStep,
    "load": RecordedLoad,
    "change": _change,
    "output": lambda request_id, tokens: (str(request_id), int(tokens)),
}


def _read_row(line: str, number: int, path: Path, rows: dict[str, list[Any]]) -> None:
    try:
        kind, *fields = json.loads(line)
        rows[kind].append(_MAKERS[kind](*fields))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{path}, line {number} belongs to no recording: give the recording.jsonl of a run") from error
