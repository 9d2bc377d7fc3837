"""cost: {kind: kernels} against AIConfigurator's own sums of the same kernels, for Llama-3.1-8B without adapters."""

from __future__ import annotations

import functools
from importlib.util import find_spec

import pytest

from loratory.reproduce.fit.aiconfigurator import BATCHES, COLUMNS, GPUS, PROMPTS, figures
from loratory.serving.plan import BatchShape
from loratory.sim.catalogue import gpu, model
from loratory.sim.cost.kernels import COMPARED, KernelsCost

needs_tables = pytest.mark.skipif(
    find_spec("aiconfigurator_core") is None, reason="AIConfigurator's tables are not installed: loratory[kernels]"
)
LIMITS = {256: 0.05, 1024: 0.05, 4096: 0.08}
"""By prompt tokens; the sentence of `KernelsCost.known_error` has them."""


@functools.cache
def kernels(card: str) -> KernelsCost:
    return KernelsCost(model("llama-3.1-8b"), gpu(card))


def errors(row: dict[str, str]) -> tuple[float, float]:
    """Relative errors of a row's prefill, in one step, and of the mean step that decodes."""
    cost = kernels(row["gpu"])
    batch, prompt, output = (int(row[key]) for key in ("batch", "prompt_tokens", "output_tokens"))
    whole = BatchShape(
        prefill_tokens=batch * prompt, prefill_seqs=batch, prefill_attention=batch * prompt * (prompt + 1) / 2
    )
    steps = [cost.step_seconds(BatchShape(decode_seqs=batch, kv_tokens=batch * (prompt + n))) for n in range(1, output)]
    tpot = sum(steps) / len(steps)
    return 1e3 * cost.step_seconds(whole) / float(row["prefill_ms"]) - 1, 1e3 * tpot / float(row["tpot_ms"]) - 1


def test_the_table_is_whole() -> None:
    rows = figures()
    assert tuple(rows[0]) == COLUMNS and GPUS == COMPARED
    settings = {(row["gpu"], int(row["prompt_tokens"]), int(row["batch"])) for row in rows}
    assert settings == {(card, prompt, batch) for card in GPUS for prompt in PROMPTS for batch in BATCHES}
    assert {row["version"] for row in rows if row["gpu"] == "a100-80gb"} == {"0.14.0"}
    assert {row["version"] for row in rows if row["gpu"] != "a100-80gb"} == {"0.24.0"}


@needs_tables
@pytest.mark.parametrize("card", GPUS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_steps_are_those_of_aiconfigurator(card: str, prompt: int) -> None:
    rows = [row for row in figures() if row["gpu"] == card and int(row["prompt_tokens"]) == prompt]
    for row in rows:
        prefill, tpot = errors(row)
        assert abs(prefill) <= LIMITS[prompt] and abs(tpot) <= LIMITS[prompt], (row, prefill, tpot)


@needs_tables
def test_steps_are_off_by_little_on_average() -> None:
    every = [errors(row) for row in figures()]
    assert sum(abs(prefill) for prefill, _ in every) / len(every) < 0.015
    assert sum(abs(tpot) for _, tpot in every) / len(every) < 0.02
