"""Build: a scenario and a seed -> the adapters and the workload of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from loratory.errors import InputError, several
from loratory.scenarios.adapters_spec import default_names
from loratory.scenarios.arrivals import ArrivalsSpec
from loratory.scenarios.lengths import Seconds, draw_pairs
from loratory.scenarios.merge import UNDECIDED, merge, own_tenants, positions
from loratory.scenarios.popularity import PopularitySpec, draw_adapters
from loratory.scenarios.rng import Draws
from loratory.scenarios.schema import Scenario
from loratory.scenarios.slo_targets import adapter_problem, tenant_problem
from loratory.scenarios.slora_workload import slora_workload
from loratory.scenarios.tenants import TenantsSpec
from loratory.scenarios.trace_workload import trace_adapters, trace_workload
from loratory.scenarios.traces.table import UNSET, Labels
from loratory.scenarios.vtc_workload import vtc_workload
from loratory.scenarios.workload_spec import MaxTokens, Noise, Stream, stream_positions
from loratory.serving.adapter_limits import host_problem, pinned_problem
from loratory.serving.lora import Adapter, LoRARequest
from loratory.serving.request import BASE_TENANT
from loratory.serving.workload import Floats, Ints, Workload


def build_adapters(scenario: Scenario, adapter_bytes: Callable[[int], int], item_bytes: int = 2) -> tuple[Adapter, ...]:
    """The scenario's adapters, the same for every seed; ids count from 1, paths are ``synthetic://NAME``.

    ``adapter_bytes`` gives the weight bytes of an adapter of a rank. Adapters of a registry have their own ids, ranks
    and sources, and ``item_bytes`` (those of the engine's dtype) for each of their parameters. A trace that names its
    adapters gives the names where the scenario does not. Raises `InputError` when names and numbers do not agree.
    """
    spec = scenario.adapters
    names = _names(scenario)
    pinned = spec.pinned_names(names)
    if problem := pinned_problem("adapters.pinned names", len(pinned), len(names), scenario.engine.max_loras):
        raise InputError(problem)
    if spec.initial_tier == "host":
        problem = host_problem(len(names), scenario.engine.host_slots)
        if problem is not None:
            raise InputError(f"adapters.initial_tier {problem}")
    _refuse(adapter_problem(scenario.slo.targets or (), names, spec.rank_of(len(names))))
    if spec.records is not None:
        return tuple(
            Adapter(
                LoRARequest(record.name, record.lora_int_id, record.source, record.base_model),
                record.rank,
                record.parameters * item_bytes,
                record.name in pinned,
                spec.initial_tier,
                record.digest,
                record.version,
            )
            for record in spec.records
        )
    ranks = spec.rank_of(len(names))
    size = {rank: adapter_bytes(rank) for rank in dict.fromkeys(ranks)}
    return tuple(
        Adapter(LoRARequest(name, index, f"synthetic://{name}"), rank, size[rank], name in pinned, spec.initial_tier)
        for index, (name, rank) in enumerate(zip(names, ranks, strict=True), 1)
    )


def build_workload(scenario: Scenario, seed: int, adapters: Sequence[Adapter]) -> Workload:
    """The requests of one run. The same scenario, seed and adapters give the same bytes.

    Raises `InputError` for a trace that cannot be read or used.
    """
    names = tuple(adapter.name for adapter in adapters)
    drawn = _drawn(scenario, seed, names)
    spec = scenario.workload
    output, limit, cut = _cap(drawn, spec.max_tokens)
    draws = Draws(seed)
    tenant, tenants = _tenants(scenario.tenants, drawn, draws)
    if spec.trace is not None:
        _refuse(tenant_problem(scenario.slo.targets or (), tenants))
    return replace(
        drawn,
        tenant=tenant,
        output_tokens=output,
        max_tokens=limit,
        tenants=tenants,
        tenant_weights=scenario.tenants.weight_of(tenants),
        predicted_tokens=_predicted(scenario, output, drawn.adapter, draws),
        priority=_priority(scenario.tenants, drawn, tenant, tenants),
        notes=(*drawn.notes, *([f"outputs cut at max_tokens ({spec.max_tokens}): {cut}"] if cut else [])),
    )


def _refuse(problem: tuple[int, str, str] | None) -> None:
    """Refuses a target of the SLO about what does not exist, once the trace's names are known."""
    if problem is not None:
        place, key, text = problem
        raise InputError(f"slo.targets.{place}.{key} {text}")


def _names(scenario: Scenario) -> tuple[str, ...]:
    spec = scenario.adapters
    traced = trace_adapters(scenario)
    if traced is None:
        names = spec.known_names()
        if names is None:
            raise InputError("adapters.count is missing, and the trace names no adapters: add the number of adapters")
        return names
    own = spec.known_names()
    if own is not None and (spec.names is not None or spec.records is not None):
        return own
    count = spec.known_count
    if count is not None and count < len(traced):
        raise InputError(
            f"adapters.count is {count}, but the trace names {len(traced)} adapters: remove count, or use "
            "workload.adapter_from: popularity"
        )
    taken = set(traced)
    spare = (name for name in default_names(2 * (count or 0)) if name not in taken)
    return (*traced, *(next(spare) for _ in range(len(traced), count or 0)))


def _drawn(scenario: Scenario, seed: int, names: tuple[str, ...]) -> Workload:
    """The scenario's requests, before tenants, caps and predictions are filled in; see `UNDECIDED`."""
    spec = scenario.workload
    if spec.trace is not None:
        return trace_workload(scenario, Draws(seed), names)
    if spec.generator != "loratory":
        generated = (
            slora_workload(scenario, seed, names) if spec.generator == "slora" else vtc_workload(spec, seed, names)
        )
        return replace(generated, deadline=_deadline(spec.deadline_s, Draws(seed), len(generated)))
    if spec.streams is not None:
        drawn = merge([_stream(scenario, s, Draws(seed, i + 1), names) for i, s in enumerate(spec.streams)])
    else:
        drawn = _single(scenario, Draws(seed), names)
    if spec.max_outstanding is None:
        return drawn
    n = len(drawn)
    after = np.full(n, -1, dtype=np.int64)
    return replace(drawn, max_outstanding=spec.max_outstanding, after=after, delay_s=np.zeros(n))


def _single(scenario: Scenario, draws: Draws, names: tuple[str, ...]) -> Workload:
    """Requests drawn from distributions; with per-adapter rates, their sum as one Poisson process."""
    spec, adapters = scenario.workload, scenario.adapters
    assert spec.input_tokens is not None and spec.output_tokens is not None
    arrivals, popularity = spec.arrivals, adapters.popularity or PopularitySpec(uniform=True)
    if adapters.rates is not None:
        # Independent Poisson processes together are one, each event belonging to a process in proportion to its rate.
        rates = adapters.rate_of(names)
        popularity = PopularitySpec(weights=rates.tolist())
        arrivals = ArrivalsSpec(poisson=float(rates.sum()) / (1.0 - adapters.base_share))
    assert arrivals is not None
    arrival = arrivals.draw(draws.rng("arrivals"), spec.requests, spec.duration_s)
    n = len(arrival)
    prompt, output = draw_pairs(spec.input_tokens, spec.output_tokens, draws, n)
    tenant, tenants = own_tenants(None, n)
    return Workload(
        arrival=arrival,
        adapter=draw_adapters(draws, popularity, adapters.base_share, names, arrival),
        prompt_tokens=prompt,
        output_tokens=output,
        max_tokens=output,
        adapters=names,
        tenant=tenant,
        tenants=tenants,
        deadline=_deadline(spec.deadline_s, draws, n),
        concurrency=None if arrivals.closed_loop is None else arrivals.closed_loop.concurrency,
    )


def _stream(scenario: Scenario, stream: Stream, draws: Draws, names: tuple[str, ...]) -> Workload:
    """The requests of one stream, over its own subset of the adapters."""
    spec = scenario.workload
    assert spec.duration_s is not None
    prompts, outputs = stream.input_tokens or spec.input_tokens, stream.output_tokens or spec.output_tokens
    assert prompts is not None and outputs is not None
    subset = np.array([*stream_positions(stream, names)], dtype=np.int64)
    own = tuple(names[i] for i in subset)
    end = min(stream.end_s or spec.duration_s, spec.duration_s)
    arrival = stream.start_s + stream.arrivals.draw(draws.rng("arrivals"), None, end - stream.start_s)
    n = len(arrival)
    # The scenario's weights cover all adapters; a stream over some of them takes only their weights.
    popularity = stream.popularity or _narrowed(scenario.adapters.popularity, names, subset)
    base_share = scenario.adapters.base_share if stream.base_share is None else stream.base_share
    local = draw_adapters(draws, popularity, base_share, own, arrival)
    prompt, output = draw_pairs(prompts, outputs, draws, n)
    labels = None if stream.tenant is None else Labels(np.zeros(n, dtype=np.int64), (stream.tenant,))
    tenant, tenants = own_tenants(labels, n)
    return Workload(
        arrival=arrival,
        adapter=np.append(subset, -1)[local],
        prompt_tokens=prompt,
        output_tokens=output,
        max_tokens=output,
        adapters=names,
        tenant=tenant,
        tenants=tenants,
        deadline=_deadline(stream.deadline_s or spec.deadline_s, draws, n),
        priority=None if stream.priority is None else np.full(n, stream.priority, dtype=np.int64),
    )


def _narrowed(popularity: PopularitySpec | None, names: tuple[str, ...], subset: Ints) -> PopularitySpec:
    if popularity is None:
        return PopularitySpec(uniform=True)
    weights = popularity.weights
    if weights is None:
        return popularity
    whole = [weights.get(name, 0.0) for name in names] if isinstance(weights, dict) else weights
    return PopularitySpec(weights=[whole[i] for i in subset.tolist()])


def _deadline(spec: Seconds | None, draws: Draws, n: int) -> Floats | None:
    return None if spec is None else spec.draw(draws.rng("deadline"), n)


def _cap(drawn: Workload, max_tokens: MaxTokens) -> tuple[Ints, Ints, int]:
    """Returns the true output lengths, the ``max_tokens`` that policies see, and how many outputs the cap cut."""
    output = drawn.output_tokens
    if max_tokens == "exact":
        return output, output.copy(), 0
    if max_tokens == "trace":
        return np.minimum(output, drawn.max_tokens), drawn.max_tokens, int((output > drawn.max_tokens).sum())
    longest = int(output.max()) if len(output) else 1
    limit = longest if max_tokens == "cap" else int(max_tokens)
    return np.minimum(output, limit), np.full(len(output), limit, dtype=np.int64), int((output > limit).sum())


def _tenants(spec: TenantsSpec, drawn: Workload, draws: Draws) -> tuple[Ints, tuple[str, ...]]:
    """Each request's tenant: its stream's or the trace's own, else by the map. "default" is listed only when used."""
    if spec.map.trace:
        mapped: Ints = np.zeros(len(drawn), dtype=np.int64)
        tenants: tuple[str, ...] = (BASE_TENANT,)
    else:
        tenants = spec.map.names(drawn.adapters) or (BASE_TENANT,)
        mapped = spec.map.assign(drawn.adapter, drawn.adapters, draws.rng("tenant"))
    own = tuple(name for name in drawn.tenants if name != UNDECIDED)
    _refuse_unknown(spec, (*own, *tenants), drawn.adapters)
    if own:
        every = tuple(dict.fromkeys((*own, *tenants)))
        by_map, by_own = positions(tenants, every)[mapped], positions(drawn.tenants, every)[drawn.tenant]
        mapped = np.where(by_own >= 0, by_own, by_map)
        # With streams that name tenants, tenants that the map could produce but does not are left out.
        used = np.unique(mapped)
        renumber = np.zeros(len(every), dtype=np.int64)
        renumber[used] = np.arange(len(used))
        return renumber[mapped], tuple(every[i] for i in used.tolist()) or (BASE_TENANT,)
    if len(tenants) > 1 and tenants[-1] == BASE_TENANT and not (mapped == len(tenants) - 1).any():
        tenants = tenants[:-1]
    return mapped, tenants


def _refuse_unknown(spec: TenantsSpec, tenants: Sequence[str], adapters: Sequence[str]) -> None:
    """Refuses weights, priorities and owners that name an unknown tenant or adapter, once the trace's are known."""
    unknown = spec.unknown((*tenants, BASE_TENANT))
    if unknown is not None:
        key, name = unknown
        raise InputError(f"tenants.{key} names the tenant {name!r}, which does not exist; there are {several(tenants)}")
    for tenant, owned in (spec.map.owners or {}).items():
        stranger = next((name for name in owned if name not in adapters), None)
        if stranger is not None:
            raise InputError(
                f"tenants.map.owners.{tenant} names the adapter {stranger!r}, which does not exist; "
                f"there are {several(adapters)}"
            )


def _priority(spec: TenantsSpec, drawn: Workload, tenant: Ints, tenants: tuple[str, ...]) -> Ints | None:
    """Each request's priority: its stream's or the trace's own, else its tenant's."""
    by_tenant = spec.priority_of(tenant, tenants)
    if drawn.priority is None:
        return by_tenant
    if by_tenant is not None and not (drawn.priority == UNSET).any():
        raise InputError("tenants.priorities is not used, because every request has a priority of its own: remove it")
    fallback = np.zeros(len(drawn), dtype=np.int64) if by_tenant is None else by_tenant
    return np.where(drawn.priority == UNSET, fallback, drawn.priority)


def _predicted(scenario: Scenario, output: Ints, adapter: Ints, draws: Draws) -> Ints | None:
    """Output lengths as a predictor would give them; None without a predictor."""
    how = scenario.workload.predicted_tokens
    if how == "none" or not len(output):
        return None
    if how == "exact":
        return output.copy()
    if isinstance(how, Noise):
        variance = float(np.log1p(how.noise**2))
        factor = draws.rng("predicted").lognormal(-variance / 2, variance**0.5, len(output))
        return np.maximum(np.rint(output * factor), 1).astype(np.int64)
    code = adapter + 1
    counts = np.bincount(code)
    means = np.bincount(code, weights=output) / np.maximum(counts, 1)
    return np.maximum(np.rint(means[code]), 1).astype(np.int64)
