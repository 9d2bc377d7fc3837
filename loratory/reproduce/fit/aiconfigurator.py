"""What AIConfigurator 0.12 says of Llama-3.1-8B: ``python -m loratory.reproduce.fit.aiconfigurator > FILE``.

Writes the table that tests/published/test_kernels.py compares ``cost: {kind: kernels}`` with, as CSV: batch, prompt and
output tokens; milliseconds of the prefill of the whole batch, and of one output token on average over the output. They
are AIConfigurator's static estimates, sums of kernels that it measured or interpolated, without host time.
"""

from __future__ import annotations

import csv
import logging
import sys
from collections.abc import Iterator
from importlib import resources
from typing import Any

from loratory.errors import InputError, error_line
from loratory.sim.catalogue import gpu
from loratory.sim.cost.kernel_tables import SYSTEMS, KernelTables

MODEL = "meta-llama/Meta-Llama-3.1-8B"
GPUS = ("a100-80gb", "h100-80gb", "h200")
BATCHES = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256)
PROMPTS = (256, 1024, 4096)
OUTPUT = 256
COLUMNS = ("gpu", "engine", "version", "batch", "prompt_tokens", "output_tokens", "prefill_ms", "tpot_ms")


def figures() -> list[dict[str, str]]:
    """The committed table, one row a setting."""
    text = resources.files("loratory.scenarios").joinpath("published/aiconfigurator-0.12-steps.csv").read_text("utf-8")
    return list(csv.DictReader(text.splitlines()))


def estimates() -> Iterator[dict[str, Any]]:
    """The table made anew. Raises `InputError` where AIConfigurator's package is not installed."""
    versions = {name: KernelTables(gpu(name)).version for name in GPUS}
    from aiconfigurator_core.sdk.engine import EngineHandle

    for name, version in versions.items():
        handle = EngineHandle.compile(MODEL, SYSTEMS[name], "vllm", backend_version=version)
        for prompt in PROMPTS:
            for batch in BATCHES:
                prefill, decode, _ = handle.run_static(batch_size=batch, isl=prompt, osl=OUTPUT)
                values = (
                    name,
                    "vllm",
                    version,
                    batch,
                    prompt,
                    OUTPUT,
                    f"{prefill:.3f}",
                    f"{decode / (OUTPUT - 1):.4f}",
                )
                yield dict(zip(COLUMNS, values, strict=True))


def main() -> int:
    """Prints the table."""
    logging.disable(logging.WARNING)  # the package's notes on tables that are not read here
    try:
        rows = list(estimates())
    except InputError as error:
        print(error_line(str(error)), file=sys.stderr)
        return error.exit_code
    writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
