"""Recording: what a real run leaves so that another backend can be driven with its times."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
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
    what was ordered meanwhile; a step sees those up to its start. ``again``: of ids that were used again, once the
    request before had ended, where the later outputs ended, in order.
    """

    requests: Sequence[Request]
    output_tokens: Mapping[str, int]
    steps: Sequence[RecordedStep]
    loads: Sequence[RecordedLoad] = field(default=())
    changes: Sequence[RecordedChange] = field(default=())
    again: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """One JSON array a line: its kind, then the fields. Floats are written so that they read back equal."""
        outputs = self.output_tokens.items()
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(recorded_lines(self.requests, self.steps, self.loads, self.changes, outputs))

    @classmethod
    def read(cls, *paths: Path) -> Recording:
        """What `write` wrote, or `recorded_lines` wrote into several files one after the other.

        A last line that is cut short, because its writer was killed, is left out; a request whose end is not recorded
        has none. Raises `InputError` for a file that is missing or something else.
        """
        rows: dict[str, list[Any]] = {kind: [] for kind in _MAKERS}
        lengths = _Lengths()
        for path in paths:
            refuse_pointer(path)
            try:
                with open(path, encoding="utf-8") as file:
                    for number, line in enumerate(file, 1):
                        _read_row(line, number, path, rows, lengths)
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "it is not text"
                raise InputError(f"{path} cannot be read ({reason}): give the recording.jsonl of a run") from error
        first, again = lengths.first, lengths.again
        return cls(rows["request"], first, rows["step"], rows["load"], rows["change"], again)


def recorded_lines(
    requests: Iterable[Request],
    steps: Iterable[RecordedStep],
    loads: Iterable[RecordedLoad],
    changes: Iterable[RecordedChange],
    outputs: Iterable[tuple[str, int]],
) -> Iterator[str]:
    """The lines of a recording: each kind in order of time, and a step after all that it has seen.

    Where several calls write one recording, it can be replayed wherever it is cut off.
    """
    rows: Iterator[tuple[Any, ...]] = chain(
        (("request", *request) for request in requests),
        (("load", *load) for load in loads),
        (("change", *change) for change in changes),
        (("step", *step[: 4 if step.failed else 3 if step.load_s else 2]) for step in steps),
        (("output", *output) for output in outputs),
    )
    return (json.dumps(row, separators=(",", ":")) + "\n" for row in rows)


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


class _Lengths:
    """Where outputs end, by request id: of the first request of an id, and of those that used it again."""

    def __init__(self) -> None:
        self.first: dict[str, int] = {}
        self.again: dict[str, list[int]] = {}
        self._seen: set[str] = set()

    def request(self, request_id: str) -> None:
        """A request; by itself its output has no end."""
        if request_id in self._seen:
            self.again.setdefault(request_id, []).append(NEVER_ENDS)
        else:
            self._seen.add(request_id)
            self.first.setdefault(request_id, NEVER_ENDS)

    def output(self, request_id: str, tokens: int) -> None:
        """The output of the last request of that id."""
        if request_id in self.again:
            self.again[request_id][-1] = tokens
        else:
            self.first[request_id] = tokens


def _read_row(line: str, number: int, path: Path, rows: dict[str, list[Any]], lengths: _Lengths) -> None:
    try:
        kind, *fields = json.loads(line)
        row = _MAKERS[kind](*fields)
        if kind == "output":
            lengths.output(*row)
            return
        rows[kind].append(row)
        if kind == "request":
            lengths.request(row.request_id)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        if number > 1 and not line.endswith("\n"):
            return
        raise InputError(f"{path}, line {number} belongs to no recording: give the recording.jsonl of a run") from error
