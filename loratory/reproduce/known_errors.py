"""Known errors: how far the roofline is off, by kind of setting.

    python -m loratory.reproduce.known_errors sim/cost/roofline_errors.json

Simulates every measured cell of `loratory.reproduce.agullo` and runs `loratory.reproduce.roofline`, and writes the file
from which `loratory.sim.cost.roofline.RooflineCost` takes its ``known_error``. About 10 CPU minutes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from loratory.reproduce.agullo import METRICS, run_rows, simulate_cells
from loratory.reproduce.agullo_cells import Cells, more_cells, published_cells
from loratory.reproduce.comparison import Row
from loratory.reproduce.roofline import DECODE, PREFILL, UNSEEN, reproduce


def summary(what: str, engine: str, adapters: bool, gpus: Sequence[str], rows: Sequence[Row]) -> dict[str, object]:
    """One kind of setting: how many figures were compared, and the mean and the worst of their absolute errors.

    ``fitted``: those of them that set constants of the cost model.
    """
    errors = [abs(row.error) for row in rows if row.error is not None]
    return {
        "what": what,
        "engine": engine,
        "adapters": adapters,
        "gpus": list(gpus),
        "figures": len(errors),
        "fitted": sum(row.error is not None and row.use == "fit" for row in rows),
        "mean_error": round(fmean(errors), 4),
        "worst_error": round(max(errors), 4),
    }


def with_adapters(cells: Cells) -> dict[str, object]:
    """ITL of hour-long runs of vLLM 0.8.5, each cell simulated under the roofline."""
    ran: Cells = {cell: found for cell, found in cells.items() if found is not None}
    rows = run_rows(ran, simulate_cells(list(ran), ("cost={kind: roofline}",)))
    itl = [row for row in rows if row.metric == METRICS["itl_ms"]]
    return summary("ITL", "vllm-0.8.5", True, ["h100-64gb"], itl)


def base_model() -> dict[str, object]:
    """Decode steps and prefills of AIConfigurator, with GPUs that gave no constant among them."""
    rows = [row for row in reproduce().rows if row.metric in (DECODE, PREFILL, UNSEEN)]
    gpus = sorted({row.case.partition(",")[0] for row in rows})
    return summary("steps", "vllm-0.24", False, gpus, rows)


def main(path: Path) -> None:
    """Write the file."""
    found = [with_adapters(published_cells() | more_cells()), base_model()]
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
