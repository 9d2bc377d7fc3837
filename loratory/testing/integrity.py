"""check: recomputes every incremental quantity of a ledger from scratch and says which one disagrees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from loratory.serving.ledger import Ledger
from loratory.serving.sequence import Sequence
from loratory.serving.usage import Usage
from loratory.serving.wait_queue import WaitQueue

Same = Callable[[str, object, object], None]
Holds = Callable[[str, bool], None]


class IntegrityError(AssertionError):
    """The ledger's books disagree with what they stand for: a bug in the core, never a user's fault."""


def check(ledger: Ledger, ended: Iterable[Sequence] | None = None) -> None:
    """Raise `IntegrityError` naming every quantity that disagrees. Must pass after each plan and each commit.

    ``ended``: every sequence of this engine that has ended so far, if the caller kept them; then the service tallies of
    tenants and adapters are checked exactly, otherwise from below. Costs time linear in requests and adapters.
    """
    wrong: list[str] = []

    def same(what: str, kept: object, found: object) -> None:
        if kept != found:
            wrong.append(f"{what} is {kept!r}, recomputed {found!r}")

    def holds(what: str, true: bool) -> None:
        if not true:
            wrong.append(what)

    _requests(ledger, same, holds)
    _queues(ledger, same, holds)
    _adapters(ledger, same, holds)
    _host(ledger, same, holds)
    _kv(ledger, same, holds)
    _budgets(ledger, holds)
    _tallies(ledger, None if ended is None else list(ended), same, holds)
    if wrong:
        raise IntegrityError(f"ledger at {ledger.now:.9g} s: " + "; ".join(wrong))


def _requests(ledger: Ledger, same: Same, holds: Holds) -> None:
    """States, and the sets they imply."""
    by_state: dict[str, list[str]] = {"waiting": [], "running": []}
    for request_id, sequence in ledger.sequences.items():
        holds(f"request {request_id} is kept under its id", request_id == sequence.request_id)
        holds(f"request {request_id} in flight has state {sequence.state}", sequence.state in by_state)
        by_state.setdefault(sequence.state, []).append(request_id)
        holds(f"request {request_id} in flight has ended_at", sequence.ended_at is None)
        holds(
            f"request {request_id} decodes while {sequence.state}", not sequence.decoding or sequence.state == "running"
        )
        generated, most = sequence.generated, sequence.max_tokens
        # a step that is planned ahead follows one whose last tokens are not committed yet
        open_ = generated <= most if ledger.config.async_scheduling else generated < most
        holds(f"request {request_id} generated {generated} of {most}", open_)
    running = {i: s for i, s in ledger.sequences.items() if s.state == "running"}
    same(
        "set of waiting requests",
        sorted(s.request_id for s in ledger.waiting.by_ticket.values()),
        sorted(by_state["waiting"]),
    )
    same("set of running requests", sorted(ledger.running), sorted(running))
    same("set of decoding requests", sorted(ledger.decoding), sorted(i for i, s in running.items() if s.decoding))
    paused = {**ledger.held, **ledger.seated}
    same(
        "set of part-prefilled requests",
        sorted(ledger.partial),
        sorted(i for i, s in running.items() if not s.decoding and i not in paused),
    )
    holds("requests that are held or seated run", paused.keys() <= running.keys())
    order = [i for i in ledger.running if i in ledger.partial]
    same("order of part-prefilled requests", list(ledger.partial), order)
    for request_id, prefill in ledger.prefills.items():
        sequence, start, tokens = prefill.sequence, prefill.start, prefill.tokens
        same(f"completion of the chunk of {request_id}", prefill.completes, start + tokens == sequence.target)
        holds(f"prefill of {request_id}, which is not part-prefilled", ledger.partial.get(request_id) is sequence)
        holds(f"prefill of {request_id} from {start} has {tokens} tokens", tokens >= 1)
        same(f"prefilled of {request_id}", sequence.prefilled, start + tokens)
    for request_id, sequence in ledger.partial.items():
        most = sequence.target if request_id in ledger.prefills else sequence.target - 1
        holds(f"prefilled of {request_id} is {sequence.prefilled} of {sequence.target}", sequence.prefilled <= most)
    for request_id, sequence in ledger.decoding.items():
        due = ledger.clock[0] + sequence.max_tokens - sequence.generated
        same(f"finish clock of {request_id}", sequence.finish_clock, due)


def _queues(ledger: Ledger, same: Same, holds: Holds) -> None:
    """Queues by arrival, adapter and tenant, and the index over them."""
    index, table = ledger.waiting, ledger.waiting.by_ticket
    for ticket, sequence in table.items():
        same(f"ticket of {sequence.request_id}", sequence.ticket, ticket)
        holds(f"request {sequence.request_id} waits with state {sequence.state}", sequence.state == "waiting")

    def queue(what: str, kept: WaitQueue, members: list[Sequence]) -> None:
        expected = [s.request_id for s in sorted(members, key=lambda s: s.ticket)]
        same(f"queue of {what}", [s.request.request_id for s in kept.sequences()], expected)
        same(f"length of the queue of {what}", len(kept), len(expected))
        first = kept.first()
        head = None if first is None else first.request.request_id
        same(f"head of the queue of {what}", head, next(iter(expected), None))

    queue("all", ledger.waiting.queue, list(table.values()))
    states = [ledger.base, *ledger.adapters.values()]
    for state in states:
        queue(f"adapter {state.name}", state.queue, [s for s in table.values() if s.adapter is state])
    for tenant in ledger.tenants.values():
        queue(f"tenant {tenant.name}", tenant.queue, [s for s in table.values() if s.tenant is tenant])
    backlogged = {state.name for state in states if any(s.adapter is state for s in table.values())}
    same("set of backlogged adapters", set(index.backlogged), backlogged)
    cold = set(index._cold)
    for state in ledger.adapters.values():
        first = state.queue.first()
        if first is not None and state.tier not in ("gpu", "loading"):
            holds(f"adapter {state.name} waits off the GPU and is not indexed", (first.ticket, state.name) in cold)


def _adapters(ledger: Ledger, same: Same, holds: Holds) -> None:
    """Slots, references and the statistics of the batch."""
    users = Counter(s.adapter.name for i, s in ledger.running.items() if i not in ledger.seated)
    tenants = Counter(s.tenant.name for s in ledger.running.values())
    for state in (ledger.base, *ledger.adapters.values()):
        same(f"running requests of {state.name}", state.running, users[state.name])
        holds(f"adapter {state.name} is in use on tier {state.tier}", state.tier == "gpu" or not users[state.name])
        flying = state.tier == "loading" or state.prefetching
        holds(f"adapter {state.name} is not on its way and has an eta of {state.eta}", flying or state.eta is None)
    for tenant in ledger.tenants.values():
        same(f"running requests of tenant {tenant.name}", tenant.running, tenants[tenant.name])
    by_tier = {t: sorted(n for n, s in ledger.adapters.items() if s.tier == t) for t in ("gpu", "loading")}
    same("set of adapters on the GPU", sorted(map(str, ledger.slots.on_gpu)), by_tier["gpu"])
    same("set of adapters on the way", sorted(map(str, ledger.slots.loading)), by_tier["loading"])
    idle = sorted(n for n in by_tier["gpu"] if not users[n] and not ledger.adapters[n].pinned)
    same("set of idle adapters", sorted(map(str, ledger.slots.idle)), idle)
    same("set of views of adapters on the GPU", sorted(ledger.slots.views), by_tier["gpu"])
    taken = len(ledger.slots.on_gpu) + len(ledger.slots.loading)
    holds(f"{taken} of {ledger.slots.max_loras} slots are taken", taken <= ledger.slots.max_loras)
    same("free slots", ledger.slots.free, ledger.slots.max_loras - taken)
    ranks = [ledger.adapters[name].rank for name in users if name is not None]
    same("active adapters", ledger.batch.adapters, len(ranks))
    same("sum of ranks", ledger.batch.sum_ranks, sum(ranks))
    same("largest rank", ledger.batch.max_rank, max(ranks, default=0))
    same("count by rank", dict(ledger.batch.ranks), dict(Counter(ranks)))
    decoding = [s.adapter.rank for s in ledger.decoding.values() if s.adapter.rank]
    same("decoding requests with an adapter", ledger.batch.decoding, len(decoding))
    same("sum of their ranks", ledger.batch.decoding_ranks, sum(decoding))


def _host(ledger: Ledger, same: Same, holds: Holds) -> None:
    """The host cache: a superset of the GPU slots, within its limit."""
    held = {name for name, s in ledger.adapters.items() if s.tier in ("gpu", "loading", "host") or s.prefetching}
    same("set of adapters in host memory", set(ledger.host_cache.held), held)
    holds(
        f"{len(held)} of {ledger.host_cache.max_cpu_loras} host places are taken",
        len(held) <= ledger.host_cache.max_cpu_loras,
    )


def _kv(ledger: Ledger, same: Same, holds: Holds) -> None:
    """KV blocks used and the phases that say when the next ones are needed."""
    kv, clock = ledger.kv, ledger.clock[0]
    size = kv.block_size
    used = sum(s.blocks for s in ledger.adapters.values() if s.tier in ("gpu", "loading"))
    phases = [0] * size
    for sequence in ledger.running.values():
        if sequence.decoding:
            tokens = sequence.request.prompt_tokens + sequence.generated - 1
            same(f"KV tokens of {sequence.request_id}", sequence.kv_tokens, tokens)
            used += -(-(tokens + kv.reserved) // size)
            phases[(clock - tokens) % size] += 1
        else:
            blocks = -(-sequence.prefilled // size)
            same(f"KV blocks of {sequence.request_id}", sequence.blocks, blocks)
            used += blocks
    same("KV blocks used", kv.used, used)
    holds(f"{kv.used} of {kv.total} KV blocks are used", 0 <= kv.used <= kv.total)
    same("KV phases", list(kv.phases), phases)
    same("decoding requests in the KV pool", kv.decoding, len(ledger.decoding))
    same("KV tokens read", kv.tokens_read, sum(s.kv_tokens for s in ledger.decoding.values()))


def _budgets(ledger: Ledger, holds: Holds) -> None:
    """The step being planned."""
    running, most = len(ledger.running), ledger.config.max_num_seqs
    holds(f"{running} requests run and max_num_seqs is {most}", running <= most)
    tokens = sum(prefill.tokens for prefill in ledger.prefills.values())
    tokens += len(ledger.decoding) if ledger.kv.reserved else 0
    limit = ledger.config.max_num_batched_tokens
    holds(f"a step of {tokens} tokens and max_num_batched_tokens is {limit}", tokens <= limit)
    holds(f"the token budget is {ledger.token_budget}", 0 <= ledger.token_budget <= limit)


def _tallies(ledger: Ledger, ended: list[Sequence] | None, same: Same, holds: Holds) -> None:
    """Service given to tenants and adapters."""
    known = [*ledger.sequences.values(), *(ended or ())]
    units: list[tuple[str, Usage, list[Sequence]]] = [
        *((f"tenant {t.name}", t, [s for s in known if s.tenant is t]) for t in ledger.tenants.values()),
        *(
            (f"adapter {a.name}", a, [s for s in known if s.adapter is a])
            for a in (ledger.base, *ledger.adapters.values())
        ),
    ]
    for what, usage, members in units:
        same(f"decoding requests of {what}", usage.decoding, sum(s.decoding for s in members))
        same(
            f"waiting requests of {what}",
            usage.waiting,
            sum(s.state == "waiting" and s.request_id in ledger.sequences for s in members),
        )
        prompts = sum(s.request.prompt_tokens for s in members if s.admissions)
        outputs = sum(s.generated for s in members)
        if ended is None:
            holds(
                f"admitted tokens of {what} are {usage.admitted_tokens}, in flight {prompts}",
                usage.admitted_tokens >= prompts,
            )
            holds(
                f"output tokens of {what} are {usage.output_tokens}, in flight {outputs}",
                usage.output_tokens >= outputs,
            )
        else:
            same(f"admitted tokens of {what}", usage.admitted_tokens, prompts)
            same(f"output tokens of {what}", usage.output_tokens, outputs)
