"""The roofline's LoRA and host constants from runs of vLLM 0.8.5: ``python -m loratory.reproduce.fit.lora``.

Six constants are fitted to the mean inter-token latency (ITL) of Agullo et al.'s cells with 8, 32, 128 and 256 slots,
for Llama-3.1-8B and Qwen-2.5-7B, ranks 16 and 32, low and high rates together, and to nothing else:

    host_step_s             host time of a step
    host_seq_s              host time of each sequence in a step
    host_blocked_s          host time of each waiting request that is passed over
    lora_block_s            a thread block of an adapter in the batch
    lora_idle_block_s       a thread block of a slot, idle or not
    lora_memory_efficiency  share of the memory bandwidth at which adapters are read

A step is linear in them (in the inverse of the last), so each cell gives one equation: its ITL is the mean step, each
step weighted by the sequences that decode in it. Weights, prompts and traffic of tokens are priced by the roofline as
it is; decode attention is left out, because in these runs of short contexts the host's work for a sequence takes
longer. The coefficients are means over a simulation of the cell, whose batches depend on the constants in turn: fit and
simulation alternate. A cell counts once its simulated ITL is within 5 % of the measured one: near the knee, batches
are not those of the measured run before that. Non-negative least squares on relative errors. The cells of 16 and 64
slots are predictions.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from loratory.experiment.resolve import build
from loratory.policies.fifo import Fifo
from loratory.reproduce.agullo_cells import SCENARIO, Cell, Cells, more_cells, published_cells
from loratory.reproduce.cases import over
from loratory.scenarios.build import build_workload
from loratory.scenarios.load import load_scenario
from loratory.serving.events import Event, Stepped
from loratory.sim.catalogue import gpu, model
from loratory.sim.cluster import simulate
from loratory.sim.cost import RooflineCost, RooflineOptions
from loratory.sim.cost.engine_times import HOST_BLOCKED_S, HOST_SEQ_S, HOST_STEP_S
from loratory.sim.cost.lora_kernels import BLOCK_S, IDLE_BLOCK_S, SLOT_MEMORY_EFFICIENCY
from loratory.sim.cost.nnls import nnls

FIT_SLOTS = (8, 32, 128, 256)
START = {
    "host_step_s": HOST_STEP_S,
    "host_seq_s": HOST_SEQ_S,
    "host_blocked_s": HOST_BLOCKED_S,
    "lora_block_s": BLOCK_S,
    "lora_idle_block_s": IDLE_BLOCK_S,
    "lora_memory_efficiency": SLOT_MEMORY_EFFICIENCY,
}
"""The roofline's own: a fit that begins there ends there."""

CONSTANTS = tuple(START)
ROUNDS = 6
NEAR = 0.05
EASED = 0.97
"""The roofline's constants are the solution times this (the last one over it). In full simulation the solution itself
is off by a factor of 1.65 in one cell near the knee, where a few percent of step time decide ITL; 0.95 times it, 1.55.
"""
EVERY_TOKENS = 2_000
"""One step in so many output tokens is taken for the means of a cell."""


@dataclass(frozen=True, slots=True)
class Equation:
    """``fixed_s`` plus the sum of ``per`` times `_unknowns` of the constants is the ITL; ``itl_s``: the simulated one.

    All are means over the tokens of a simulated cell.
    """

    itl_s: float
    fixed_s: float
    per: tuple[float, ...]


def settings(constants: Mapping[str, float]) -> list[str]:
    """The ``--set`` changes that make a scenario's cost the roofline with these constants."""
    values = ", ".join(f"{key}: {value:.12f}" for key, value in constants.items())
    return [f"cost={{kind: roofline, {values}}}"]


def simulated(work: tuple[Cell, Mapping[str, float]]) -> Equation:
    """The equation of a cell whose batches are those under ``constants``."""
    cell, constants = work
    scenario = load_scenario(SCENARIO, [*cell.changes, *settings(constants)])
    built = build(scenario)

    def cost(**chosen: float) -> RooflineCost:
        zero = dict.fromkeys(CONSTANTS[:-1], 0.0) | {"lora_memory_efficiency": 1.0, "decode_attention_latency_s": 0.0}
        options = RooflineOptions.model_validate(zero | chosen)
        return RooflineCost(model(cell.model), gpu("h100-64gb"), options=options, engine=built.engine)

    free = cost().step_seconds
    priced = [cost(**{key: 1.0}).step_seconds for key in CONSTANTS[:-1]]
    half = cost(lora_memory_efficiency=0.5).step_seconds
    sums, tokens = np.zeros(3 + len(CONSTANTS)), np.zeros(2)
    due = 0

    def sink(event: Event) -> None:
        nonlocal due
        if not isinstance(event, Stepped) or not event.shape.decode_seqs:
            return
        duration, weight = (event.end - event.start) / event.steps, event.shape.decode_seqs * event.steps
        tokens[:] += weight * np.array((1.0, duration))
        if tokens[0] < due:
            return
        many = 1 + int((tokens[0] - due) / EVERY_TOKENS)  # a long jump counts for all the marks that it passes
        due += many * EVERY_TOKENS
        shape = event.shape._replace(kv_tokens=0)
        alone = free(shape)
        each = [price(shape) - alone for price in priced]
        read = half(shape) - alone  # as long again as at full bandwidth
        sums[:] += many * np.array((1.0, 0.0, event.load_s / event.steps + alone - read, *each, read))

    simulate(
        build_workload(scenario, 0, built.adapters),
        adapters=built.adapters,
        config=built.engine,
        policy=Fifo,
        cost=built.cost,
        sink=lambda _: sink,
        cutoff_s=scenario.workload.cutoff_s,
    )
    _, fixed, *per = (sums[1:] / sums[0]).tolist()
    return Equation(float(tokens[1] / tokens[0]), fixed, tuple(per))


def _unknowns(constants: Mapping[str, float]) -> list[float]:
    """The constants as the equations have them."""
    *first, efficiency = (constants[key] for key in CONSTANTS)
    return [*first, 1.0 / efficiency]


def solve(equations: list[Equation], itl_s: list[float]) -> dict[str, float]:
    """The constants, none negative, that fit the cells' ITL best, by squared relative errors."""
    target = np.array(itl_s)
    matrix = np.array([each.per for each in equations])
    rest = np.array([each.fixed_s for each in equations])
    *first, inverse = nnls(matrix / target[:, None], (target - rest) / target).tolist()
    return dict(zip(CONSTANTS, [*first, min(1.0, 1.0 / max(inverse, 1e-9))], strict=True))


def eased(solution: Mapping[str, float]) -> dict[str, float]:
    """The constants as the roofline has them; see `EASED`."""
    return {key: value / EASED if key == CONSTANTS[-1] else value * EASED for key, value in solution.items()}


def errors(equations: list[Equation], itl_s: list[float], constants: Mapping[str, float]) -> list[float]:
    """Relative errors of the ITL that the equations give."""
    values = _unknowns(constants)
    return [(e.fixed_s + float(np.dot(e.per, values))) / s - 1.0 for e, s in zip(equations, itl_s, strict=True)]


def cells(fitted: bool) -> Cells:
    """Every cell that ran: those with one of `FIT_SLOTS`, or the others."""
    both = published_cells() | more_cells()
    return {cell: found for cell, found in both.items() if found is not None and (cell.slots in FIT_SLOTS) == fitted}


def fit(rounds: int = ROUNDS) -> tuple[dict[str, float], list[float], list[float]]:
    """The constants, and the errors of the ITL of the cells fitted and of the others, given the simulated batches."""
    constants = dict(START)
    train, test = cells(True), cells(False)
    measured = [found.itl_ms / 1e3 for found in train.values() if found is not None]
    for turn in range(rounds):
        found = over(simulated, [(cell, constants) for cell in train])
        near = [(e, s) for e, s in zip(found, measured, strict=True) if abs(e.itl_s / s - 1.0) < NEAR]
        equations, itl_s = [e for e, _ in near], [s for _, s in near]
        solution = solve(equations, itl_s)
        change = max(abs(value / constants[key] - 1.0) for key, value in eased(solution).items())
        sys.stderr.write(f"round {turn}: {len(near)} cells near; {solution}\n")
        constants = {key: (constants[key] + value) / 2 for key, value in eased(solution).items()}
        if change < 0.05:
            break
    test_s = [found.itl_ms / 1e3 for found in test.values() if found is not None]
    others = over(simulated, [(cell, constants) for cell in test])
    return constants, errors(equations, itl_s, constants), errors(others, test_s, constants)


def main() -> str:
    """The constants, and how far off they are."""
    constants, train, test = fit()
    lines = [f"{key}: {value:.3g}" for key, value in constants.items()]
    for name, each in (("fitted", train), ("not fitted", test)):
        size = np.abs(each)
        lines.append(f"{len(each)} cells {name}: ITL {size.mean():.1%} off on average, {size.max():.0%} at most")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(main())
