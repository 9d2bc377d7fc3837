"""ServeGen: Alibaba's per-client fits of production workloads (NSDI 2026), turned back into requests.

Source: github.com/alibaba/ServeGen. A folder or .tgz holds, for each client N, ``chunk-N-trace.csv`` with rows ``start,
rate, cv, pattern, arg1, arg2`` over windows of 600 s, and ``chunk-N-dataset.json`` with histograms of input and output
tokens by time of day, as texts of Python dicts. One client is one adapter. A folder may hold rates only; then the
scenario's lengths are used.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import math
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loratory.errors import InputError, shortened
from loratory.git_lfs import HEAD_BYTES, LFS_POINTER, lfs_pointer, refuse_pointer
from loratory.scenarios.traces.column_reader import MOST_TOKENS
from loratory.scenarios.traces.files import require
from loratory.scenarios.traces.format import Format, Head, ReadOptions
from loratory.scenarios.traces.table import Labels, TraceTable
from loratory.serving.workload import Floats, Ints

_MEMBER = re.compile(r"^(?:(?P<folder>.*)/)?chunk-(?P<client>\d+)-(?P<what>trace\.csv|dataset\.json)$")
_DAY_S = 86_400.0
_MOST_REQUESTS = 20_000_000
_LATEST_S = 1e10
_MOST_RATE = 1e9
_PATTERNS = ("", "Gamma", "Weibull", "Expon", "Exponential")
_Histogram = tuple[Ints, Floats]


@dataclass(frozen=True, slots=True)
class Window:
    """One window of one client: begin (s), rate (requests/s), and the distribution fitted to its gaps."""

    start_s: float
    rate: float
    cv: float
    pattern: str
    arguments: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Client:
    """One client's windows, and its length histograms by second of the day (as the file's text, parsed when needed)."""

    number: int
    windows: tuple[Window, ...]
    lengths: Mapping[float, Mapping[str, str]]

    @property
    def name(self) -> str:
        """Its name, which is also its adapter's."""
        return f"client-{self.number}"

    def window_s(self) -> float:
        """Length of its windows, seconds."""
        return self.windows[1].start_s - self.windows[0].start_s if len(self.windows) > 1 else 600.0


def read_clients(path: Path) -> tuple[Client, ...]:
    """Every client of a folder or .tgz, by number. Raises `InputError` for a file that is not as described above."""
    texts: dict[int, dict[str, str]] = {}
    folders: set[str] = set()
    for name, content in _members(require(path)):
        match = _MEMBER.match(name)
        if match is None:
            continue
        folders.add(match["folder"] or "")
        texts.setdefault(int(match["client"]), {})[match["what"]] = content
    if len(folders) > 1:
        raise InputError(f"{path} holds several models ({', '.join(sorted(folders))}): unpack it and name one folder")
    clients = tuple(_client(path, number, texts[number]) for number in sorted(texts) if "trace.csv" in texts[number])
    if not clients:
        raise InputError(f"{path}: the trace is empty: it has no chunk-N-trace.csv")
    return clients


def _members(path: Path) -> Iterator[tuple[str, str]]:
    try:
        if path.is_dir():
            for file in sorted(path.rglob("chunk-*")):
                if _MEMBER.match(file.name):
                    refuse_pointer(file)
                    yield file.relative_to(path).as_posix(), file.read_text(encoding="utf-8")
            return
        with tarfile.open(path) as archive:
            for member in archive:
                handle = archive.extractfile(member) if member.isfile() and _MEMBER.match(member.name) else None
                if handle is not None:
                    content = handle.read()
                    if lfs_pointer(content[:HEAD_BYTES]):
                        raise InputError(f"{path}: {member.name} {LFS_POINTER}, and pack the folder again")
                    yield member.name, content.decode("utf-8")
    except (OSError, EOFError, zlib.error, tarfile.TarError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as ServeGen ({error}): give its folder or .tgz") from error


def _client(path: Path, number: int, texts: Mapping[str, str]) -> Client:
    windows = []
    for line, row in enumerate(csv.reader(io.StringIO(texts["trace.csv"])), 1):
        try:
            start, rate, cv, pattern, first, second = row
            windows.append(Window(float(start), float(rate), float(cv), pattern, (float(first), float(second))))
        except ValueError:
            raise InputError(
                f"{path}: chunk-{number}-trace.csv line {line} is not start,rate,cv,pattern,arg1,arg2: correct it"
            ) from None
        wrong = _wrong(windows)
        if wrong is not None:
            raise InputError(f"{path}: chunk-{number}-trace.csv line {line}: {wrong}: correct it")
    if not windows:
        raise InputError(f"{path}: chunk-{number}-trace.csv is empty: add windows, or remove the file")
    try:
        raw: dict[str, Any] = json.loads(texts.get("dataset.json", "{}"))
        lengths = {float(key): {name: str(text) for name, text in value.items()} for key, value in raw.items()}
        if not all(math.isfinite(key) for key in lengths):
            raise ValueError("a time of day is not finite")
    except (ValueError, AttributeError, RecursionError) as error:
        why = shortened(str(error), 120)
        raise InputError(f"{path}: chunk-{number}-dataset.json is not as ServeGen writes it ({why})") from error
    return Client(number, tuple(windows), lengths)


def _wrong(windows: list[Window]) -> str | None:
    """The error in the last of a client's windows, given those before it; empty if there is none."""
    last = windows[-1]
    if not 0 <= last.rate <= _MOST_RATE:
        return f"rate {last.rate:g} is negative, not finite or implausible"
    if not 0 <= last.start_s <= _LATEST_S:
        return f"start {last.start_s:g} is not a number of seconds from 0"
    if not (math.isfinite(last.cv) and last.cv >= 0):
        return f"cv {last.cv:g} is negative or not finite"
    if last.rate > 0 and last.pattern not in _PATTERNS:
        return f"pattern {last.pattern!r} is not known, only Gamma, Weibull and Exponential"
    if last.rate > 0 and last.pattern in ("Gamma", "Weibull") and not 0 < last.arguments[0] < math.inf:
        return f"shape {last.arguments[0]:g} of {last.pattern} is not above 0"
    step = last.start_s - windows[-2].start_s if len(windows) > 1 else 1.0
    if step <= 0 or (len(windows) > 2 and not math.isclose(step, windows[1].start_s - windows[0].start_s)):
        return f"start {last.start_s:g} is not one window after {windows[-2].start_s:g}"
    return None


def expected_requests(clients: tuple[Client, ...], window: tuple[float, float] | None, rate_scale: float) -> float:
    """The expected number of requests of the fits."""
    return sum(
        w.rate * client.window_s() * rate_scale
        for client in clients
        for w in client.windows
        if _overlaps(w, client, window)
    )


def _overlaps(window: Window, client: Client, part: tuple[float, float] | None) -> bool:
    return part is None or (window.start_s < part[1] and window.start_s + client.window_s() > part[0])


def read(path: Path, options: ReadOptions) -> TraceTable:
    """Requests drawn from the fits, in time order; the window and the rate scale are applied here.

    Each 600 s window gets as many requests as its rate says (a remainder by chance), with gaps drawn from its fitted
    distribution and stretched to fill the window, so that rates are exact and the shape of the gaps is the fit's.
    Lengths come from the client's histogram for the time of day, else from another time of day, else from another
    client; the notes count those. Raises `InputError` if the fits give more requests than fit in memory.
    """
    options.refuse_columns(path, "servegen", "which has fits instead of rows")
    clients = read_clients(path)
    expected = expected_requests(clients, options.window, options.rate_scale)
    if expected > _MOST_REQUESTS:
        raise InputError(
            f"{path} gives about {_count(expected)} requests, too many to draw: choose a part with window, or lower "
            "rate_scale"
        )
    rng = options.rng
    times: list[Floats] = []
    codes: list[Ints] = []
    for index, client in enumerate(clients):
        for window in client.windows:
            if window.rate > 0 and _overlaps(window, client, options.window):
                drawn = _arrivals(window, client.window_s(), options.rate_scale, rng)
                times.append(drawn)
                codes.append(np.full(len(drawn), index, dtype=np.int64))
    time = np.concatenate(times) if times else np.zeros(0)
    code = np.concatenate(codes) if codes else np.zeros(0, dtype=np.int64)
    start, end = options.window or (0.0, math.inf)
    inside = (time >= start) & (time < end)
    order = np.argsort(time[inside], kind="stable")
    time, code = time[inside][order], code[inside][order]
    if not len(time):
        raise InputError(f"{path} has no requests in this window: choose another window or raise rate_scale")
    lengths, notes = _lengths(clients, code, time, rng)
    labels = Labels(code, tuple(client.name for client in clients))
    return TraceTable(
        format="servegen",
        rows_read=len(time),
        time_s=time - start,
        prompt=None if lengths is None else lengths[0],
        output=None if lengths is None else lengths[1],
        adapter=labels,
        client=labels,
        notes=(f"{len(time)} requests of {len(set(code.tolist()))} clients were drawn from ServeGen's fits", *notes),
        cut=True,
    )


def _arrivals(window: Window, length_s: float, rate_scale: float, rng: np.random.Generator) -> Floats:
    expected = window.rate * length_s * rate_scale
    n = int(expected) + int(rng.random() < expected - int(expected))
    first = window.arguments[0]
    if window.pattern == "Gamma":
        gaps = rng.gamma(first, 1.0, n + 1)
    elif window.pattern == "Weibull":
        gaps = rng.weibull(first, n + 1)
    else:
        gaps = rng.exponential(1.0, n + 1)
    total = float(gaps.sum())
    return window.start_s + length_s * np.cumsum(gaps)[:n] / total if total > 0 else np.full(n, window.start_s)


def _lengths(
    clients: tuple[Client, ...], code: Ints, time: Floats, rng: np.random.Generator
) -> tuple[tuple[Ints, Ints] | None, list[str]]:
    """Prompt and output tokens of each request, and notes on lengths taken from another time or client."""
    if not any(_has_tokens(texts) for client in clients for texts in client.lengths.values()):
        return None, ["no length histograms: the scenario's lengths are used"]
    prompt, output = np.zeros(len(code), dtype=np.int64), np.zeros(len(code), dtype=np.int64)
    borrowed = {"another time of day": 0, "another client": 0}
    parsed: dict[tuple[int, float, str], _Histogram] = {}
    second = np.mod(time, _DAY_S)
    for index in np.unique(code):
        mine = code == index
        keys = np.array(sorted(clients[index].lengths)) if clients[index].lengths else np.zeros(1)
        slot = np.maximum(np.searchsorted(keys, second, side="right") - 1, 0)
        for position in np.unique(slot[mine]):
            rows = np.flatnonzero(mine & (slot == position))
            owner, key, how = _source(clients, int(index), float(keys[position]))
            if how is not None:
                borrowed[how] += len(rows)
            for column, name in ((prompt, "input_tokens"), (output, "output_tokens")):
                place = (owner, key, name)
                if place not in parsed:
                    parsed[place] = _histogram(clients[owner].lengths[key][name])
                values, cumulated = parsed[place]
                drawn = np.searchsorted(cumulated, rng.random(len(rows)) * cumulated[-1], side="right")
                column[rows] = values[np.minimum(drawn, len(values) - 1)]
    return (prompt, output), [f"requests whose lengths come from {how}: {n}" for how, n in borrowed.items() if n]


def _source(clients: tuple[Client, ...], index: int, key: float) -> tuple[int, float, str | None]:
    """The histogram to use: this client's at this time of day, at another, or the nearest other client's."""
    own = clients[index].lengths
    if key in own and _has_tokens(own[key]):
        return index, key, None
    for other in sorted(own, key=lambda k: abs(k - key)):
        if _has_tokens(own[other]):
            return index, other, "another time of day"
    for other_client in sorted(range(len(clients)), key=lambda i: abs(i - index)):
        for other in sorted(clients[other_client].lengths, key=lambda k: abs(k - key)):
            if _has_tokens(clients[other_client].lengths[other]):
                return other_client, other, "another client"
    raise AssertionError("a caller checks that some client has lengths")


def _has_tokens(texts: Mapping[str, str]) -> bool:
    return all(len(texts.get(name, "{}").strip()) > 2 for name in ("input_tokens", "output_tokens"))


def _histogram(text: str) -> _Histogram:
    try:
        counts: dict[Any, Any] = ast.literal_eval(text)
        values = np.array([float(key) for key in counts])
        shares = np.array([float(share) for share in counts.values()])
        if not (
            ((values >= 0) & (values <= MOST_TOKENS)).all() and (shares >= 0).all() and 0 < shares.sum() < math.inf
        ):
            raise ValueError("a length or a share is negative or implausible")
        return values.astype(np.int64), np.cumsum(shares)
    except (ValueError, SyntaxError, TypeError, AttributeError, OverflowError, RecursionError, MemoryError) as error:
        raise InputError(
            f"a ServeGen length histogram cannot be read ({shortened(str(error), 120)}): it should be {{tokens: share}}"
        ) from error


def _count(requests: float) -> str:
    return f"{requests:,.0f}" if requests < 1e15 else f"{requests:.3g}"


def _recognise(head: Head) -> bool:
    if head.path.is_dir():
        return any(_MEMBER.match(file.name) for file in head.path.rglob("chunk-*"))
    return head.path.name.endswith((".tgz", ".tar.gz", ".tar"))


FORMAT = Format(
    "servegen",
    "ServeGen folder or .tgz: chunk-N-trace.csv fits and chunk-N-dataset.json lengths; one client = one adapter",
    _recognise,
    read,
)
