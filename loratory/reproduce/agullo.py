"""agullo: Agullo et al. (2025), real vLLM 0.8.5 on an H100 64 GB: KV memory, and hour-long runs of slots x adapters."""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Literal

from loratory.errors import InputError
from loratory.experiment.resolve import build
from loratory.reproduce.agullo_cells import (
    HIGH_RATES,
    SCENARIO,
    Cell,
    CellFigures,
    Cells,
    cells_of,
    figures_of,
    more_cells,
    published_cells,
)
from loratory.reproduce.cases import Case, mean_note, refuse_policies, run_cases
from loratory.reproduce.comparison import Check, Reproduction, Row, mean_error
from loratory.scenarios.library_index import published_folder
from loratory.scenarios.load import load_scenario
from loratory.serving.config import EngineConfig
from loratory.sim.catalogue import gpu, model
from loratory.sim.cost import kv_blocks

FIT_SLOTS = (8, 32, 128, 256)
"""The slots of the cells whose mean ITL the roofline's LoRA and host constants are fitted to (`fit.lora`)."""

SHOWN_EVERY = 6
"""Of the cells of rank 32, high rates and Qwen-2.5-7B, one in so many is run with the others."""

BISTABLE = tuple(Cell(slots, 64, rates=((1.6, 22), (0.8, 21), (0.4, 21))) for slots in (8, 16))
"""Cells beyond the knee of which several seeds are run: adapters of high rates may hold the slots for long."""

SEEDS = (0, 1, 2, 3)

OOM = "out of memory"


@dataclass(frozen=True, slots=True)
class Limits:
    """Largest mean errors, and the largest factor by which the ITL of a cell is off; None for no promise."""

    itl: float
    completed: float | None
    factor: float | None


SCENARIO_LIMITS = Limits(itl=0.12, completed=0.03, factor=None)
"""With the scenario's own constants, which were fitted to cells of this kind."""

ROOFLINE_LIMITS = Limits(itl=0.20, completed=None, factor=1.6)
"""With ``--set 'cost={kind: roofline}'``: as for hardware without a measurement."""


@dataclass(frozen=True, slots=True)
class Start:
    """A server at its start. ``blocks``: KV blocks by the memory model; None if it does not start according to it."""

    blocks: int | None
    notes: tuple[str, ...] = ()


def start(cell: Cell, settings: Sequence[str] = ()) -> Start:
    """How vLLM starts with a cell's settings. Raises `InputError`, with the cell's place, for bad ones."""
    try:
        scenario = load_scenario(SCENARIO, [*cell.changes, *settings])
        built = build(scenario)
    except InputError as error:
        if str(error).startswith("engine: "):
            return Start(None)
        raise error if cell.origin is None else cell.origin.told(error) from error
    return Start(built.engine.num_gpu_blocks, built.notes)


@dataclass(frozen=True, slots=True)
class SeedRange:
    """Several seeds of a cell: the fewest and the most completed requests."""

    fewest: float
    most: float

    @property
    def share(self) -> float:
        """The difference over the mean of the two."""
        return (self.most - self.fewest) / ((self.most + self.fewest) / 2)


def simulate_cells(cells: Sequence[Cell], settings: Sequence[str] = ()) -> Cells:
    """The figures of each cell, the mean over its seeds; None if it does not start according to the memory model."""
    return _simulated({cell: start(cell, settings) for cell in cells}, settings)


def _simulated(starts: Mapping[Cell, Start], settings: Sequence[str]) -> Cells:
    started = [cell for cell, found in starts.items() if found.blocks is not None]
    runs = run_cases([Case(SCENARIO, (*cell.changes, *settings), origin=cell.origin) for cell in started])
    found: Cells = dict.fromkeys(starts)
    for cell, seeds in zip(started, runs, strict=True):
        try:
            each = [figures_of(run, starts[cell].blocks or 1) for run in seeds]
        except InputError as error:
            raise error if cell.origin is None else cell.origin.told(error) from error
        found[cell] = each[0] if len(each) == 1 else CellFigures(*map(fmean, zip(*map(astuple, each), strict=True)))
    return found


def seeds_of(cells: Sequence[Cell], settings: Sequence[str] = ()) -> dict[Cell, SeedRange]:
    """What other seeds give."""
    changes = [f"seeds={list(SEEDS)}", *settings]
    runs = run_cases([Case(SCENARIO, (*cell.changes, *changes)) for cell in cells])
    completed = [[float(each["requests"]["completed"]) for each in run] for run in runs]
    return {cell: SeedRange(min(each), max(each)) for cell, each in zip(cells, completed, strict=True)}


def memory_rows() -> tuple[list[Row], list[Check]]:
    """The KV pool, cell by cell, from the memory model's formulae."""
    rows = []
    path = published_folder() / "measured" / "agullo_h100_vllm085_kv_tokens.csv"
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            case = f"rank {row['max_lora_rank']}, {row['slots']} slots"
            slots, rank = int(row["slots"]), int(row["max_lora_rank"])
            engine = EngineConfig(max_loras=slots, max_lora_rank=rank, max_num_seqs=2048)
            simulated: float | str = OOM
            with suppress(InputError):
                simulated = kv_blocks(model(row["model"].removesuffix("-instruct")), gpu("h100-64gb"), engine).kv_tokens
            published = OOM if row["kv_tokens"] == "OOM" else float(row["kv_tokens"])
            rows.append(Row(case, "KV cache, tokens", published, simulated))
    worst = max(abs(row.error) for row in rows if row.error is not None)
    wrong = sum(row.error is None and row.published != row.simulated for row in rows)
    return rows, [
        Check("KV cache tokens, largest relative error of a cell", worst, 0.02),
        Check("KV cache, cells wrongly out of memory or not", wrong, 0),
    ]


METRICS = {
    "completed": "completed requests",
    "itl_ms": "mean ITL, ms",
    "ttft_p50_ms": "median TTFT, ms",
    "running": "mean running requests",
}


def sets_constants(cell: Cell, field: str) -> bool:
    """Whether a figure of a cell helped to set a constant: ITL with `FIT_SLOTS`, completed requests at high rates."""
    return cell.slots in FIT_SLOTS if field == "itl_ms" else field == "completed" and cell.groups[0][0] == HIGH_RATES[0]


def run_rows(published: Cells, simulated: Cells, fitted: Cells | None = None) -> list[Row]:
    """Published and simulated figures of each cell.

    ``fitted``: the cells whose figures may have set a constant (`sets_constants`), by default ``published``. A figure
    did where it is theirs.
    """
    known = published if fitted is None else fitted
    rows = []
    for cell, theirs in published.items():
        name, ours = cell.name, simulated[cell]
        if theirs is None or ours is None:
            rows.append(Row(name, "start", OOM if theirs is None else "runs", OOM if ours is None else "runs"))
            continue
        for field, metric in METRICS.items():
            same = getattr(known.get(cell), field, None) == getattr(theirs, field)
            use: Literal["fit", "test"] = "fit" if same and sets_constants(cell, field) else "test"
            if getattr(theirs, field):
                rows.append(Row(name, metric, getattr(theirs, field), getattr(ours, field), use))
    return rows


def of_cells(rows: Sequence[Row], names: Collection[str]) -> list[Row]:
    """The rows of these cells, each as a prediction."""
    return [replace(row, use="test") for row in rows if row.case in names]


def run_checks(rows: Sequence[Row], cells: Cells, simulated: Cells, limits: Limits) -> list[Check]:
    """The promises on any cells.

    "Right side" is strict: a published median TTFT between the two marks must be between them here as well.
    """
    both = {cell: (t, o) for cell, t in cells.items() if t is not None and (o := simulated[cell]) is not None}
    wrong = sum((cells[cell] is None) != (simulated[cell] is None) for cell in cells)
    checks = [Check("runs, cells wrongly out of memory or not", wrong, 0)]
    if not both:
        return checks
    tested = of_cells(rows, {cell.name for cell in both})
    itl, completed = METRICS["itl_ms"], METRICS["completed"]
    if limits.completed is not None:
        error = mean_error(tested, completed, symmetric=True)
        checks.append(Check("completed requests, mean symmetric error", error, limits.completed))
    if limits.factor is not None:
        factor = max(max(o.itl_ms / t.itl_ms, t.itl_ms / o.itl_ms) for t, o in both.values())
        checks.append(Check("mean ITL, largest factor by which a cell is off", factor, limits.factor))
    sides = sum(t.side == o.side for t, o in both.values()) / len(both)
    return [
        *checks,
        Check("mean ITL, mean relative error", mean_error(tested, itl), limits.itl),
        Check("median TTFT, share of cells on the measured side of 100 ms and 1 s", sides, 0.95, at_least=True),
    ]


def cliff_checks(simulated: dict[Cell, CellFigures]) -> list[Check]:
    """The cliff of over-provisioned slots: from 320 adapters on, 128 slots serve less than 64, for lack of KV cache."""
    cliff = {cell for cell in simulated if cell.slots == 128 and cell.adapters >= 320}
    served = max(simulated[cell].completed / simulated[Cell(64, cell.adapters)].completed for cell in cliff)
    return [
        Check("cliff: completed with 128 slots over completed with 64, larger of 320 and 384 adapters", served, 0.95),
        Check("cliff: preemptions, fewer of the two cells", min(simulated[c].preemptions for c in cliff), 1000, True),
        Check(
            "cliff: peak share of KV blocks in use, lower of the two cells",
            min(simulated[c].kv_peak for c in cliff),
            0.99,
            True,
        ),
        Check(
            "preemptions in all other cells together",
            sum(f.preemptions for c, f in simulated.items() if c not in cliff),
            100,
        ),
    ]


def reproduce(rows: Path | None = None, settings: Sequence[str] = ()) -> Reproduction:
    """The published tables; or the cells in the file ``rows``, and with changed keys."""
    if rows is None and not settings:
        more = more_cells()
        return reproduction(published_cells() | {cell: more[cell] for cell in list(more)[::SHOWN_EVERY]}, BISTABLE)
    source = "published cells" if rows is None else str(rows)
    return given(published_cells() if rows is None else cells_of(rows), source, settings)


def reproduction(published: Cells, bistable: Sequence[Cell] = ()) -> Reproduction:
    """Both tables, the runs of some cells only (128 and 64 slots at 320 and 384 adapters among them)."""
    simulated = simulate_cells(list(published))
    spreads = seeds_of(bistable)
    rows, checks = memory_rows()
    runs = run_rows(published, simulated)
    low = {cell: found for cell, found in published.items() if cell in published_cells()}
    itl, completed = METRICS["itl_ms"], METRICS["completed"]
    sides = [(found.side, ours.side) for cell, found in low.items() if found and (ours := simulated[cell])]
    return Reproduction(
        name="agullo",
        title="Agullo et al.: vLLM 0.8.5 on an H100 64 GB",
        source="Agullo et al. (arXiv:2508.08343), logs in FerranAgulloLopez/GPULLMAdapterOptimization",
        scenarios=("agullo-h100",),
        fitted=(
            "Six constants (the host's time by step, sequence and request passed over; thread blocks of LoRA kernels, "
            "of adapters in the batch and of all slots; the bandwidth at which adapters are read) were fitted to the "
            "mean ITL of the cells with 8, 32, 128 and 256 slots, 162 of them, of which one in six of those with rank "
            "32, high rates or Qwen-2.5-7B is shown. Three of them were then raised until completed requests of cells "
            "with high rates were right on average. The other constants are the roofline's, lengths are ShareGPT's, "
            "and the KV pool is the memory model's: no cell was used for these, and no cell's TTFT for anything."
        ),
        rows=tuple(rows + runs),
        checks=(
            *checks,
            *run_checks(runs, published, simulated, SCENARIO_LIMITS),
            Check(
                "completed requests, mean symmetric error over cells not fitted",
                mean_error(runs, completed, symmetric=True),
                0.03,
            ),
            Check("mean ITL, mean symmetric error over cells not fitted", mean_error(runs, itl, symmetric=True), 0.12),
            Check("mean ITL, mean relative error over cells not fitted", mean_error(runs, itl), 0.12),
            Check(
                "median TTFT at low rates, cells on another side of 100 ms and 1 s than published",
                sum(theirs != ours for theirs, ours in sides),
                0,
            ),
            *cliff_checks(
                {cell: ours for cell in low if (ours := simulated[cell]) is not None and low[cell] is not None}
            ),
            *(
                Check(f"{cell.name}: completed requests of seeds 0 to 3, their range over its middle", found.share, 0.1)
                for cell, found in spreads.items()
            ),
        ),
        not_modelled=(*NOT_MODELLED, *(_told(cell, found) for cell, found in spreads.items())),
    )


def _told(cell: Cell, found: SeedRange) -> str:
    return (
        f"Several seeds beyond the knee: with {cell.name}, seeds 0 to 3 complete {found.fewest:,.0f} to "
        f"{found.most:,.0f} requests. Without a bound on open requests such runs have more than one course, and their "
        "seeds differ by up to a third; a run says so in a note."
    )


def given(cells: Cells, source: str, settings: Sequence[str] = ()) -> Reproduction:
    """Cells of a user's, under a user's settings; of several seeds, the mean."""
    refuse_policies(settings)
    starts = {cell: start(cell, settings) for cell in cells}
    simulated = _simulated(starts, settings)
    changed = any(each.partition("=")[0].split(".")[0] == "cost" for each in settings)
    rows = run_rows(cells, simulated, {} if settings else published_cells() | more_cells())
    scenario = load_scenario(SCENARIO, [*next(iter(cells)).changes, *settings])
    kind = scenario.cost.kind
    limits = ROOFLINE_LIMITS if changed and kind == "roofline" else SCENARIO_LIMITS
    return Reproduction(
        name="agullo",
        title=f"Agullo et al.: {len(cells)} cells, cost model {kind}",
        source=source,
        scenarios=("agullo-h100",),
        fitted="See docs/fidelity.md for what the constants of the cost model were fitted to.",
        rows=tuple(rows),
        checks=tuple(run_checks(rows, cells, simulated, limits)),
        not_modelled=NOT_MODELLED,
        notes=(
            *mean_note(len(scenario.seeds)),
            *dict.fromkeys(note for found in starts.values() for note in found.notes),
        ),
    )


NOT_MODELLED = (
    "Tiles, splits and tuned configurations of LoRA kernels beyond the numbers of their thread blocks; CUDA-graph "
    "padding and eager steps above 512 tokens: the measurements show neither.",
    "HTTP and tokenisation: about 8 ms of the median TTFT where no request waits. The clients have at most 28,232 "
    "requests open, the ports of one Linux machine: at high rates TTFT measured by the server stops growing at 26,000 "
    "to 28,000 requests.",
    "Published running requests are samples of the server's log, once a step; simulated ones are ITL times tokens per "
    "second (Little's law), which gives up to a fifth more where long steps have large batches.",
    "Near the knee, where the batch follows the step time and the step time the batch, a few percent of step time "
    "become tens of percent of ITL.",
    "Arrivals and lengths are drawn, not replayed. By chance, the completed requests of cells with a few thousand "
    "requests differ by up to 4 %. There the published numbers are below what the rates suggest, and the simulated "
    "ones are close to it.",
)
