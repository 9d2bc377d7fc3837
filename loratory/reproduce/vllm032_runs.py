"""vllm032_runs: two recorded runs of vLLM 0.32: their requests and steps as a recording, and the recording replayed."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import Literal, NamedTuple

from loratory.policies.fifo import Fifo
from loratory.scenarios.build import build_adapters
from loratory.scenarios.library_index import published_folder
from loratory.scenarios.load import load_scenario
from loratory.serving.engine import Engine
from loratory.serving.request import Request
from loratory.serving.run_recording import RecordedStep, Recording
from loratory.sim.cost.linear import LinearCost, LinearOptions
from loratory.sim.recorded_times import ReplayedStep, replay

RunName = Literal["below", "near"]
RUNS: tuple[RunName, ...] = ("below", "near")


class Composition(NamedTuple):
    """What a step computed, as the steps files record it."""

    prefill_tokens: int
    lora_prefill_tokens: int
    decode_seqs: int
    decode_kv_tokens: int
    seqs: int
    distinct_adapters: int


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """One run as measured: absolute seconds, one entry per request and one per step, in order of arrival and of start.

    ``recording`` holds the requests at the time when the engine received them (``added_s``); ``arrival_s`` is when the
    load generator intended to send them.
    """

    name: RunName
    arrival_s: tuple[float, ...]
    first_token_s: tuple[float, ...]
    finish_s: tuple[float, ...]
    recording: Recording
    compositions: tuple[Composition, ...]

    @property
    def ttft_s(self) -> list[float]:
        """Seconds from arrival to first token, one per request."""
        return [first - arrival for first, arrival in zip(self.first_token_s, self.arrival_s, strict=True)]

    @property
    def e2e_s(self) -> list[float]:
        """Seconds from arrival to the last token, one per request."""
        return [finish - arrival for finish, arrival in zip(self.finish_s, self.arrival_s, strict=True)]


def recorded(name: RunName) -> RecordedRun:
    """Read a run from scenarios/published/measured."""
    requests, steps = _rows(f"vllm032_cpu_{name}_requests.csv"), _rows(f"vllm032_cpu_{name}_steps.csv")
    taken_in = tuple(
        Request(str(place), row["adapter"], float(row["added_s"]), int(row["input_tokens"]), int(row["output_tokens"]))
        for place, row in enumerate(requests)
    )
    starts = [float(row["start_s"]) for row in steps]
    recording = Recording(
        requests=taken_in,
        output_tokens={request.request_id: request.max_tokens for request in taken_in},
        steps=tuple(RecordedStep(t, t + float(row["duration_s"])) for t, row in zip(starts, steps, strict=True)),
    )
    return RecordedRun(
        name,
        tuple(float(row["arrival_s"]) for row in requests),
        tuple(float(row["first_token_s"]) for row in requests),
        tuple(float(row["finish_s"]) for row in requests),
        recording,
        tuple(Composition(*(int(row[column]) for column in Composition._fields)) for row in steps),
    )


def replayed(run: RecordedRun) -> tuple[list[ReplayedStep], int]:
    """The run through Loratory's engine under ``fifo`` with recorded times, and the number of unfinished requests."""
    scenario = load_scenario(f"published/vllm032-cpu-{run.name}")
    adapters = build_adapters(scenario, lambda rank: 0)
    engine = Engine(scenario.engine, adapters, Fifo(), LinearCost(LinearOptions()))
    return replay(engine, run.recording), engine.unfinished


def _rows(name: str) -> list[dict[str, str]]:
    with open(published_folder() / "measured" / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
