"""recorded_lines: one line of a recording's requests or steps, checked as it is read."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from loratory.errors import InputError, shortened
from loratory.scenarios.document import dotted
from loratory.scenarios.error_words import words
from loratory.scenarios.schema_types import wrong


class Scheduled(NamedTuple):
    """What one step does for one request: ``tokens`` of its context from ``start`` on; a decode is one token."""

    request_id: str
    start: int
    tokens: int


def _id(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise wrong("should be a request's id, a text or a whole number")
    return str(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _scheduled(value: Any) -> Scheduled:
    """From ``[id, start, tokens, ...]``; what follows is not read."""
    if not isinstance(value, list) or len(value) < 3 or not all(map(_whole, value[1:3])):
        raise wrong("should be a list of a request's id and the whole numbers start and tokens")
    request_id, (start, tokens) = _id(value[0]), value[1:3]
    if start < 0 or tokens < 1:
        raise wrong(f"has start {start} and tokens {tokens}: a start is at least 0, and tokens are at least 1")
    return Scheduled(request_id, start, tokens)


def _three(value: list[int]) -> list[int]:
    if len(value) != 3:
        raise wrong("should have 3 numbers: free blocks before and after scheduling, and after the step's output")
    return value


_Id = Annotated[str, BeforeValidator(_id)]
_Seconds = Annotated[float, Field(ge=0)]
_Tokens = Annotated[int, Field(ge=1, le=1_000_000_000)]


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class RecordedRequest(_Line):
    """A request. ``arrival``: when it was sent, s; ``added``: when the engine took it in, s; ``adapter``: None is the
    base model; ``inp``, ``out``: tokens; ``max_tokens``: where the output ended earlier. Further keys are not read."""

    id: _Id
    arrival: _Seconds
    added: _Seconds
    adapter: Annotated[int, Field(ge=0)] | None
    inp: _Tokens
    out: _Tokens
    priority: int | None = None
    max_tokens: _Tokens | None = None

    @property
    def computed(self) -> int:
        """Tokens of its context that have been computed when it ends; the last output token is not."""
        return self.inp + self.out - 1


class SchedulerLine(_Line):
    """A step as recorded: ``t``: when it was planned, s; ``d``: its duration, s; ``s``: what it computes; ``adm``,
    ``pre``: the requests admitted and preempted; ``free``: KV blocks. Further keys are not read."""

    t: _Seconds
    d: _Seconds
    s: list[Annotated[Scheduled, BeforeValidator(_scheduled)]]
    adm: list[_Id]
    pre: list[_Id]
    free: Annotated[list[Annotated[int, Field(ge=0)]], AfterValidator(_three)]


LineT = TypeVar("LineT", bound=_Line)


def read_lines(path: Path, line: type[LineT]) -> list[LineT]:
    """Every line of a file of JSON lines that is compressed with gzip.

    Raises `InputError`, with the line's number, for a file that cannot be read and for a line that is not a ``line``.
    """
    found = [_parsed(path, number, text, line) for number, text in _texts(path)]
    if not found:
        raise InputError(f"{path} is empty: record it anew")
    return found


def _texts(path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        with gzip.open(path, "rb") as file:
            for number, text in enumerate(file, 1):
                yield number, text
    except gzip.BadGzipFile as error:
        reason = "it is not compressed with gzip" if "Not a gzipped" in str(error) else "its checksum is wrong"
        raise InputError(f"{path} cannot be read, because {reason}: record it anew") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{path} cannot be read ({reason}), but settings.json names this recording") from error
    except (EOFError, zlib.error) as error:
        reason = "ends too early" if isinstance(error, EOFError) else "is damaged"
        after = f" after line {number}" if number else ""
        raise InputError(f"{path} {reason}{after}: copy it or record it anew") from error


def _parsed(path: Path, number: int, text: bytes, line: type[LineT]) -> LineT:
    try:
        return line.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = f"{path}:{number}"
        if first["type"] == "json_invalid":
            raise InputError(f"{place} is not JSON: record it anew") from None
        if not first["loc"]:
            raise InputError(f"{place} is not a mapping of keys to values: record it anew") from None
        raise InputError(shortened(f"{place}: {dotted(first['loc'])} {words(first)}")) from None
