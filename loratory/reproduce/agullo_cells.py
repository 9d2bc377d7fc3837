"""Cell: one of Agullo et al.'s hour-long runs (settings, how to simulate it, and what was measured of it)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loratory.errors import InputError
from loratory.reproduce.rows import GivenRow, RowOrigin, read_rows
from loratory.scenarios.library_index import published_folder
from loratory.sim.catalogue import model

SCENARIO = "published/agullo-h100"
SMALL_TTFT_MS, LARGE_TTFT_MS = 100.0, 1000.0

LLAMA = "llama-3.1-8b"
LOW_RATES, HIGH_RATES = (0.1, 0.05, 0.025), (1.6, 0.8, 0.4)
"""Requests/s of an adapter; each rate holds for a third of the adapters."""

RANKS = (8, 16, 32, 64, 128, 256)
"""Adapters have these ranks in turn, up to engine.max_lora_rank."""


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """The settings of a run. ``rates``: (requests/s of an adapter, number of adapters), largest rate first.

    Of a number of adapters that three does not divide, the higher rates get the remainder. ``place``: the file and line
    that it was read from, for errors.
    """

    slots: int
    adapters: int
    model: str = LLAMA
    max_lora_rank: int = 16
    rates: tuple[tuple[float, int], ...] = ()
    place: str = field(default="", compare=False)

    @property
    def groups(self) -> tuple[tuple[float, int], ...]:
        """``rates``, or the thirds of the low rates where none are given."""
        return self.rates or tuple((rate, (self.adapters + 2 - turn) // 3) for turn, rate in enumerate(LOW_RATES))

    @property
    def name(self) -> str:
        """``8 slots, 64 adapters``, with what differs from the published table of Llama-3.1-8B and rank 16."""
        parts = [f"{self.slots} slots", f"{self.adapters} adapters"]
        if self.max_lora_rank != 16:
            parts.append(f"rank {self.max_lora_rank}")
        if self.groups[0][0] != LOW_RATES[0]:
            parts.append("high rates" if self.groups[0][0] == HIGH_RATES[0] else f"rates from {self.groups[0][0]:g}/s")
        return ", ".join(parts if self.model == LLAMA else [self.model, *parts])

    @property
    def changes(self) -> tuple[str, ...]:
        """The ``--set`` changes that turn the scenario into this cell."""
        groups = [f"{{count: {count}, rate: {rate:g}}}" for rate, count in self.groups if count]
        ranks = [rank for rank in RANKS if rank <= self.max_lora_rank] or [self.max_lora_rank]
        given = [f"engine.max_loras={self.slots}", f"adapters.rates=[{', '.join(groups)}]"]
        if self.adapters > 512 or self.slots > 512:
            given.append(f"engine.max_cpu_loras={max(self.adapters, self.slots)}")
        if self.max_lora_rank != 16:
            given += [f"engine.max_lora_rank={self.max_lora_rank}", f"adapters.ranks={ranks}"]
        return (*given, f"model={self.model}") if self.model != LLAMA else tuple(given)

    @property
    def origin(self) -> RowOrigin | None:
        """The row of a file whose columns give `changes`; None for a cell that was not read."""
        if not self.place:
            return None
        return RowOrigin(self.place, tuple((change, _COLUMN_OF[change.partition("=")[0]]) for change in self.changes))


@dataclass(frozen=True, slots=True)
class CellFigures:
    """The figures of a cell that ran, measured or simulated. ``running``: mean number of running requests."""

    completed: float
    itl_ms: float
    ttft_p50_ms: float
    running: float
    preemptions: float = 0
    kv_peak: float = 0.0
    """Largest share of the KV blocks in use at the start of a step; not known for published cells."""

    @property
    def side(self) -> str:
        """The side of the two marks on which the median TTFT lies."""
        if self.ttft_p50_ms < SMALL_TTFT_MS:
            return "below 100 ms"
        return "above 1 s" if self.ttft_p50_ms > LARGE_TTFT_MS else "between"


Cells = dict[Cell, CellFigures | None]
"""Figures by cell; None if the server ran out of memory and did not start."""

_COLUMN_OF = {
    "engine.max_loras": "slots",
    "engine.max_cpu_loras": "adapters",
    "engine.max_lora_rank": "max_lora_rank",
    "adapters.ranks": "max_lora_rank",
    "adapters.rates": "rates_req_s, adapters_per_rate",
    "model": "model",
}
"""The column from which `Cell.changes` sets a key."""

_COLUMNS = ("slots", "adapters", "rates_req_s", "adapters_per_rate", "completed", "itl_mean_ms", "ttft_p50_ms")
_MORE_COLUMNS = ("model", "max_lora_rank", *_COLUMNS)


def published_cells() -> Cells:
    """The table of Llama-3.1-8B, rank 16 and low rates."""
    return _table(published_folder() / "measured" / "agullo_h100_vllm085_llama31_8b_r16.csv", _COLUMNS)


def more_cells() -> Cells:
    """Cells of rank 32, high rates and Qwen-2.5-7B."""
    return cells_of(published_folder() / "measured" / "agullo_h100_vllm085_more.csv")


def cells_of(path: Path) -> Cells:
    """The cells in a file of the columns that the published one has. Raises `InputError` for a bad file."""
    return _table(path, _MORE_COLUMNS)


def _table(path: Path, columns: Sequence[str]) -> Cells:
    found = read_rows(path, columns, _read)
    cells: Cells = {}
    for cell, figures in found:
        if cell in cells:
            before = next(each for each in cells if each == cell)
            raise InputError(f"{cell.place} has the settings of {before.place}: leave one of the two rows out")
        cells[cell] = figures
    return dict(sorted(cells.items()))


def _read(row: GivenRow) -> tuple[Cell, CellFigures | None]:
    given = [column for column in ("rates_req_s", "adapters_per_rate") if row.values[column].strip()]
    if len(given) == 1:
        raise InputError(
            f"{row.place}: {given[0]} is given alone: give both of rates_req_s and adapters_per_rate, or none"
        )
    rates = _rates(row) if given else ()
    name, rank = LLAMA, 16
    if "model" in row.values:
        name, rank = row.text("model").removesuffix("-instruct"), row.whole("max_lora_rank")
        try:
            model(name)
        except InputError as error:
            raise InputError(f"{row.place}: {error}") from error
    slots, adapters = row.whole("slots"), row.whole("adapters")
    cell = Cell(slots, adapters, name, rank, () if rates == Cell(slots, adapters).groups else rates, row.place)
    if not cell.slots or not cell.adapters or not rank:
        raise InputError(f"{row.place}: slots, adapters and max_lora_rank should be at least 1: correct them")
    if row.flag("out_of_memory"):
        return cell, None
    running = row.number("mean_running") if row.values.get("mean_running", "").strip() else 0.0
    figures = (row.number("completed"), row.number("itl_mean_ms"), row.number("ttft_p50_ms"))
    if not all(figures):
        raise InputError(f"{row.place}: completed, itl_mean_ms and ttft_p50_ms should be above 0: correct them")
    return cell, CellFigures(*figures, running)


def _rates(row: GivenRow) -> tuple[tuple[float, int], ...]:
    rates, counts = row.numbers("rates_req_s"), row.numbers("adapters_per_rate")
    part = next((count for count in counts if count != int(count)), None)
    if part is not None:
        raise InputError(f"{row.place}: adapters_per_rate has {part:g}: give whole numbers of adapters")
    if len(rates) != len(counts) or sum(counts) != row.whole("adapters") or not all(rates):
        raise InputError(
            f"{row.place}: rates_req_s and adapters_per_rate should have as many numbers, rates above 0, and counts "
            "that add up to adapters: correct them"
        )
    pairs = zip(rates, (int(count) for count in counts), strict=True)
    return tuple(sorted((pair for pair in pairs if pair[1]), reverse=True))


def figures_of(run: dict[str, Any], kv_blocks: int) -> CellFigures:
    """The figures of a simulated cell. Running requests by Little's law: a running request gets a token every ITL.

    Raises `InputError` where no request ended.
    """
    itl, engine = run["itl_s"]["mean"], run["engine"]
    if itl is None or not run["requests"]["completed"]:
        raise InputError("no request of the simulation ends, so there is nothing to compare: change its settings")
    return CellFigures(
        run["requests"]["completed"],
        1e3 * itl,
        1e3 * run["ttft_s"]["p50"],
        itl * run["throughput"]["output_tokens_per_s"],
        engine["preemptions"],
        engine["max_kv_blocks"] / kv_blocks,
    )
