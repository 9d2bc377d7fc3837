"""trace_workload: the requests of a scenario's trace, and the adapters that a trace names."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from loratory.errors import InputError, shortened
from loratory.scenarios.merge import own_tenants
from loratory.scenarios.popularity import PopularitySpec, draw_adapters
from loratory.scenarios.rng import Draws
from loratory.scenarios.schema import Scenario
from loratory.scenarios.session_turns import in_turn, recorded_note
from loratory.scenarios.traces.blocks import cached_tokens
from loratory.scenarios.traces.clean import clean
from loratory.scenarios.traces.format import ReadOptions
from loratory.scenarios.traces.known import format_of, read_trace
from loratory.scenarios.traces.servegen import read_clients
from loratory.scenarios.traces.table import UNSET, Labels, TraceTable
from loratory.scenarios.workload_spec import WorkloadSpec
from loratory.serving.workload import Floats, Ints, Workload


def trace_adapters(scenario: Scenario) -> tuple[str, ...] | None:
    """The adapters the scenario's trace names, the most used first (ServeGen: by client number).

    None if popularity chooses adapters. Raises `InputError` for a trace that cannot be read, or has no such column.
    """
    workload = scenario.workload
    if workload.trace is None or workload.adapter_from == "popularity":
        return None
    path = Path(workload.trace)
    options = _options(workload, Draws(0))
    by_client = workload.adapter_from in ("auto", "column", "client")
    if by_client and format_of(path, workload.format, options).name == "servegen":
        options.refuse_columns(path, "servegen", "which has fits instead of rows")
        return tuple(client.name for client in read_clients(path))
    labels, _ = _labels(scenario, read_trace(path, workload.format, options))
    return None if labels is None else labels.names


def trace_workload(scenario: Scenario, draws: Draws, names: tuple[str, ...]) -> Workload:
    """The trace's requests; the scenario's times, lengths and adapters override its own.

    Raises `InputError` if neither has them, or if the trace names an adapter that is not in ``names``.
    """
    workload = scenario.workload
    assert workload.trace is not None
    table = read_trace(workload.trace, workload.format, _options(workload, draws))
    _refuse_unread(workload, table)
    table = clean(table, zero_tokens=workload.zero_tokens, window=workload.window, rate_scale=workload.rate_scale)
    if not len(table):
        reasons = "; ".join(table.notes)
        raise InputError(
            f"{workload.trace}: the trace is empty: no row is left ({reasons}): change window or zero_tokens"
        )
    after: Ints | None = None
    delay: Floats | None = None
    if table.delay_s is not None:
        table, arrival, after, delay = in_turn(workload, table, draws)
    else:
        table, arrival = _timed(workload, table, draws)
        table = table.noted(*filter(None, [recorded_note(workload, table)]))
    n = len(table)
    prompt = _tokens(workload, "input_tokens", table.prompt, n, draws)
    output = _tokens(workload, "output_tokens", table.output, n, draws)
    labels, told = _labels(scenario, table)
    if labels is not None:
        adapter = _positions(workload, labels, names)
    else:
        adapter = _drawn(scenario, draws, names, table, arrival)
    cached, notes = _cached(workload, table, prompt, adapter)
    notes.extend(told)
    if labels is not None:
        notes.extend(_unused(scenario))
    own = None
    if scenario.tenants.map.trace:
        if table.tenant is None:
            raise InputError(f"{workload.trace} has no tenant column: change tenants.map, or name it in columns.tenant")
        own = table.tenant
    elif table.tenant is not None and scenario.tenants.map.by_adapter and workload.adapter_from != "tenant":
        column = dict(table.columns)["tenant"]
        notes.append(
            f"the trace's tenants ({shortened(column, 40)}) are not used: tenants: {{map: trace}} would use them"
        )
    priority = table.priority
    if priority is not None and scenario.tenants.priorities and workload.columns.priority is None:
        priority = None
        notes.append("the trace's priority column is not used, because tenants.priorities overrides it")
    limits, told = _limits(workload, table, output)
    notes.extend(told)
    deadline = table.deadline_s
    if workload.deadline_s is not None:
        if deadline is not None:
            notes.append("the trace's deadlines are not used, because workload.deadline_s overrides them")
        deadline = workload.deadline_s.draw(draws.rng("deadline"), n)
    closed = workload.arrivals.closed_loop if workload.arrivals is not None else None
    tenant, tenants = own_tenants(own, n)
    return Workload(
        arrival=arrival,
        adapter=adapter,
        prompt_tokens=prompt,
        output_tokens=output,
        max_tokens=limits,
        adapters=names,
        tenant=tenant,
        tenants=tenants,
        deadline=deadline,
        cached_tokens=cached,
        priority=priority,
        concurrency=None if closed is None else closed.concurrency,
        after=after,
        delay_s=delay,
        notes=(*table.notes, *notes),
    )


def _limits(workload: WorkloadSpec, table: TraceTable, output: Ints) -> tuple[Ints, list[str]]:
    """Each request's ``max_tokens`` where the scenario takes them from the trace; a row without one has the longest."""
    own = table.max_tokens
    if workload.max_tokens != "trace":
        unused = "the trace's max_tokens are not used: workload.max_tokens: trace would use them"
        return output, [] if own is None else [unused]
    if own is None:
        raise InputError(
            f"{workload.trace} has no max_tokens column: change workload.max_tokens, or name it in columns.max_tokens"
        )
    blank = own == UNSET
    longest = max(int(own.max()), int(output[blank].max(initial=1)))
    return np.where(blank, longest, own), []


def _refuse_unread(workload: WorkloadSpec, table: TraceTable) -> None:
    """Refuses a key of the scenario about columns that the trace does not have."""
    timed, sized = table.time_s is not None, table.prompt is not None or table.output is not None
    paced = timed and workload.arrivals is None
    for key, unread, why in (
        ("window", workload.window is not None and not timed, "the trace has no times"),
        ("rate_scale", workload.rate_scale != 1.0 and not timed, "the trace has no times"),
        ("zero_tokens", workload.zero_tokens != "drop" and not sized, "the trace has no token counts"),
        (
            "time_unit",
            workload.time_unit is not None and not paced and workload.window is None and table.delay_s is None,
            "workload.arrivals replaces the trace's times",
        ),
    ):
        if unread:
            raise InputError(f"{workload.trace}: workload.{key} does not apply, because {why}: remove it")


def _unused(scenario: Scenario) -> list[str]:
    """Notes on keys that would choose adapters, if the trace names them."""
    spec, default = scenario.adapters, type(scenario.adapters).model_fields
    keys = [key for key in ("popularity", "base_share") if getattr(spec, key) != default[key].default]
    return [
        f"adapters.{key} is not used, because the trace names adapters: adapter_from: popularity overrides that"
        for key in keys
    ]


def _drawn(scenario: Scenario, draws: Draws, names: tuple[str, ...], table: TraceTable, arrival: Floats) -> Ints:
    """Adapters by popularity: one for each request, or for each session, whose turns share a prefix."""
    popularity, base_share = scenario.adapters.popularity or PopularitySpec(uniform=True), scenario.adapters.base_share
    drawn = draw_adapters(draws, popularity, base_share, names, arrival)
    if table.session is None:
        return drawn
    codes = table.session.codes
    _, first, which = np.unique(codes, return_index=True, return_inverse=True)
    return np.where(codes >= 0, drawn[first[which]], drawn)


def _cached(workload: WorkloadSpec, table: TraceTable, prompt: Ints, adapter: Ints) -> tuple[Ints | None, list[str]]:
    """Cached prompt tokens: counted from the blocks of the same adapter's requests, or read from the trace."""
    if workload.prefix_cache:
        assert table.blocks is not None
        notes = ["cached blocks are counted as if turns took no time"] if table.delay_s is not None else []
        return cached_tokens(table.blocks, prompt, adapter), notes
    if table.cached is None:
        return None, []
    over = int((table.cached >= prompt).sum())
    notes = [f"rows whose cached tokens were lowered to leave one prompt token to compute: {over}"] if over else []
    return np.clip(table.cached, 0, prompt - 1), notes


def _options(workload: WorkloadSpec, draws: Draws) -> ReadOptions:
    return ReadOptions(
        columns=workload.columns,
        time_unit=workload.time_unit,
        window=workload.window,
        rate_scale=workload.rate_scale,
        prefix_cache=workload.prefix_cache,
        block_tokens=workload.block_tokens,
        rng=draws.rng("trace"),
    )


def _labels(scenario: Scenario, table: TraceTable) -> tuple[Labels | None, list[str]]:
    """The column with each row's adapter, or None if popularity chooses, and notes.

    A row that names the scenario's model is for the base model, as in the ``model`` field of vLLM's requests.
    """
    workload, source = scenario.workload, scenario.workload.adapter_from
    if source == "popularity":
        return None, []
    found = {"auto": table.adapter, "column": table.adapter, "client": table.client, "tenant": table.tenant}[source]
    if found is None and source != "auto":
        noun = "adapter" if source == "column" else source
        raise InputError(
            f"{workload.trace} has no {noun} column, which workload.adapter_from: {source} needs: name it in "
            f"columns.{noun}, or use adapter_from: popularity"
        )
    base = scenario.model
    if found is None or source not in ("auto", "column") or base not in found.names:
        return found, []
    at = found.names.index(base)
    codes = np.where(found.codes == at, -1, found.codes - (found.codes > at))
    kept = Labels(codes, tuple(name for name in found.names if name != base))
    return kept, [f"rows that name {base}, which is the base model, not an adapter: {int((found.codes == at).sum())}"]


def _positions(workload: WorkloadSpec, labels: Labels, names: tuple[str, ...]) -> Ints:
    position = {name: index for index, name in enumerate(names)}
    used = set(np.unique(labels.codes).tolist())
    missing = [name for code, name in enumerate(labels.names) if code in used and name not in position]
    if missing:
        raise InputError(
            f"{workload.trace} uses the adapter {missing[0]!r}, which is not in the scenario: remove "
            "adapters.names, or use adapter_from: popularity"
        )
    table = np.array([*(position.get(name, -1) for name in labels.names), -1], dtype=np.int64)
    return table[labels.codes]


def _timed(workload: WorkloadSpec, table: TraceTable, draws: Draws) -> tuple[TraceTable, Floats]:
    """The rows to replay and their arrivals: the scenario's if it has any, else the trace's."""
    limit = workload.requests
    if workload.arrivals is not None:
        if workload.duration_s is not None:
            arrival = workload.arrivals.draw(draws.rng("arrivals"), None, workload.duration_s)[: len(table)]
        else:
            arrival = workload.arrivals.draw(draws.rng("arrivals"), min(limit or len(table), len(table)), None)
        limit = len(arrival) if limit is None else min(limit, len(arrival))
    elif table.time_s is None:
        raise InputError(f"{workload.trace} has no times: add workload.arrivals, for example {{poisson: 10}}")
    else:
        arrival = table.time_s
    if limit is not None and limit < len(table):
        table = table.take(np.arange(limit), f"rows left out (after the first {limit}): {len(table) - limit}")
    return table, arrival[: len(table)]


def _tokens(workload: WorkloadSpec, key: str, own: Ints | None, n: int, draws: Draws) -> Ints:
    given = workload.input_tokens if key == "input_tokens" else workload.output_tokens
    if given is not None:
        return given.draw(draws.rng("input" if key == "input_tokens" else "output"), n)
    if own is None:
        raise InputError(
            f"{workload.trace} has no {key.replace('_', ' ')}: add workload.{key}, for example "
            "{lognormal: {mean: 512, cv: 1.0}}"
        )
    return own
