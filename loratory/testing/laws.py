"""laws: what holds in every run, whatever the policy does, and what must hold between two runs of a policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import zip_longest
from typing import Any

from loratory.reports.outcomes import probable_cause
from loratory.serving.events import Admitted, Arrived, Stepped
from loratory.serving.policy import PolicyLike
from loratory.serving.sequence import sequence_of
from loratory.testing.broken_law import BrokenLaw, require
from loratory.testing.integrity import IntegrityError, check
from loratory.testing.run import Run, Values, run
from loratory.testing.world import World

LAWS = {
    "integrity": "the engine's books agree with a recount at each step",
    "limits": "no step exceeds tokens, requests, slots, KV or pins",
    "conservation": "every request ends once, and no token is lost",
    "outputs": "outputs are complete, and their times add up",
    "time": "nothing happens before its cause",
    "jumps": "jumps and single steps give the same decisions",
    "determinism": "the same world gives the same run again",
}
"""Every law by name, in one sentence."""

FINAL = ("completed", "rejected", "aborted", "failed")


def assert_laws(policy: Callable[[], PolicyLike], world: World, **options: Any) -> Run:
    """Every law of `LAWS` on a world, under policies that ``policy()`` makes; returns the checked run.

    ``options`` are those of `loratory.testing.run`. Raises `BrokenLaw`, and `PolicyError` when the policy fails.
    """
    checked = run(world, policy, **options)
    assert_run(checked)
    stepped = run(world, policy, check_books=False, **{**options, "jump": False})
    assert_same("jumps", checked, stepped)
    assert_same("determinism", checked, run(world, policy, check_books=False, **options))
    return checked


def assert_same(law: str, one: Run, other: Run) -> None:
    """Two runs have the same decisions, ends and outcome; "determinism": the same events, one by one."""
    for mine, others in zip(one.decisions, other.decisions, strict=True):
        _assert_equal(law, "decision", list(map(_told, mine)), list(map(_told, others)))
    _assert_equal(law, "end", sorted(one.of("Ended")), sorted(other.of("Ended")))
    _assert_equal(law, "outcome", [one.outcome], [other.outcome])
    if law == "determinism":
        for mine, others in zip(one.flat, other.flat, strict=True):
            _assert_equal(law, "event", mine, others)


def _assert_equal(law: str, what: str, mine: list[Any], others: list[Any]) -> None:
    if mine == others:
        return
    place, first, second = next(
        (place, first, second)
        for place, (first, second) in enumerate(zip_longest(mine, others, fillvalue="none"), start=1)
        if first != second
    )
    raise BrokenLaw(law, f"{what} {place} is {first}, and {second} the other time")


def _told(decision: Values) -> str:
    _, now, (kind, *values), (_, ok, why) = decision
    return f"{kind}({', '.join(map(repr, values))}) at {now!r} s ({'done' if ok else f'refused: {why}'})"


def assert_run(result: Run, everything_sent: bool = True) -> None:
    """The laws of one run whose books were checked. ``everything_sent``: no cutoff kept requests from arriving."""
    _conserves_requests(result, everything_sent)
    for request_id in result.ended:
        _outputs(result, request_id)
    _turns(result)
    for place in range(len(result.engines)):
        _conserves_tokens(result, place)


def _conserves_requests(result: Run, everything_sent: bool) -> None:
    arrived = Counter(event[2] for event in result.of("Arrived"))
    ended = Counter(event[2] for event in result.of("Ended"))
    if everything_sent:
        sent = [str(index) for index in range(len(result.world.workload))]
        require(sorted(arrived, key=int) == sent, "conservation", f"{len(arrived)} of {len(sent)} requests arrived")
    twice = arrived == ended and max(ended.values(), default=1) == 1
    require(twice, "conservation", f"requests arrived {dict(arrived)} times and ended {dict(ended)} times")


def _outputs(result: Run, request_id: str) -> None:
    """One request: its status, times and tokens."""
    event, index = result.ended[request_id], int(request_id)
    sequence, what = sequence_of(event.request), f"request {request_id} ({event.status})"
    final = event.status in FINAL and sequence.state == event.status
    require(final, "conservation", f"{what} ended in state {sequence.state}")
    times = [sequence.request.arrival, sequence.admitted_at, sequence.first_token_at, sequence.ended_at]
    known = [time for time in times if time is not None]
    require(known == sorted(known), "time", f"{what} has arrival, admission, first token, end at {times}")
    require(sequence.ended_at == event.now, "time", f"{what} ended at {sequence.ended_at}, told at {event.now}")
    most = result.world.output_limit(index)
    expected = min(int(result.world.workload.output_tokens[index]), most)
    if event.status == "completed":
        right = sequence.generated == expected
        require(right, "outputs", f"{what} generated {sequence.generated} tokens, not {expected}")
        parts = [
            sequence.queue_s,
            sequence.load_wait_s,
            sequence.prefill_s,
            sequence.decode_s,
            sequence.preempted_s,
        ]
        counted = [part for part in parts if part is not None and part >= -1e-9]
        require(len(counted) == len(parts), "outputs", f"{what} has the times {parts}")
        e2e = event.now - sequence.request.arrival
        adds_up = abs(sum(counted) - e2e) <= 1e-9 * max(1.0, event.now)
        require(adds_up, "outputs", f"{what} took {e2e} s, and its parts are {parts}")
    else:
        fewer = sequence.generated < max(expected, 1) or event.status == "aborted"
        require(fewer, "outputs", f"{what} generated all its {expected} tokens")
    if event.status == "rejected" and event.why.startswith("prompt of"):
        require(most < 1, "limits", f"{what} was refused ({event.why}), and it fits")
    if most < 1:
        require(event.status == "rejected", "limits", f"{what} can never fit")


def _turns(result: Run) -> None:
    """A turn comes exactly when the one before has ended, and its delay is over."""
    work = result.world.workload
    for turn, before in enumerate([] if work.after is None else work.after.tolist()):
        if before >= 0 and str(turn) in result.ended:
            assert work.delay_s is not None
            due = result.ended[str(before)].now + float(work.delay_s[turn])
            arrival = result.ended[str(turn)].request.arrival
            require(arrival == due, "time", f"turn {turn} follows {before}: it arrived at {arrival}, due at {due}")


def _conserves_tokens(result: Run, place: int) -> None:
    """One replica: nothing is left in its engine, and every token is accounted for."""
    engine, events = result.engines[place], result.events[place]
    ledger = engine.ledger
    left = len(ledger.sequences) + len(ledger.running) + len(ledger.waiting) + engine.unfinished
    require(not left, "conservation", f"{left} requests are left in the engine at the end")
    held = sum(a.blocks for a in ledger.adapters.values() if a.tier in ("gpu", "loading"))
    require(
        ledger.kv.used == held, "conservation", f"{ledger.kv.used} KV blocks are used at the end, {held} by adapters"
    )
    try:
        check(ledger, engine.ended_sequences)
    except IntegrityError as error:
        raise BrokenLaw("integrity", str(error)) from error
    for sequence in engine.ended_sequences:
        name, request = sequence.request_id, sequence.request
        right = engine.sampled[name] == sequence.generated
        require(right, "outputs", f"request {name} got {engine.sampled[name]} tokens and has {sequence.generated}")
        if sequence.state == "completed":
            least, computed = request.prompt_tokens - request.cached_tokens, engine.prefill_tokens[name]
            right = computed >= least if sequence.preemptions else computed == least
            require(right, "conservation", f"{computed} prompt tokens of request {name} were computed, of {least}")
    decoded = sum(e.steps * e.shape.decode_seqs for e in events if isinstance(e, Stepped))
    prefilled = sum(e.shape.prefill_tokens for e in events if isinstance(e, Stepped))
    computed = sum(engine.prefill_tokens.values())
    require(prefilled == computed, "conservation", f"steps computed {prefilled} prompt tokens, requests {computed}")
    firsts = sum(sequence.admissions for sequence in engine.ended_sequences)
    total = sum(engine.sampled.values())
    right = total - firsts <= decoded <= total
    require(right, "conservation", f"steps decoded {decoded} tokens, requests {total}")
    for event in events:
        if isinstance(event, Arrived | Admitted) and event.request.arrival > event.now:
            raise BrokenLaw("time", f"{event} is before its arrival")


def assert_serves(result: Run) -> None:
    """No request was left waiting for ever: not a law, as a policy may choose to starve some."""
    left = result.outcome.never_served
    if not left:
        return
    loads = sum(kind == "LoadStarted" for flat in result.flat for kind, *_ in flat)
    cause = probable_cause(result.outcome.refusals, loads, not result.of("Admitted"))
    why = f"; {cause}" if cause else ""
    sent = len(result.world.workload)
    raise BrokenLaw("serves", f"{left} of {sent} requests were never served: the policy left them waiting{why}")


def assert_clock(result: Run) -> None:
    """Events come in order of time; a step counts from when it is over."""
    for events in result.events:
        clock = float("-inf")
        for event in events:
            now = event.end if isinstance(event, Stepped) else event.now
            if now < clock or (isinstance(event, Stepped) and event.start > event.end):
                raise BrokenLaw("time", f"{event} comes after {clock} s")
            clock = now
