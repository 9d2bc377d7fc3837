"""dlora: arrival order in which overtaking costs an adapter credit, and enough credit puts an adapter first."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Generator
from heapq import nsmallest
from itertools import islice

from loratory.policy import (
    Action,
    AdapterRemoved,
    AdapterView,
    Admitted,
    Arrived,
    BatchShape,
    Decisive,
    Ended,
    Event,
    InputError,
    Outcome,
    Policy,
    Preempted,
    RequestView,
    Schedule,
    View,
    want,
)

Credits = dict[str | None, float]
"""By adapter; None is the base model."""
Place = tuple[float, int, str | None]
"""Arrival of a request, its number among those that arrived, and its adapter."""


class DLora(Policy):
    """First come, first served with skip, in which each adapter has an account of credit, and so has the base model.

    Credit: in each decode step, an adapter whose request runs although an older one waits pays 1 / max_num_seqs to the
    adapter of that older one. So a full batch that overtakes moves one credit in a step, and credits add up to 0.

    First: an adapter with `credit` or more goes before all others, those with more credit first, until it has less than
    `keep` of that. If it finds no slot, the adapter in use with the least credit gets no more requests until its slot
    is free.

    Batch: while the requests of one adapter alone promise more output per second than all that could run, only that
    adapter's are admitted; for each older or free place that they keep others from, they pay. The cost model gives
    both times of a step. The batch ends when that adapter's output falls below `stay` of the others'.

    The artifact lets credit move in the same way, with 10,000 as the credit that puts an adapter first, half of that as
    its end, and 0.556 for `stay`. At 20 ms a step, 10,000 credits are minutes in which all others starve; the default
    here is less, so that it acts within a scenario.

    Not modelled:
        merged execution, the reason for dLoRA's batches of one adapter: here such a batch only saves the reading of
        other adapters, so it is rarely worth it, and the thresholds come from the cost model, not from AIMD; swaps of
        running requests to host memory (what runs goes on, so credit decides who is admitted); migration of requests
        and adapters between replicas.

    Parameters:
        credit: credit with which an adapter goes first: decode steps of a whole batch that overtook it.
        keep: share of `credit` below which it goes first no longer.
        batch: whether to admit one adapter alone while that promises more output.
        stay: share of the others' output below which such a batch ends.
    """

    only_waiting = True
    observes = (Arrived, Admitted, Preempted, Ended, AdapterRemoved)
    source = "dLoRA, OSDI 2024, credit-based batching; LLMServe/dLoRA-artifact, vllm/core/scheduler.py"
    decides_by: tuple[Decisive, ...] = ("adapter",)

    def __init__(self, credit: float = 500.0, keep: float = 0.5, batch: bool = True, stay: float = 0.556) -> None:
        if credit <= 0 or not 0 <= keep <= 1 or not 0 < stay <= 1:
            remedy = "give a credit above 0, a keep from 0 to 1 and a stay above 0 and up to 1"
            raise InputError(f"dlora: credit is {credit:g}, keep {keep:g} and stay {stay:g}: {remedy}")
        self.credit = credit
        self.keep = keep
        self.batch = batch
        self.stay = stay
        self.credits: Credits = {}
        self._flow: Credits = {}
        """Credits that each adapter gains with every decode step, until the next call."""
        self._steps = 0
        """Decode steps up to which credits have moved."""
        self._first: list[str | None] = []
        """Adapters that go first, those with the most credit in front."""
        self._draining: set[str] = set()
        """Adapters in use whose slots are wanted for those."""
        self._alone: AdapterView | None = None
        """The adapter that is admitted alone."""
        self._places: dict[RequestView, Place] = {}
        """Of the requests in flight."""
        self._running: list[Place] = []
        """In order of arrival."""
        self._waiting: list[Place] = []
        """In order of arrival."""
        self._demand: dict[str | None, int] = {}
        """Requests in flight by adapter."""
        self._number = 0

    def observe(self, event: Event) -> None:
        """Keep what runs and what waits in order of arrival; forget an adapter that is removed."""
        if isinstance(event, AdapterRemoved):
            self.credits.pop(event.adapter, None)
            self._flow.pop(event.adapter, None)
            self._first = [name for name in self._first if name != event.adapter]
            if self._alone is not None and self._alone.name == event.adapter:
                self._alone = None
        elif isinstance(event, (Arrived, Admitted, Preempted, Ended)):
            request = event.request
            place = self._places.pop(request, None)
            if place is None:
                self._number += 1
                place = (request.arrival, self._number, request.adapter)
                self._demand[request.adapter] = self._demand.get(request.adapter, 0) + 1
            else:
                for places in (self._waiting, self._running):
                    at = bisect_left(places, place[:2])  # numbers differ, so that adapters are not compared
                    if at < len(places) and places[at] is place:
                        del places[at]
            if isinstance(event, Ended):
                self._demand[request.adapter] -= 1
                if not self._demand[request.adapter]:
                    del self._demand[request.adapter]
                if event.status != "completed":
                    self._flow = {}  # who was overtaken may be gone, and no call is due
            else:
                self._places[request] = place
                insort(self._running if isinstance(event, Admitted) else self._waiting, place)

    def schedule(self, view: View) -> Schedule:
        """Move credit, then admit: adapters with enough credit, or one adapter alone, or in arrival order."""
        self._settle(view)
        if view.can_admit:
            yield from self._admit(view)
        self._flow = self._flows(view)

    def _settle(self, view: View) -> None:
        """Move the credit of the steps since the last call, and see who goes first."""
        steps, self._steps = view.decode_steps - self._steps, view.decode_steps
        if not self._flow or not steps:
            return
        for name, gained in self._flow.items():
            self.credits[name] = self.credits.get(name, 0.0) + gained * steps
        first = [name for name in self._first if self.credits[name] >= self.credit * self.keep]
        first += [name for name in self._flow if self.credits[name] >= self.credit and name not in first]
        self._first = sorted(first, key=lambda name: (-self.credits[name], self._of(view, name).lora_int_id))

    def _admit(self, view: View) -> Schedule:
        waiting = view.backlogged
        first = [name for name in self._first if name in waiting] if self._first else []
        blocked = 0
        for name in first:
            adapter = self._of(view, name)
            if adapter.tier == "loading":
                continue
            why = (yield from self._admit_for(view, name)) if self._reachable(view, adapter) else "slots"
            blocked += why == "slots"
            if why not in ("slots", "adapter", None):
                return
        self._drain(view, blocked)
        if first:
            self._alone = None
        elif self.batch and (alone := self._choose_alone(view)) is not None:
            yield from self._admit_for(view, alone.name)
            return
        for request in view.unblocked(without=self._draining):
            outcome = yield from want(view, request)
            if not outcome and outcome.why not in ("slots", "adapter"):
                return

    def _admit_for(self, view: View, name: str | None) -> Generator[Action, Outcome, str | None]:
        """Admit an adapter's requests in arrival order; the word of the refusal that stopped that, or None."""
        for request in view.waiting_for(name):
            outcome = yield from want(view, request)
            if not outcome:
                return outcome.why
        return None

    def _drain(self, view: View, wanted: int) -> None:
        """Choose the adapters that get no more requests, so that slots become free: those with the least credit."""
        if not wanted:
            self._draining = set()
            return
        in_use = {a.name: a for a in view.on_gpu.values() if a.references and not a.pinned and a.name is not None}
        kept = [name for name in in_use if name in self._draining][:wanted]
        others = [a for name, a in in_use.items() if name not in kept and name not in self._first]
        more = nsmallest(wanted - len(kept), others, key=lambda a: (self.credits.get(a.name, 0.0), a.lora_int_id))
        self._draining = {*kept, *(a.name for a in more if a.name is not None)}

    def _choose_alone(self, view: View) -> AdapterView | None:
        """The adapter to admit alone: the one that is, while that promises enough, or the one with the most requests.

        It must have a slot, or get one now: what it waits for must not keep all others waiting.
        """
        seats, number = self._seats(view), len(self._places)
        number = min(seats, number)
        alone, demand = self._alone, self._demand
        if not demand:
            return None  # nothing is in flight: it is asked because it prefetches
        if alone is not None and demand.get(alone.name, 0) >= self.stay * number and self._reachable(view, alone):
            return alone
        self._alone = None
        name = max(demand, key=demand.__getitem__)
        if demand[name] < self.stay * number or name not in view.backlogged:
            return None
        most, wanted = self._of(view, name), min(seats, demand[name])
        if not self._reachable(view, most):
            return None
        if wanted == number or wanted * self._step_s(view, number, None) > number * self._step_s(view, wanted, most):
            self._alone = most
        return self._alone

    def _seats(self, view: View) -> int:
        return view.seq_budget + len(view.running)

    def _reachable(self, view: View, adapter: AdapterView) -> bool:
        """Whether requests of an adapter can be admitted now, as far as slots go."""
        return adapter.tier == "gpu" or view.slot_obtainable

    def _step_s(self, view: View, number: int, alone: AdapterView | None) -> float:
        """Seconds of a decode step of so many requests: of one adapter, or of all that would be in the batch."""
        if alone is not None:
            ranks = [alone.rank] if alone.rank else []
            with_adapter = number if alone.rank else 0
        else:
            others = (self._of(view, name) for name in view.backlogged if name not in view.on_gpu)
            adapters = [a for a in view.on_gpu.values() if a.name in self._demand]
            adapters += islice((a for a in others if a.rank), max(0, view.max_loras - len(adapters)))
            ranks = [adapter.rank for adapter in adapters]
            with_adapter = max(0, number - self._demand.get(None, 0)) if ranks else 0
        used = view.kv_total_tokens - view.kv_free_tokens
        shape = BatchShape(
            decode_seqs=number,
            kv_tokens=used * number // max(1, len(view.running)),
            distinct_adapters=len(ranks),
            sum_ranks=sum(ranks),
            max_rank=max(ranks, default=0),
            lora_tokens=with_adapter,
            lora_token_ranks=with_adapter * sum(ranks) // max(1, len(ranks)),
        )
        return view.cost.step_seconds(shape)

    def _flows(self, view: View) -> Credits:
        """Credits that move in each step until the next call.

        In arrival order, of three places:            runs       a1  b3  a6        waits       c2  c4  c7
            in arrival order these would run            a1  c2  b3
            a6 took the place of c2: a pays c           c4 and c7 would have to wait anyway
        """
        running, waiting, alone = self._running, self._waiting, self._alone
        low, high = 0, min(len(running), len(waiting))
        while low < high:  # how many are overtaken: one more that waits is younger, one more that runs older
            most = (low + high + 1) // 2
            since, came = waiting[most - 1][0], running[-most][0]
            if since < came or (since == came and alone is not None):
                low = most
            else:
                high = most - 1
        kept_out = 0 if alone is None else view.seq_budget
        if not low and not kept_out:
            return {}
        flow = Counter([name for _, _, name in waiting[: low + kept_out]])
        flow.subtract([name for _, _, name in running[len(running) - low :]])
        if alone is not None:
            flow[alone.name] -= min(len(waiting), low + kept_out) - low
        seats = self._seats(view)
        return {name: gained / seats for name, gained in flow.items() if gained}

    def _of(self, view: View, name: str | None) -> AdapterView:
        return view.base if name is None else view.adapters[name]
