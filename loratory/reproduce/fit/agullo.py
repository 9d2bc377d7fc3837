"""agullo: the step constants of scenarios/published/agullo-h100.yaml, from six cells and three published figures.

    python -m loratory.reproduce.fit.agullo

Four constants are fitted to the mean inter-token latency (ITL) of `FIT_CELLS`, and to nothing else. It is the mean step
duration, each step weighted by the sequences that decode in it; a step is linear in the constants, so each cell gives
one equation whose coefficients are weighted means of batch sizes. Those means come from simulating the cell, and
depend on the constants in turn: fit and simulation alternate until they agree.

Why these six: the smallest and the largest cell that ran, one with a slot for every adapter of many, and one with
scarce slots at 8, 32 and 64 slots each. The other cells are predictions.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from loratory.experiment.resolve import build
from loratory.policies.fifo import Fifo
from loratory.reproduce.agullo import FIT_CELLS
from loratory.reproduce.agullo_cells import SCENARIO, Cell, published_cells
from loratory.reproduce.cases import over
from loratory.scenarios.build import build_workload
from loratory.scenarios.load import load_scenario
from loratory.serving.config import EngineConfig
from loratory.serving.events import Event, Stepped
from loratory.sim.catalogue import gpu, model
from loratory.sim.cluster import simulate
from loratory.sim.cost import RooflineCost
from loratory.sim.cost.nnls import nnls

LOAD_MS = (7.772, 6.384)
"""Host-to-GPU load of a rank-8 and a rank-16 adapter into slots of rank 16, ms: Agullo et al., predictor_loading.py."""

FITTED = ("decode_base_s", "decode_per_seq_s", "per_adapter_s", "slot_token_s")
ROUNDS = 20


@dataclass(frozen=True, slots=True)
class Means:
    """Means of one simulated cell over its output tokens: seconds that a step waited for loads, and its composition."""

    load_s: float
    decode_seqs: float
    kv_tokens: float
    prefill_tokens: float
    adapters: float
    slot_tokens: float


def known() -> dict[str, float]:
    """The constants that are not fitted: KV reads and prompt tokens from the roofline, loads from `LOAD_MS`."""
    spec, card = model("llama-3.1-8b"), gpu("h100-64gb")
    roofline = RooflineCost(spec, card)
    budget = EngineConfig().max_num_batched_tokens
    return {
        "decode_per_kv_token_s": spec.kv_bytes_per_token()
        / (roofline.options.decode_attention_efficiency * card.memory_bytes_per_s),
        "prefill_per_token_s": (roofline.linear_seconds(budget) - roofline.linear_seconds(1)) / (budget - 1),
        "load_base_s": sum(LOAD_MS) / len(LOAD_MS) / 1e3,
    }


def simulated(work: tuple[Cell, Mapping[str, float]]) -> Means:
    """The means of a cell under constants."""
    cell, constants = work
    costs = [f"cost.{key}={value!r}" for key, value in constants.items()]
    scenario = load_scenario(SCENARIO, [*cell.changes, *costs])
    built = build(scenario)
    sums = np.zeros(7)

    def sink(event: Event) -> None:
        if isinstance(event, Stepped) and event.shape.decode_seqs:
            shape, weight = event.shape, event.shape.decode_seqs * event.steps
            of = (shape.decode_seqs, shape.kv_tokens, shape.prefill_tokens, shape.distinct_adapters)
            sums[:] += weight * np.array((event.load_s, *of, cell.slots * shape.tokens, 1.0))

    simulate(
        build_workload(scenario, 0, built.adapters),
        adapters=built.adapters,
        config=built.engine,
        policy=Fifo,
        cost=built.cost,
        sink=lambda _: sink,
        cutoff_s=scenario.workload.cutoff_s,
    )
    return Means(*(sums[:-1] / sums[-1]).tolist())


def equations(means: list[Means], itl_s: list[float], fixed: Mapping[str, float]) -> dict[str, float]:
    """The `FITTED` constants, none negative, that fit each cell's ITL best, by squared relative errors."""
    target = np.array(itl_s)
    matrix = np.array([(1.0, m.decode_seqs, m.adapters, m.slot_tokens) for m in means])
    rest = np.array(
        [
            m.load_s + fixed["decode_per_kv_token_s"] * m.kv_tokens + fixed["prefill_per_token_s"] * m.prefill_tokens
            for m in means
        ]
    )
    solution = nnls(matrix / target[:, None], (target - rest) / target)
    return dict(zip(FITTED, solution.tolist(), strict=True))


def fit() -> dict[str, float]:
    """Every constant of the scenario's cost section, seconds."""
    fixed = known()
    published = published_cells()
    itl_s = [figures.itl_ms / 1e3 for cell in FIT_CELLS if (figures := published[cell]) is not None]
    constants = {"decode_base_s": 0.013, "decode_per_seq_s": 5e-5, "per_adapter_s": 5e-4, "slot_token_s": 2e-7}
    for turn in range(ROUNDS):
        everything = constants | {"prefill_base_s": constants["decode_base_s"]} | fixed
        found = equations(over(simulated, [(cell, everything) for cell in FIT_CELLS]), itl_s, fixed)
        change = max(abs(found[key] / constants[key] - 1.0) for key in FITTED)
        sys.stderr.write(f"round {turn}: largest change {change:.1%}\n")
        constants = {key: (constants[key] + found[key]) / 2 for key in FITTED}
        if change < 0.01:
            break
    return constants | {"prefill_base_s": constants["decode_base_s"]} | fixed


if __name__ == "__main__":
    sys.stdout.write("".join(f"{key}: {value:.3g}\n" for key, value in fit().items()))
