"""replay: a recorded run through an engine, step by step, with the recorded times in place of a cost model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from loratory.errors import InputError
from loratory.serving.engine import Engine
from loratory.serving.plan import AdapterLoad, BatchShape, StepPlan, StepResult
from loratory.serving.policy import PolicyLike
from loratory.serving.request import Request
from loratory.serving.run_recording import RecordedChange, Recording, adapter_of

_EMPTY = BatchShape()


@dataclass(frozen=True, slots=True)
class ReplayedStep:
    """What the engine did at a recorded step.

    ``shape`` is empty where it had nothing to compute. ``lora_prefill_tokens``: those of ``shape.prefill_tokens`` that
    have an adapter. ``first`` and ``last``: requests that got their first or last token at its end. ``loads``: adapter
    loads it started. ``waiting``: requests left in the queue.
    """

    shape: BatchShape = _EMPTY
    lora_prefill_tokens: int = 0
    first: tuple[str, ...] = ()
    last: tuple[str, ...] = ()
    loads: tuple[AdapterLoad, ...] = ()
    waiting: int = 0


MakePolicy = Callable[[str], PolicyLike]
"""Makes the policy that a spec names."""


def replay(engine: Engine, recording: Recording, make_policy: MakePolicy | None = None) -> list[ReplayedStep]:
    """Drive a fresh engine through a recording; the answer has one entry for each recorded step.

    ``make_policy`` makes the policies that the recording puts in.

    The engine decides what runs, the recording when: where both schedule alike, shapes, first and last tokens are those
    of the real run, and the caller compares them. Requests the engine did not end are left in ``engine.unfinished``.
    Raises `PolicyError` when the policy fails, and `InputError` when a change of the recording cannot be repeated.
    """
    played: list[ReplayedStep] = []
    requests, loads = list(reversed(recording.requests)), list(reversed(recording.loads))
    changes = list(reversed(recording.changes))
    outputs = dict(recording.output_tokens)
    again = {request_id: iter(lengths) for request_id, lengths in recording.again.items()}
    known: set[str] = set()

    def arrive(request: Request) -> None:
        request_id = request.request_id
        if request_id in again:
            if request_id in known:
                outputs[request_id] = next(again[request_id])
            known.add(request_id)
        engine.submit(request)

    for start_s, end_s, load_s, failed in recording.steps:
        while changes and changes[-1].at_s <= start_s:
            while requests and requests[-1].arrival <= changes[-1].at_s:
                arrive(requests.pop())
            repeat_change(engine, changes.pop(), make_policy)
        while requests and requests[-1].arrival <= start_s:
            arrive(requests.pop())
        while loads and loads[-1].done_s <= start_s:
            load = loads.pop()
            if load.failed is None:
                engine.loaded(load.adapter, load.prefetch)
            else:
                engine.load_failed(load.adapter, load.failed, load.prefetch)
        plan = engine.plan(start_s)
        waiting = len(engine.view.waiting)
        if plan is None:
            played.append(ReplayedStep(waiting=waiting))
            continue
        engine.expect_loads(plan, start_s)
        first, last = tokens_given(plan, outputs)
        lora = sum(prefill.tokens for prefill in plan.prefills if prefill.sequence.adapter.rank)
        played.append(ReplayedStep(plan.shape, lora, first, last, plan.loads, waiting))
        engine.commit(plan, StepResult(1, last, load_s, failed), end_s)
    return played


def repeat_change(engine: Engine, change: RecordedChange, make_policy: MakePolicy | None) -> None:
    """Order what was ordered then."""
    at_s, kind, values = change
    if kind == "add":
        engine.add_adapter(adapter_of(values), at_s)
    elif kind == "abort":
        engine.abort(*values)
    elif kind == "fail":
        engine.abort(values[0], values[1], "failed")
    elif kind == "max_num_seqs":
        engine.limit_seqs(values[0], _nobody)
    elif kind == "put_back":
        engine.put_back(values[0])
    elif kind == "swap":
        if make_policy is None:
            raise InputError(f"the recording puts in policy {values[0]!r}: say how policies are made (make_policy)")
        make = partial(make_policy, values[0])
        engine.swap(make(), at_s, make)
    else:
        order = {
            "remove": engine.adapters.remove,
            "pin": engine.adapters.pin,
            "unpin": engine.adapters.unpin,
            "preload": engine.adapters.preload,
        }[kind]
        order(values[0], _nobody)


def _nobody(_: str) -> None:
    """Takes the answer to an order that nobody waits for."""


def tokens_given(plan: StepPlan, output_tokens: Mapping[str, int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The requests that get their first, and those that get their last token from a plan."""
    begun = [prefill.sequence for prefill in plan.prefills if prefill.completes]
    first = tuple(sequence.request_id for sequence in begun if sequence.first_token_at is None)
    sampled = [*plan.decodes, *begun]  # in the order of a batch's rows, as the executor ends them
    last = (s.request_id for s in sampled if s.generated + 1 >= output_tokens[s.request_id])
    return first, tuple(last)
