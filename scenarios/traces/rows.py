"""Rows: reads a file with one row per request into a `TraceTable`, by a format's layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from loratory.errors import InputError, several, shortened
from loratory.scenarios.traces.blocks import Blocks, block_tokens, blocks_of
from loratory.scenarios.traces.column_reader import ColumnReader, labels_of
from loratory.scenarios.traces.files import FileColumns, open_columns
from loratory.scenarios.traces.format import ReadOptions
from loratory.scenarios.traces.layout import LABELS, MODELS, Chosen, Layout, choose, folded
from loratory.scenarios.traces.sessions import turns_of, without
from loratory.scenarios.traces.table import UNSET, Labels, TraceTable
from loratory.scenarios.traces.times import LATEST_S, UNITS, TraceTimes, read_times, unit_in_name
from loratory.serving.workload import Floats, Ints

_LONG_DELAY_S = 3600.0


def read_rows(path: Path, options: ReadOptions, layout: Layout) -> TraceTable:
    """The requests of a file of rows. Raises `InputError` for a broken one, and for an option that does not apply."""
    file = open_columns(path)
    chosen = choose(path, file.names, options.columns, layout)
    if not chosen.columns:
        raise InputError(f"{path}: no column is recognised (it has {several(file.names, 8)}): name them with columns")
    columns, notes = dict(chosen.columns), [*file.notes, *chosen.notes]
    _refuse_unread(path, options, columns)
    if options.prefix_cache and columns.pop("cached", None) is not None:
        notes.append("cached_tokens is not used: prefix_cache counts the blocks of hash_ids")
    if not (options.prefix_cache or options.blocks):
        columns.pop("hash_ids", None)
    source = _source(file, columns, layout)
    prompt = source.tokens(columns["input"]) if "input" in columns else None
    joined = {"adapter": layout.first_of}
    labels = {key: source.labels(columns[key], joined.get(key)) for key in LABELS if key in columns}
    if "session" not in labels and layout.parent is not None and set(layout.parent) <= set(file.names):
        labels["session"] = _conversations(source, *layout.parent)
    notes.extend((*_adapters(chosen, columns, labels), *_beside(chosen, columns, layout)))
    if layout.first_of is not None and "adapter" in columns:
        text = source.frame[columns["adapter"]].astype("string")
        many = int(text.str.contains(layout.first_of, regex=False, na=False).sum())
        notes.extend([f"rows that name several adapters, of which the first is used: {many}"] if many else [])
    priority, passed = _priority(source, chosen, columns)
    notes.extend(passed)
    clock = _clock(source, columns, options, layout)
    delay, told = _delay(source, columns, options, layout, clock)
    blocks, sized = _blocks(source, columns, options, layout, prompt)
    table = table_of(
        layout.format,
        path,
        time=None if clock is None else clock.time,
        prompt=prompt,
        output=source.tokens(columns["output"]) if "output" in columns else None,
        cached=source.tokens(columns["cached"]) if "cached" in columns else None,
        delay=delay,
        priority=priority,
        max_tokens=source.tokens(columns["max_tokens"]) if "max_tokens" in columns else None,
        deadline=_deadline(source, columns, options, layout, clock),
        blocks=blocks,
        columns=tuple(columns.items()),
        notes=(*notes, *(() if clock is None else clock.notes), *told, *sized),
        order=None if layout.order is None else (layout.order, source.numbers(layout.order)),
        **labels,
    )
    unit = None if clock is None else clock.unit
    return replace(table, time_unit=unit, unread=chosen.unread)


def _source(file: FileColumns, columns: Mapping[str, str], layout: Layout) -> ColumnReader:
    """The columns that are read, and those that the layout itself needs."""
    parents = [name for name in layout.parent or () if name in file.names]
    more = [name for name in (layout.order, layout.duration) if name is not None and name in file.names]
    texts = [*(columns[key] for key in LABELS if key in columns), *parents]
    return ColumnReader(file, file.frame([*columns.values(), *parents, *more], texts))


def table_of(
    name: str,
    path: Path,
    *,
    time: Floats | None = None,
    prompt: Floats | None = None,
    output: Floats | None = None,
    cached: Floats | None = None,
    adapter: Labels | None = None,
    client: Labels | None = None,
    tenant: Labels | None = None,
    session: Labels | None = None,
    delay: Floats | None = None,
    priority: Floats | None = None,
    max_tokens: Floats | None = None,
    deadline: Floats | None = None,
    blocks: Blocks | None = None,
    columns: tuple[tuple[str, str], ...] = (),
    notes: Sequence[str] = (),
    order: tuple[str, Floats] | None = None,
) -> TraceTable:
    """A table of columns as read, where NaN means blank: rows with a blank are dropped and counted.

    A row with a session but without a time waits for the turn before it (see sessions.py). Times are shifted so that
    the earliest is 0. Raises `InputError` if no row is left.
    """
    labels = [label.codes for label in (adapter, client, tenant, session) if label is not None]
    others = [priority, cached, max_tokens, deadline, None if blocks is None else blocks.ids]
    rows = next(len(column) for column in (time, prompt, output, *labels, *others) if column is not None)
    found = list(notes)
    keep = np.ones(rows, dtype=bool)
    if session is not None:
        turns = turns_of(time, delay, session, path)
        time, delay, keep = turns.time, turns.delay, turns.usable
        found.extend(turns.notes)
    else:
        delay = None
    blank = np.zeros(rows, dtype=bool)
    for column in (time, prompt, output):
        if column is not None:
            blank |= np.isnan(column) & (np.isnan(delay) if column is time and delay is not None else True)
    if (lost := int((blank & keep).sum())) > 0:
        found.append(f"rows left out (an empty time or token cell): {lost}")
    if not (keep & ~blank).any():
        raise InputError(f"{path}: the trace is empty: no row has a time and token counts")
    whole = TraceTable(
        format=name,
        rows_read=rows,
        time_s=time,
        prompt=None if prompt is None else np.nan_to_num(prompt).astype(np.int64),
        output=None if output is None else np.nan_to_num(output).astype(np.int64),
        cached=None if cached is None else np.nan_to_num(cached).astype(np.int64),
        adapter=adapter,
        client=client,
        tenant=tenant,
        session=session,
        delay_s=delay,
        priority=None if priority is None else _priorities(priority),
        max_tokens=None if max_tokens is None else _limits(max_tokens),
        deadline_s=None if deadline is None else np.where(np.isnan(deadline), np.inf, deadline),
        blocks=blocks,
        columns=columns,
        notes=tuple(found),
    )
    keep &= ~blank
    if order is not None and (np.diff(order[1]) < 0).any():
        positions = np.argsort(order[1], kind="stable")
        whole, keep = whole.take(positions, f"rows were put in the order of {order[0]}"), keep[positions]
    table = without(whole, keep)
    return table if table.time_s is None else replace(table, time_s=table.time_s - float(np.nanmin(table.time_s)))


def _priorities(values: Floats) -> Ints:
    return np.where(np.isnan(values), UNSET, np.nan_to_num(values).astype(np.int64))


def _limits(values: Floats) -> Ints:
    """Limits of output tokens; 0 is none, as in a blank cell."""
    known = np.nan_to_num(values).astype(np.int64)
    return np.where(known < 1, UNSET, known)


def _refuse_unread(path: Path, options: ReadOptions, columns: Mapping[str, str]) -> None:
    """Refuses an option about a column that the file does not have."""
    lacks = [
        ("time_unit", options.time_unit is not None and not {"time", "delay"} & set(columns), "times"),
        ("prefix_cache", options.prefix_cache and "hash_ids" not in columns, "hash_ids (columns.hash_ids names them)"),
        ("prefix_cache", options.prefix_cache and "input" not in columns, "prompt lengths"),
        ("block_tokens", options.block_tokens is not None and "hash_ids" not in columns, "hash_ids"),
    ]
    for option, wrong, noun in lacks:
        if wrong:
            raise InputError(f"{path}: {option} does not apply, because the file has no {noun}: remove it")
    read = options.prefix_cache or options.blocks
    for option, given in (("block_tokens", options.block_tokens), ("columns.hash_ids", options.columns.hash_ids)):
        if given is not None and not read:
            raise InputError(f"{path}: {option} needs prefix_cache: true: add that, or remove it")
    if options.prefix_cache and options.columns.cached is not None:
        raise InputError(f"{path}: columns.cached and prefix_cache both set the cached tokens: remove one of them")


def _clock(source: ColumnReader, columns: Mapping[str, str], options: ReadOptions, layout: Layout) -> TraceTimes | None:
    if "time" not in columns:
        return None
    guess = layout.guess and "delay" not in columns
    clock = read_times(source, columns["time"], options.time_unit, layout.unit, guess)
    if layout.duration is None or options.columns.time is not None or layout.duration not in source.frame.columns:
        return clock
    return replace(clock, time=clock.time - _durations(source, layout.duration, clock.unit or "s"))


def _durations(source: ColumnReader, column: str, unit: str) -> Floats:
    """A column of durations in ``unit``, as seconds. Refuses negative and implausible ones."""
    raw = source.numbers(column)
    with np.errstate(invalid="ignore"):
        source.refuse(raw < 0, column, "is negative")
        source.refuse(raw * UNITS[unit] > LATEST_S, column, f"is beyond 300 years, read in {unit}")
    return raw * UNITS[unit]


def _delay(
    source: ColumnReader, columns: Mapping[str, str], options: ReadOptions, layout: Layout, clock: TraceTimes | None
) -> tuple[Floats | None, list[str]]:
    """Delays in seconds: in the unit their column names, else in that of the times."""
    if "delay" not in columns:
        return None, []
    name = columns["delay"]
    unit = unit_in_name(name) or options.time_unit or (None if clock is None else clock.unit) or layout.unit
    delay = _durations(source, name, unit)
    typical = float(np.median(delay[delay > 0])) if (delay > 0).any() else 0.0
    if typical <= _LONG_DELAY_S:
        return delay, []
    return delay, [f"half of the delays are above {typical:,.0f} s, read in {unit}: time_unit overrides that"]


def _deadline(
    source: ColumnReader, columns: Mapping[str, str], options: ReadOptions, layout: Layout, clock: TraceTimes | None
) -> Floats | None:
    """Seconds from arrival to the deadline: in the unit the column names, else in that of the times."""
    if "deadline" not in columns:
        return None
    unit = unit_in_name(columns["deadline"]) or options.time_unit or (None if clock is None else clock.unit)
    return _durations(source, columns["deadline"], unit or layout.unit)


def _blocks(
    source: ColumnReader, columns: Mapping[str, str], options: ReadOptions, layout: Layout, prompt: Floats | None
) -> tuple[Blocks | None, list[str]]:
    if "hash_ids" not in columns:
        return None, []
    lists = source.lists(columns["hash_ids"])
    try:
        size, notes = block_tokens(source.columns.path, lists, prompt, options.block_tokens, layout.block_tokens)
    except InputError:
        if options.prefix_cache:
            raise
        return None, ["hash_ids are not used, because they do not show how many tokens a block has: set block_tokens"]
    return blocks_of(lists, size), notes


def _adapters(chosen: Chosen, columns: dict[str, str], labels: dict[str, Labels]) -> list[str]:
    """Notes on an adapter column that was found by its name; ``model`` with one name is the base model's."""
    if "adapter" not in chosen.beside or folded(columns["adapter"]) not in MODELS:
        return []
    names, column = labels["adapter"].names, shortened(columns["adapter"], 40)
    if len(names) < 2:
        del columns["adapter"], labels["adapter"]
        return [
            f"{column} holds one name ({shortened(str(*names), 60)}), the base model's: columns.adapter overrides that"
        ]
    return [f"adapter: column {column} is used ({len(names)} names): adapter_from: popularity overrides that"]


def _beside(chosen: Chosen, columns: Mapping[str, str], layout: Layout) -> list[str]:
    return [
        f"{key}: column {columns[key]} is used, which is not one of {layout.format}'s own"
        for key in ("adapter", "session", "priority", "cached")
        if layout.own and key in chosen.beside and key in columns and folded(columns[key]) not in MODELS
    ]


def _priority(source: ColumnReader, chosen: Chosen, columns: dict[str, str]) -> tuple[Floats | None, list[str]]:
    """The column of priorities; one that was found by its name and holds no number is not read, with a note."""
    if "priority" not in columns:
        return None, []
    if "priority" not in chosen.beside or source.numeric(columns["priority"]):
        return source.whole(columns["priority"]), []
    column = shortened(columns.pop("priority"), 40)
    return None, [f"column {column} is not read, because it holds no numbers, but priorities are numbers"]


def _conversations(source: ColumnReader, own: str, parent: str) -> Labels:
    """Sessions of rows that name the row they continue: each is called by the id of its first row."""
    ids, parents = (source.frame[name].astype("string").str.strip().fillna("").tolist() for name in (own, parent))
    root: dict[str, str] = {}
    for mine, before in zip(ids, parents, strict=True):
        root[mine] = root.get(before, before) if before not in ("-1", "") else mine
    return labels_of([root[mine] or None for mine in ids])
