"""profiler: drives a machine through a designed set of batches and times every step and every adapter load."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from loratory.executor.clock import RealClock
from loratory.executor.executor import Executor
from loratory.executor.generation import Generation
from loratory.executor.machine import Machine
from loratory.serving.events import EventHandlers, Stepped
from loratory.serving.lora import Adapter
from loratory.serving.plan import BatchShape, CostView
from loratory.serving.policy import PolicyLike
from loratory.serving.request import Request

LEAST_PHASES = 5
"""Every fifth phase is held out of the fit (`loratory.experiment.calibrate`), and one must be."""

_LOADING = 0.1
"""Share of the seconds after which adapters are no longer timed again, nor others of a rank that has been timed."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a phase: sent before step ``step``, tokens in and out, and its adapter (None: the base model)."""

    step: int
    prompt_tokens: int
    output_tokens: int
    adapter: str | None


@dataclass(frozen=True, slots=True)
class Design:
    """What to cover: up to ``seqs`` sequences of up to ``context`` tokens, prefill steps of up to ``batched_tokens``.

    At most ``phases`` are drawn; each is measured twice, so that the noise between equal steps is known. ``seconds``
    is for everything. At least `LEAST_PHASES` are drawn; what does not fit into the seconds is cut off at a step.
    """

    seqs: int
    context: int
    batched_tokens: int
    phases: int = 40
    seconds: float = 240.0


@dataclass(frozen=True, slots=True)
class StepSample:
    """One step: its shape, the mean seconds of its runs, and those of each run: two, or one where time ran out."""

    phase: int
    shape: BatchShape
    seconds: float
    runs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LoadSample:
    """One adapter: seconds from disk to host memory, and from there to a slot; median of repeats."""

    rank: int
    bytes: int
    disk_s: float
    host_s: float


@dataclass(frozen=True, slots=True)
class Measurements:
    """All samples, and the median relative difference between two runs of one step."""

    steps: tuple[StepSample, ...]
    loads: tuple[LoadSample, ...]
    noise: float | None


def measure(
    machine: Machine,
    adapters: Sequence[Adapter],
    policy: Callable[[], PolicyLike],
    cost: CostView,
    design: Design,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
    between: Callable[[int, int], None] | None = None,
) -> Measurements:
    """Time a machine. ``adapters`` (no more than it has slots) are used in turn; ``policy`` should be ``fifo``.

    A phase is a list of arrivals at step numbers, so all runs of it form the same batches. All phases run once to warm
    up (kernels are compiled for new shapes), then all once and all again, so that the noise includes what changes on a
    machine within minutes. The first runs get a third of the seconds; a phase that takes more than its share is cut off
    at a step, and its later runs end there at the latest: earlier, or not at all, if the machine has become slower.

    ``progress(what, done, total)`` receives percents. ``between(done, total)`` is called after each timed phase, and
    its time does not count: runs that should share the profile's minutes, such as those it is compared with, go there.
    """
    rng = np.random.default_rng(seed)
    names = [adapter.name for adapter in adapters]
    phases: list[list[Arrival]] = []
    lengths: list[int] = []
    runs: list[list[list[tuple[BatchShape, float]]]] = [[], [], []]
    began, paused = time.perf_counter(), 0.0
    loads = tuple(_loads(machine, adapters, began + _LOADING * design.seconds))
    left = design.seconds - (time.perf_counter() - began)

    def spent() -> float:
        return time.perf_counter() - began - paused

    for turn in range(3):
        ends = design.seconds - left * (2 - turn) / 3
        for number in range(design.phases if not turn else len(runs[turn - 1])):
            if not turn:
                phases.append(draw_phase(rng, design, names, number))
            share = (ends - spent()) / max(1, LEAST_PHASES - number)
            most = lengths[number] if turn else None
            timed, steps = _run(machine, adapters, policy(), cost, phases[number], rng, share, most)
            if not turn:
                lengths.append(steps)
            runs[turn].append(timed)
            if progress is not None:
                runs_done = (turn + (number + 1) / (len(phases) if turn else design.phases)) / 3
                done = min(1.0, max(spent() / design.seconds, runs_done))
                progress(f"percent; run {turn + 1} of phase {number + 1}", int(100 * done), 100)
            if between is not None and turn:
                held = time.perf_counter()
                between(number + 1 + (turn - 1) * len(phases), 2 * len(phases))
                paused += time.perf_counter() - held
            if number + 1 >= (1 if turn > 1 else LEAST_PHASES) and spent() > ends:
                break
    samples: list[StepSample] = []
    for number, first in enumerate(runs[1]):
        again = runs[2][number] if number < len(runs[2]) else []
        for (shape, one), (same, two) in zip(first, again, strict=False):
            assert shape == same, "equal arrivals made different batches"
            samples.append(StepSample(number, shape, (one + two) / 2, (one, two)))
        samples += [StepSample(number, shape, one, (one,)) for shape, one in first[len(again) :]]
    twice = [abs(s.runs[0] - s.runs[1]) / s.seconds for s in samples if len(s.runs) > 1 and s.seconds > 0]
    return Measurements(tuple(samples), loads, median(twice) if twice else None)


def draw_phase(rng: np.random.Generator, design: Design, names: Sequence[str], number: int) -> list[Arrival]:
    """The arrivals of one phase: from one lone sequence to a full engine, by ``number`` in turn, details drawn.

    Concurrency and prompt lengths are spread evenly on a log scale; the adapters in use go from none to all.
    """
    levels = max(2, int(np.log2(design.seqs)) + 1)
    concurrency = min(design.seqs, 2 ** (number % levels))
    longest = max(2, min(design.context - 2, design.batched_tokens * 4))
    typical = float(np.exp(rng.uniform(np.log(8), np.log(max(9, longest)))))
    used = list(rng.permutation(names)[: rng.integers(0, len(names) + 1)])
    base_share = float(rng.choice([0.0, 0.2, 0.5])) if used else 1.0
    total = max(3, min(3 * concurrency, 96))
    gap = max(1, int(rng.integers(1, 1 + max(1, 32 // concurrency))))
    arrivals: list[Arrival] = []
    step = 0
    for index in range(total):
        prompt = int(np.clip(rng.lognormal(np.log(typical), 0.6), 1, longest))
        output = int(np.clip(rng.integers(4, 48), 1, design.context - prompt))
        adapter = None if not used or rng.random() < base_share else str(used[int(rng.integers(len(used)))])
        if index >= concurrency:
            step += gap
        arrivals.append(Arrival(step, prompt, output, adapter))
    return arrivals


def _run(
    machine: Machine,
    adapters: Sequence[Adapter],
    policy: PolicyLike,
    cost: CostView,
    arrivals: Sequence[Arrival],
    rng: np.random.Generator,
    seconds: float,
    steps: int | None,
) -> tuple[list[tuple[BatchShape, float]], int]:
    """Each computing step of a phase that waited for no load: its shape, and the seconds until the next could begin.

    And how many steps there were: all that the arrivals take, or as many as begin within ``seconds``, or ``steps``.
    """
    stepped: list[Stepped] = []

    sink = EventHandlers({Stepped: stepped.append})
    executor = machine.executor(adapters, policy, cost, RealClock(), sink=sink, policy_timeout_s=None)
    timed: list[tuple[BatchShape, float]] = []
    waiting = iter(arrivals)
    coming = next(waiting, None)
    number = 0
    try:
        start = executor.now()
        while coming is not None or executor.engine.unfinished:
            now = executor.now()
            if number == steps or (number and now - start > seconds):
                break
            while coming is not None and coming.step <= number:
                _submit(executor, machine, coming, now, rng)
                coming = next(waiting, None)
            began = executor.now()
            before = len(stepped)
            ran = executor.step(began)
            took = executor.now() - began
            number += 1
            if ran and len(stepped) > before and stepped[-1].shape.tokens and not stepped[-1].load_s:
                timed.append((stepped[-1].shape, took))
    finally:
        executor.close()
    return timed, number


def _submit(executor: Executor, machine: Machine, arrival: Arrival, now: float, rng: np.random.Generator) -> None:
    tokens = rng.integers(0, machine.model.shape.vocab, arrival.prompt_tokens).tolist()
    name = f"{executor.engine.unfinished}-{now}-{rng.integers(1 << 30)}"
    request = Request(name, arrival.adapter, now, arrival.prompt_tokens, arrival.output_tokens)
    executor.submit(request, Generation(tokens, output_tokens=arrival.output_tokens))


def _loads(machine: Machine, adapters: Sequence[Adapter], until: float, repeats: int = 5) -> Iterator[LoadSample]:
    """Every adapter read from disk and written to slot 0, timed apart; past ``until`` once, and one of each rank."""
    ranks: set[int] = set()
    for adapter in adapters:
        if adapter.rank in ranks and time.perf_counter() > until:
            continue
        ranks.add(adapter.rank)
        disk: list[float] = []
        host: list[float] = []
        for repeat in range(repeats):
            if repeat and time.perf_counter() > until:
                break
            began = time.perf_counter()
            weights = machine.read(adapter.name)
            read = time.perf_counter()
            machine.write(0, weights)
            disk.append(read - began)
            host.append(time.perf_counter() - read)
        yield LoadSample(adapter.rank, adapter.bytes, median(disk), median(host))
